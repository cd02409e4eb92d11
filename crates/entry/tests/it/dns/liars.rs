//! A name server that lies: nothing it says is taken for a success, and it cannot make us wait for ever.

use super::bind::{NAME, SECRET, ZONE};
use super::{entry, name};
use hickory_proto::op::{Message, MessageType, OpCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rehome_entry::EntryError;
use rehome_entry::dns::authority::Authority;
use rehome_entry::dns::rfc2136::Rfc2136;
use rehome_entry::dns::tsig::Key;
use rehome_entry::dns::{Zone, system_clock};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

pub struct Liar {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Liar {
    /// Answers each datagram with all that `lies` makes of it.
    pub async fn start(lies: impl Fn(&Message) -> Vec<Vec<u8>> + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 65_535];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let Ok(asked) = Message::from_vec(&buffer[..length]) else { continue };
                for lie in lies(&asked) {
                    socket.send_to(&lie, from).await.unwrap();
                }
            }
        });
        Self { address, task }
    }

    fn zone(&self) -> Rfc2136 {
        let key = Key::new("move", "hmac-sha256", SECRET).unwrap();
        Rfc2136::new(self.address, name(ZONE), key, system_clock())
    }

    fn authority(&self) -> Authority {
        Authority::given(name(ZONE), &[self.address], system_clock())
    }
}

/// An answer as a good server would give it, but for what a test changes in it.
fn answer(asked: &Message, address: [u8; 4]) -> Message {
    let mut answer = Message::response(asked.id, asked.op_code);
    answer.metadata.authoritative = true;
    answer.queries = asked.queries.clone();
    let owner = asked.queries[0].name().clone();
    let data = match asked.queries[0].query_type() {
        RecordType::SOA => {
            let host = Name::from_ascii("ns1.example.test.").unwrap();
            RData::SOA(SOA::new(host.clone(), host, 1, 2, 1, 3600, 30))
        }
        RecordType::A => RData::A(A(address.into())),
        _ => return answer,
    };
    answer.add_answer(Record::from_rdata(owner, 300, data));
    answer
}

/// The truth for once: these are the name's A records.
pub fn serve(asked: &Message, records: &[(String, u32)]) -> Vec<u8> {
    let mut answer = answer(asked, [0; 4]);
    if asked.queries[0].query_type() == RecordType::A {
        answer.answers.clear();
        for (value, ttl) in records {
            let data = RData::A(A(value.parse().unwrap()));
            answer.add_answer(Record::from_rdata(asked.queries[0].name().clone(), *ttl, data));
        }
    }
    answer.to_vec().unwrap()
}

#[tokio::test]
async fn an_unsigned_answer_to_a_signed_question_is_not_believed() {
    let liar = Liar::start(|asked| vec![answer(asked, [203, 0, 113, 66]).to_vec().unwrap()]).await;
    let begun = Instant::now();
    let error = liar.zone().read(&name(NAME)).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn only_the_answer_that_fits_the_question_is_heard() {
    let liar = Liar::start(|asked| {
        let wrong = |change: &dyn Fn(&mut Message)| {
            let mut lie = answer(asked, [203, 0, 113, 66]);
            change(&mut lie);
            lie.to_vec().unwrap()
        };
        vec![
            wrong(&|lie| lie.metadata.id = asked.id.wrapping_add(1)),
            wrong(&|lie| lie.metadata.message_type = MessageType::Query),
            wrong(&|lie| lie.metadata.op_code = OpCode::Update),
            wrong(&|lie| {
                lie.queries[0].set_name(Name::from_ascii("bank.example.test.").unwrap());
            }),
            wrong(&|lie| lie.queries.clear()),
            vec![0xff; 3],
            // Sections that claim more records than a sum of 16 bits holds.
            [&asked.id.to_be_bytes()[..], &[0x84, 0, 0, 1], &[0xff; 6]].concat(),
            answer(asked, [192, 0, 2, 1]).to_vec().unwrap(),
        ]
    })
    .await;
    let sights = liar.authority().look(&name(NAME)).await;
    assert_eq!(sights[0].view.as_ref().unwrap().entry, entry(&["192.0.2.1"], 300));
}

#[tokio::test]
async fn whoever_is_not_authoritative_is_not_counted() {
    let liar = Liar::start(|asked| {
        let mut lie = answer(asked, [192, 0, 2, 1]);
        lie.metadata.authoritative = asked.queries[0].query_type() == RecordType::SOA;
        vec![lie.to_vec().unwrap()]
    })
    .await;
    let sights = liar.authority().look(&name(NAME)).await;
    assert!(sights[0].view.as_ref().unwrap_err().contains("not authoritative"), "{sights:?}");
}

#[tokio::test]
async fn silence_ends() {
    let silent = Liar::start(|_| Vec::new()).await;
    let begun = Instant::now();
    let error = silent.zone().read(&name(NAME)).await.unwrap_err();
    assert!(matches!(error, EntryError::Unreachable { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn noise_of_any_kind_is_passed_over() {
    let noise = Liar::start(|asked| {
        let good = answer(asked, [192, 0, 2, 1]).to_vec().unwrap();
        let mut all: Vec<Vec<u8>> = (0..good.len()).map(|cut| good[..cut].to_vec()).collect();
        all.extend((12..good.len()).map(|place| {
            let mut bent = good.clone();
            bent[place] ^= 0xff;
            // No answer to our question, whatever it says.
            bent[0] ^= 0xff;
            bent
        }));
        all.extend((0..100).map(|_| (0..fastrand::usize(0..600)).map(|_| fastrand::u8(..)).collect()));
        all.push(good);
        all
    })
    .await;
    let sights = noise.authority().look(&name(NAME)).await;
    assert_eq!(sights[0].view.as_ref().unwrap().entry, entry(&["192.0.2.1"], 300));
}
