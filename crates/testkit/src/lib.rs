//! Everything a move is tried and shown on: embedded clouds (an S3 server with policies and a change feed, and the sample
//! shop on it), a shim that adds distance, live traffic, and a checker that trusts none of the movers.
//! Nothing here takes part in a real migration, and nothing here uses the code it is meant to check.

pub mod cloud;
pub mod delay;
mod listen;
pub mod load;
pub mod mariadb;
mod moment;
pub mod namespaces;
pub mod oracle;
pub mod pgbouncer;
pub mod postgres;
pub mod redis;
pub mod s3;
pub mod shop;
mod wire;
pub mod world;

pub use moment::monotonic_nanos;

/// The body of `rehome __cloud KIND CONFIG`: runs one process of a world (`s3`, `shop`, `postgres` or `delay`) until it is told to end.
pub async fn process(kind: &str, config: &std::path::Path) -> Result<(), cloud::CloudError> {
    match kind {
        "s3" => cloud::main_s3(config).await,
        "shop" => shop::main(config).await,
        "delay" => delay::main(config).await,
        "postgres" => postgres::main(config).await,
        other => {
            Err(cloud::CloudError::Config { path: config.into(), why: format!("there is no {other} to run") })
        }
    }
}
