//! The two ends of a database that moves: where each is, who we are there, and who the application is.

use crate::address::Address;
use rehome_part::Side;
use std::fmt;

/// A user and its password, if it has one.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: Option<String>,
}

impl fmt::Debug for Login {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// One end.
#[derive(Clone)]
pub struct End {
    /// Its user is the migration's own principal.
    pub address: Address,
    pub password: Option<String>,
    /// The address as the other end's server reaches it; by default the same.
    pub from_other: Option<Address>,
    /// The application's own logins, with which the fence is tried.
    pub applications: Vec<Login>,
}

impl fmt::Debug for End {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End")
            .field("address", &self.address)
            .field("from_other", &self.from_other)
            .field("applications", &self.applications)
            .finish_non_exhaustive()
    }
}

impl End {
    /// An end without anything else to say of it.
    pub fn new(address: Address, password: Option<String>) -> Self {
        Self { address, password, from_other: None, applications: Vec::new() }
    }

    /// Where the other end's server finds it.
    pub fn as_seen_by_other(&self) -> &Address {
        self.from_other.as_ref().unwrap_or(&self.address)
    }

    /// The same place for another user.
    pub fn address_of(&self, login: &Login) -> Address {
        Address { user: login.user.clone(), ..self.address.clone() }
    }
}

/// Both ends.
#[derive(Debug, Clone)]
pub struct Ends {
    pub source: End,
    pub target: End,
}

impl Ends {
    pub fn of(&self, side: Side) -> &End {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }
}

/// How a side is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceMeans {
    /// Writes are refused; reads go on.
    Writes,
    /// Nobody but the migration gets in.
    Logins,
    /// Not at all: the report says so.
    None,
}
