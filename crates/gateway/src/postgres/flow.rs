//! The two directions of a session as bytes: how much of what was read may go on, and what is noticed on the way. Never reads a socket.

use super::frame::{self, HEAD};
use super::progress::Progress;
use super::state::{Unnamed, custom_settings};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// Statements up to this size are looked into; larger ones pass as they are.
const MOST_SEEN: usize = 1 << 20;
/// Names of settings that are remembered.
const MOST_CUSTOM: usize = 256;

/// Why no more goes from the client to the server now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Up {
    /// The next message is not all there.
    More,
    /// The client waits here until what it asked is answered.
    Wait,
    /// The client says goodbye.
    Goodbye,
}

#[derive(Debug)]
pub(super) struct Flow {
    pub progress: Progress,
    /// Of the message that is passing, in bytes.
    left_up: usize,
    left_down: usize,
    /// The last statement without a name.
    pub unnamed: Option<Unnamed>,
    pub custom: BTreeSet<Bytes>,
    /// Why what the session became cannot be known.
    pub hidden: Option<&'static str>,
    /// Settings as the client knows them.
    pub told: BTreeMap<Bytes, Bytes>,
}

impl Flow {
    pub fn new(told: BTreeMap<Bytes, Bytes>) -> Self {
        Self {
            progress: Progress::new(),
            left_up: 0,
            left_down: 0,
            unnamed: None,
            custom: BTreeSet::new(),
            hidden: None,
            told,
        }
    }

    /// Between two transactions, with no message cut in two.
    pub fn is_idle(&self) -> bool {
        self.progress.is_idle() && self.left_up == 0 && self.left_down == 0
    }

    /// Is there enough of the client's first message for it to go on?
    ///
    /// # Errors
    /// What came is no message.
    pub fn begins(buffer: &[u8]) -> io::Result<bool> {
        let is_enough = |head: frame::Head| !is_seen(head) || buffer.len() >= head.length;
        Ok(frame::head(buffer)?.is_some_and(is_enough))
    }

    /// What the client sent and may go on to the server. `is_held`: asked where the client could be made to wait.
    ///
    /// # Errors
    /// What came is no message.
    pub fn up(&mut self, buffer: &mut BytesMut, is_held: impl Fn() -> bool) -> io::Result<(Bytes, Up)> {
        let mut end = 0;
        let why = loop {
            let passing = self.left_up.min(buffer.len() - end);
            end += passing;
            self.left_up -= passing;
            if self.left_up > 0 {
                break Up::More;
            }
            let Some(head) = frame::head(&buffer[end..])? else { break Up::More };
            // What is open must come to its end, held or not.
            let must_go_on = self.progress.is_answered() && !self.progress.is_idle();
            if self.progress.is_between() && !must_go_on && is_held() {
                break Up::Wait;
            }
            if head.kind == b'X' {
                break Up::Goodbye;
            }
            if is_seen(head) {
                let Some(message) = buffer.get(end..end + head.length) else {
                    buffer.reserve(head.length - (buffer.len() - end));
                    break Up::More;
                };
                let body = Bytes::copy_from_slice(&message[HEAD..]);
                self.statement(head.kind, body)?;
            } else if is_statement(head) {
                self.hidden = Some("it ran a statement too large to be looked into");
            }
            self.progress.sent(head.kind);
            self.left_up = head.length;
        };
        Ok((buffer.split_to(end).freeze(), why))
    }

    fn statement(&mut self, kind: u8, mut body: Bytes) -> io::Result<()> {
        let name = if kind == b'P' { frame::text(&mut body)? } else { Bytes::new() };
        let statement = frame::text(&mut body)?;
        for name in custom_settings(&statement) {
            match name {
                Some(name) if self.custom.len() < MOST_CUSTOM => drop(self.custom.insert(name)),
                _ => self.hidden = Some("it has a setting whose name cannot be seen"),
            }
        }
        if name.is_empty() {
            self.unnamed = None;
            if kind == b'P' {
                let count = frame::short(&mut body)?;
                let types = (0..count).map(|_| frame::long(&mut body)).collect::<io::Result<_>>()?;
                self.unnamed = Some(Unnamed { statement, types });
            }
        }
        Ok(())
    }

    /// What the server sent and goes on to the client.
    ///
    /// # Errors
    /// What came is no message.
    pub fn down(&mut self, buffer: &mut BytesMut) -> io::Result<Bytes> {
        let mut end = 0;
        loop {
            let passing = self.left_down.min(buffer.len() - end);
            end += passing;
            self.left_down -= passing;
            if self.left_down > 0 {
                break;
            }
            let Some(head) = frame::head(&buffer[end..])? else { break };
            match head.kind {
                b'Z' | b'S' => {
                    let Some(message) = buffer.get(end..end + head.length) else { break };
                    let mut body = Bytes::copy_from_slice(&message[HEAD..]);
                    if head.kind == b'S' {
                        let name = frame::text(&mut body)?;
                        self.told.insert(name, frame::text(&mut body)?);
                    } else {
                        self.progress.ready(body.first().copied().unwrap_or_default());
                    }
                }
                b'G' => self.progress.copy_begins(),
                b'E' => self.progress.failed(),
                _ => {}
            }
            self.left_down = head.length;
        }
        Ok(buffer.split_to(end).freeze())
    }
}

fn is_statement(head: frame::Head) -> bool {
    matches!(head.kind, b'Q' | b'P')
}

/// Is it looked into, as a whole?
fn is_seen(head: frame::Head) -> bool {
    is_statement(head) && head.length <= MOST_SEEN
}

