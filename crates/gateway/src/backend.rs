//! Where a side's PostgreSQL database is, for those who stand before it.

use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};

/// A server that does not take a connection for so long is not there.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a side's database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// A name, an address, or the folder of a socket.
    pub host: String,
    pub port: u16,
    pub database: String,
}

/// Does anything listen there?
pub(crate) async fn reaches(backend: &Backend) -> bool {
    let reached = async {
        if backend.host.starts_with('/') {
            let path = format!("{}/.s.PGSQL.{}", backend.host, backend.port);
            UnixStream::connect(path).await.is_ok()
        } else {
            TcpStream::connect((&*backend.host, backend.port)).await.is_ok()
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or(false)
}
