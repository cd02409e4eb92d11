//! Any bytes on the control socket: each line gets one answer that the client's end understands, never a panic, never more
//! than the greeting's refusal without the secret; and any bytes as an answer or a question.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rehome_gateway::control::{Answer, Hello, MAX_LINE, Question, Refusal, Request, Response, VERSION};
use rehome_gateway::converse;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use tokio::io::join;
use tokio::runtime::Builder;

const SECRET: &str = "s3cret";

fuzz_target!(|bytes: &[u8]| {
    let (heard, answers) = speak(bytes);
    let knows_the_secret = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
    // A secret may also be spelt with escapes.
    assert!(heard.is_empty() || knows_the_secret || bytes.contains(&b'\\'));
    assert!(answers.len() <= 1 + bytes.split(|byte| *byte == b'\n').count());

    let hello = Hello { version: VERSION, secret: SECRET.into(), who: "fuzz".into() };
    let mut greeted = serde_json::to_vec(&hello).expect("a greeting can be written");
    greeted.push(b'\n');
    greeted.extend_from_slice(bytes);
    let (heard, answers) = speak(&greeted);
    assert_eq!(answers.first(), Some(&Response::Done));
    let refused = answers.iter().filter(|answer| matches!(answer, Response::Refused { .. })).count();
    assert_eq!(answers.len(), 1 + heard.len() + refused, "one answer for each line");
    for request in heard {
        let written = serde_json::to_vec(&request).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<Request>(&written).ok(), Some(request));
    }
    for line in bytes.split(|byte| *byte == b'\n') {
        read_back::<Response>(line);
        read_back::<Answer>(line);
        read_back::<Question>(line);
    }
});

/// What the gateway took for requests, and what it answered.
fn speak(bytes: &[u8]) -> (Vec<Request>, Vec<Response>) {
    let (heard, mut said) = (RefCell::new(Vec::new()), Vec::new());
    let handle = |request| {
        heard.borrow_mut().push(request);
        std::future::ready(Response::Done)
    };
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime needs no network");
    let spoken = runtime.block_on(converse(join(bytes, &mut said), SECRET, handle));
    // The greeting may lack its end: that is the one mistake that breaks the stream instead of being answered.
    assert!(spoken.is_ok() || said.is_empty(), "{spoken:?}");
    let answers = said.split_inclusive(|byte| *byte == b'\n').map(|line| {
        assert!(line.len() <= MAX_LINE, "an answer is a line like any other");
        let answer = serde_json::from_slice(line).expect("the client's end understands it");
        if let Response::Refused { why, .. } = &answer {
            assert!(matches!(why, Refusal::BadRequest | Refusal::BadSecret | Refusal::BadVersion));
        }
        answer
    });
    let answers = answers.collect();
    (heard.into_inner(), answers)
}

/// What can be read can be written and read again.
fn read_back<T: DeserializeOwned + Serialize>(line: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(line) else { return };
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    serde_json::from_slice::<T>(&written).expect("what was written can be read");
}
