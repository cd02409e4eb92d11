//! Places in a server's write-ahead log, as positions: `16/B374D848`. Two of them mean something beside each other only where
//! both are of the same server.

use rehome_part::{Error, ErrorKind, Position, Result};
use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let halves = text.split_once('/').and_then(|(high, low)| {
            Some((u32::from_str_radix(high, 16).ok()?, u32::from_str_radix(low, 16).ok()?))
        });
        let (high, low) = halves.ok_or_else(|| {
            Error::permanent(ErrorKind::Corrupt, format!("`{text}` is no place in a write-ahead log"))
        })?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

impl Lsn {
    pub fn position(self) -> Position {
        Position(self.to_string())
    }

    pub fn of(position: &Position) -> Result<Self> {
        position.0.parse()
    }

    /// Bytes of the log from `earlier` to here.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_the_server_writes_it() {
        let place: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!((place.0, place.to_string()), (0x16_B374_D848, "16/B374D848".to_owned()));
        assert!("17/0".parse::<Lsn>().unwrap() > place);
        for nonsense in ["", "16", "16/", "x/1", "1/100000000", "-1/0"] {
            assert!(nonsense.parse::<Lsn>().is_err(), "{nonsense}");
        }
    }
}
