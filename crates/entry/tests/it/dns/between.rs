//! Someone between us and a name server: datagrams pass, and a test does something just before an update arrives, or loses
//! the answer to it.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

pub type Before = Box<dyn FnMut() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

pub struct Between {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Between {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn is_update(datagram: &[u8]) -> bool {
    datagram.get(2).is_some_and(|flags| (flags >> 3) & 15 == 5)
}

impl Between {
    /// `before` runs before each update is passed on; with `loses_answers` the answers to updates are lost.
    pub async fn start(server: SocketAddr, mut before: Before, loses_answers: bool) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 65_535];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let datagram = buffer[..length].to_vec();
                let update = is_update(&datagram);
                if update {
                    before().await;
                }
                let socket = socket.clone();
                tokio::spawn(async move {
                    let onward = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                    onward.connect(server).await.unwrap();
                    onward.send(&datagram).await.unwrap();
                    let mut answer = vec![0; 65_535];
                    let received = tokio::time::timeout(Duration::from_secs(5), onward.recv(&mut answer));
                    if let Ok(Ok(length)) = received.await
                        && !(update && loses_answers)
                    {
                        socket.send_to(&answer[..length], from).await.unwrap();
                    }
                });
            }
        });
        Self { address, task }
    }
}