#[cfg(test)]
mod tests {
    use super::super::frame::{put, put_parse, put_run, put_sync, put_text};
    use super::*;

    fn query(text: &str) -> BytesMut {
        let mut out = BytesMut::new();
        put(&mut out, b'Q', |out| put_text(out, text.as_bytes()));
        out
    }

    fn ready(status: u8) -> BytesMut {
        let mut out = BytesMut::new();
        put(&mut out, b'Z', |out| out.extend_from_slice(&[status]));
        out
    }

    fn flow() -> Flow {
        Flow::new(BTreeMap::new())
    }

    #[test]
    fn every_byte_goes_on_however_it_is_cut() {
        let mut whole = query("SELECT 1");
        put_parse(&mut whole, b"", b"SELECT $1", &[23]);
        put_run(&mut whole, b"", &[b"7"]);
        put_sync(&mut whole);
        for step in 1..whole.len() {
            let (mut flow, mut buffer, mut passed) = (flow(), BytesMut::new(), Vec::new());
            for piece in whole.chunks(step) {
                buffer.extend_from_slice(piece);
                let (bytes, why) = flow.up(&mut buffer, || false).unwrap();
                assert_eq!(why, Up::More);
                passed.extend_from_slice(&bytes);
            }
            assert_eq!(passed, whole, "in pieces of {step}");
            assert!(!flow.is_idle());
            for _ in 0..2 {
                flow.down(&mut ready(b'I')).unwrap();
            }
            assert!(flow.is_idle());
        }
    }

    #[test]
    fn a_held_client_waits_between_two_transactions_and_nowhere_else() {
        let mut flow = flow();
        let mut buffer = query("BEGIN");
        assert_eq!(flow.up(&mut buffer, || true).unwrap(), (Bytes::new(), Up::Wait));
        let (bytes, _) = flow.up(&mut buffer, || false).unwrap();
        assert_eq!(bytes, query("BEGIN"));
        // Sent before the answer: whether a transaction is open is not known yet.
        let mut buffer = query("INSERT");
        assert_eq!(flow.up(&mut buffer, || true).unwrap().1, Up::Wait);
        flow.down(&mut ready(b'T')).unwrap();
        let (bytes, why) = flow.up(&mut buffer, || true).unwrap();
        assert_eq!((&bytes[..], why), (&query("INSERT")[..], Up::More));
        flow.down(&mut ready(b'T')).unwrap();
        let mut buffer = BytesMut::from(&[query("COMMIT"), query("BEGIN")].concat()[..]);
        let (bytes, why) = flow.up(&mut buffer, || true).unwrap();
        assert_eq!((&bytes[..], why), (&query("COMMIT")[..], Up::Wait));
        flow.down(&mut ready(b'I')).unwrap();
        assert!(flow.is_idle());
        assert_eq!(flow.up(&mut buffer, || true).unwrap().1, Up::Wait);
        assert_eq!(buffer, query("BEGIN"), "it waits with the client");
    }

    #[test]
    fn what_a_new_server_must_know_is_noticed() {
        let mut flow = flow();
        let mut buffer = BytesMut::new();
        put_parse(&mut buffer, b"", b"SELECT set_config('app.user', $1, false)", &[25]);
        put_sync(&mut buffer);
        flow.up(&mut buffer, || false).unwrap();
        assert_eq!(flow.unnamed.as_ref().unwrap().types, [25]);
        assert_eq!(flow.custom.first().unwrap(), "app.user");
        flow.up(&mut query("SELECT 1"), || false).unwrap();
        assert_eq!(flow.unnamed, None, "a query takes its place");
        let mut told = BytesMut::new();
        put(&mut told, b'S', |out| {
            put_text(out, b"TimeZone");
            put_text(out, b"Asia/Shanghai");
        });
        flow.down(&mut told).unwrap();
        assert_eq!(flow.told[&b"TimeZone"[..]], "Asia/Shanghai");
        let large = "x".repeat(MOST_SEEN);
        flow.up(&mut query(&large), || false).unwrap();
        assert!(flow.hidden.is_some());
    }

    proptest::proptest! {
        /// Whatever strangers send, in whatever pieces: no panic, and every byte that goes on went in.
        #[test]
        fn what_makes_no_sense_does_no_harm(
            pieces in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..40), 0..12),
            kinds in proptest::collection::vec(proptest::sample::select(b"QPBESHXdcfFzGTCZN".to_vec()), 12),
        ) {
            let (mut flow, mut up, mut down) = (flow(), BytesMut::new(), BytesMut::new());
            let (mut sent, mut passed) = (0, 0);
            for (piece, kind) in pieces.iter().zip(kinds) {
                // Some of it looks like a message.
                let mut message = BytesMut::new();
                put(&mut message, kind, |out| out.extend_from_slice(piece));
                for buffer in [&mut up, &mut down] {
                    buffer.extend_from_slice(&message);
                    buffer.extend_from_slice(&piece[..piece.len() / 7]);
                }
                sent = sent.max(up.len() + passed);
                if let Ok((bytes, _)) = flow.up(&mut up, || piece.len() % 2 == 0) {
                    passed += bytes.len();
                }
                let _makes_no_sense = flow.down(&mut down);
            }
            proptest::prop_assert!(passed <= sent);
        }
    }

    #[test]
    fn a_goodbye_stays_where_it_is() {
        let mut buffer = BytesMut::new();
        put(&mut buffer, b'X', |_| {});
        assert_eq!(flow().up(&mut buffer, || false).unwrap(), (Bytes::new(), Up::Goodbye));
    }
}
