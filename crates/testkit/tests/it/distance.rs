//! The shim adds the round trip, and nothing is lost or limited by it.

use rehome_testkit::delay;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ROUND_TRIP: Duration = Duration::from_millis(60);

/// Sends back what it reads, and ends when the other end does.
async fn echo() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn every_exchange_takes_a_round_trip_and_the_first_two() {
    let shim = delay::start(echo().await, ROUND_TRIP).await.unwrap();
    let began = Instant::now();
    let mut stream = TcpStream::connect(shim.address).await.unwrap();
    let mut buffer = [0; 4];
    stream.write_all(b"ping").await.unwrap();
    stream.read_exact(&mut buffer).await.unwrap();
    assert!(began.elapsed() >= 2 * ROUND_TRIP, "handshake and exchange: {:?}", began.elapsed());
    for _ in 0..3 {
        let began = Instant::now();
        stream.write_all(b"pong").await.unwrap();
        stream.read_exact(&mut buffer).await.unwrap();
        assert!(began.elapsed() >= ROUND_TRIP, "{:?}", began.elapsed());
        assert_eq!(&buffer, b"pong");
    }
}

#[tokio::test]
async fn much_is_under_way_at_once_and_the_end_travels_too() {
    let shim = delay::start(echo().await, ROUND_TRIP).await.unwrap();
    let sent: Vec<u8> = (0..8u32 << 20).map(|index| (index % 251) as u8).collect();
    let (mut from, mut to) = TcpStream::connect(shim.address).await.unwrap().into_split();
    let copy = sent.clone();
    let sending = tokio::spawn(async move {
        to.write_all(&copy).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let began = Instant::now();
    let mut received = Vec::new();
    from.read_to_end(&mut received).await.unwrap();
    sending.await.unwrap();
    assert!(received == sent);
    // 128 chunks of 64 KiB one after the other would take 128 round trips.
    assert!(began.elapsed() < 100 * ROUND_TRIP, "{:?}", began.elapsed());
}

#[tokio::test]
async fn dropped_it_forwards_no_more() {
    let shim = delay::start(echo().await, Duration::ZERO).await.unwrap();
    let address = shim.address;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_u8().await.unwrap();
    drop(shim);
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "open connections end");
}

/// A connection on which something came back.
async fn through(shim: &delay::Delay) -> TcpStream {
    let mut stream = TcpStream::connect(shim.address).await.unwrap();
    stream.write_all(b"a").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'a');
    stream
}

#[tokio::test]
async fn a_cut_line_says_nothing_and_brings_what_was_sent_when_it_heals() {
    let shim = delay::start(echo().await, Duration::ZERO).await.unwrap();
    let mut before = through(&shim).await;
    shim.cut();
    let mut new = TcpStream::connect(shim.address).await.unwrap();
    for stream in [&mut before, &mut new] {
        stream.write_all(b"b").await.unwrap();
        let answer = tokio::time::timeout(Duration::from_millis(300), stream.read_u8()).await;
        assert!(answer.is_err(), "neither passed nor refused: {answer:?}");
    }
    shim.heal();
    for stream in [&mut before, &mut new] {
        assert_eq!(stream.read_u8().await.unwrap(), b'b');
    }
}

#[tokio::test]
async fn a_line_that_heals_for_new_connections_forgets_the_old_ones() {
    let shim = delay::start(echo().await, Duration::ZERO).await.unwrap();
    let mut before = through(&shim).await;
    shim.cut();
    shim.heal_for_new();
    through(&shim).await;
    before.write_all(b"b").await.unwrap();
    let answer = tokio::time::timeout(Duration::from_millis(300), before.read_u8()).await;
    assert!(answer.is_err(), "neither passed nor refused: {answer:?}");
}

#[tokio::test]
async fn a_reset_line_refuses_old_and_new_until_it_heals() {
    let shim = delay::start(echo().await, Duration::ZERO).await.unwrap();
    let mut before = through(&shim).await;
    shim.reset();
    let mut new = TcpStream::connect(shim.address).await.unwrap();
    for stream in [&mut before, &mut new] {
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    shim.heal();
    through(&shim).await;
}
