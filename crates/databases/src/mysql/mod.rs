//! MySQL and MariaDB. Both are assessed and compared; replication is orchestrated for MariaDB, 10.5 and newer.

mod assess;
mod changes;
mod channel;
mod connect;
mod copy;
mod fence;
mod follow;
mod gtid;
mod own;
mod part;
mod quote;
mod schema;
mod sweep;
mod tables;
mod verify;

pub use assess::{Assessed, Watched, assess, fits};
pub use connect::{Flavour, Session, connect};
pub use part::MysqlPart;
pub(crate) use verify::Reader;
