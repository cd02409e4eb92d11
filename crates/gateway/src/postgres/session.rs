//! One client's session: idle it waits for its next message, in a transaction both directions pass, and in a switch it goes to the other
//! server with everything that it had become. A client is told that its session ended only where that cannot be done.

use super::flow::{Flow, Up};
use super::frame::{self, HEAD, fatal};
use super::login::{Client, authentication};
use super::server::{Caller, Closed, Server, cannot_go};
use super::state::State;
use super::{Door, Seat};
use crate::control::Mode;
use crate::gate::{self, Label, Ticket};
use crate::server::Life;
use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use rehome_part::Side;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A server that does not say for so long what a session is does not answer any more.
const READ: Duration = Duration::from_secs(2);
/// The new owner may take so long to let a session in.
const MOVE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);

struct Session {
    door: Arc<Door>,
    client: Client,
    caller: Caller,
    label: Label,
    server: Option<Server>,
    side: Side,
    flow: Flow,
    /// As it was when it was last read; `None`: a transaction came after.
    state: Option<State>,
    /// Counted while an idle session is not ready to go.
    unready: Option<Unready>,
    /// The same session at the other side, ready in case.
    standby: Option<Standby>,
    /// It cannot go elsewhere, and counts as a session in a switch.
    stays: Option<gate::Session>,
    /// What the client shows to cancel; forgotten with the session.
    key: Key,
}

/// A session that is made ahead.
struct Standby {
    state: State,
    side: Side,
    made: Made,
}

enum Made {
    Opening(JoinHandle<Result<Server, Closed>>),
    Open(Box<Server>),
    /// It will be tried again when it is needed.
    Not,
    /// The session cannot be there what it is: why.
    Never(String),
}

impl Standby {
    /// Waits until it is made or not; for ever when that is known already.
    async fn finish(&mut self) {
        let Made::Opening(opening) = &mut self.made else { return std::future::pending().await };
        self.made = match opening.await {
            Ok(Ok(server)) => Made::Open(Box::new(server)),
            Ok(Err(Closed::Unlike(why))) => Made::Never(why),
            Ok(Err(closed)) => {
                tracing::debug!(why = closed.words(), "a session was not made ahead");
                Made::Not
            }
            Err(_) => Made::Not,
        };
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        if let Made::Opening(opening) = &self.made {
            opening.abort();
        }
    }
}

struct Unready(Arc<Door>);

impl Unready {
    fn count(door: &Arc<Door>) -> Self {
        door.unready.fetch_add(1, Ordering::SeqCst);
        Self(door.clone())
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        self.0.unready.fetch_sub(1, Ordering::SeqCst);
        self.0.ready.notify_waiters();
    }
}

struct Key(Arc<Door>, Bytes);

impl Key {
    fn make(door: &Arc<Door>) -> io::Result<Self> {
        let mut key = [0; 8];
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        Ok(Self(door.clone(), Bytes::copy_from_slice(&key)))
    }

    fn is_at(&self, side: Side, key: Bytes) {
        let mut seats = self.0.seats.lock().expect("no code panics while it holds this lock");
        seats.insert(self.1.clone(), Seat { side, key });
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.seats.lock().expect("no code panics while it holds this lock").remove(&self.1);
    }
}

/// How a transaction ended.
enum Ended {
    /// Well: the session is idle.
    Idle,
    /// The client or the server is gone, or the client said goodbye.
    Gone,
}

/// Why a session ends, as its client is told.
struct Farewell(BytesMut);

impl Farewell {
    fn new(text: &str) -> Self {
        Self(fatal("57P01", text, "connect again"))
    }
}

/// Serves a client that was let in, until one of them is gone.
///
/// # Errors
/// The connection broke.
pub(super) async fn serve(
    door: Arc<Door>,
    mut client: Client,
    caller: Caller,
    peer: SocketAddr,
    life: &Life,
) -> io::Result<()> {
    let name = caller.parameters.get(&b"application_name"[..]).filter(|name| !name.is_empty());
    let name = name.map_or_else(|| peer.ip().to_string(), |name| String::from_utf8_lossy(name).into_owned());
    let user = String::from_utf8_lossy(&caller.user).into_owned();
    let label: String =
        format!("PostgreSQL {}: {user}, {name}", door.plan.database).chars().take(80).collect();
    let label = Label::named(label);
    // Opening a session is a write like any other: nobody comes in while the owner changes.
    let opened = async {
        let ticket =
            door.gate.enter(label.clone(), 0).await.map_err(|full| refusal(&door, full.to_string()))?;
        let _permit = door.opening[ticket.owner as usize].acquire().await;
        let password = &caller.passwords[ticket.owner as usize];
        let opened = Server::open(door.end(ticket.owner), &caller, password).await;
        opened.map(|server| (server, ticket.owner)).map_err(|closed| Farewell(closed.message()))
    };
    let (server, side) = match opened.await {
        Ok(opened) => opened,
        Err(farewell) => return client.say(&farewell.0).await,
    };
    let key = Key::make(&door)?;
    client.say(&greeting(&server, &key.1)).await?;
    key.is_at(side, server.key.clone());
    let flow = Flow::new(server.reported.clone());
    let session = Session {
        state: Some(State::default()),
        flow,
        unready: None,
        standby: None,
        stays: None,
        server: Some(server),
        door,
        client,
        caller,
        label,
        side,
        key,
    };
    session.run(life).await
}

fn refusal(door: &Door, why: String) -> Farewell {
    door.refused.fetch_add(1, Ordering::Relaxed);
    Farewell::new(&format!("the database is being moved: {why}"))
}

/// What a server says when somebody came in; with a key of ours.
fn greeting(server: &Server, key: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    authentication(&mut out, 0, |_| {});
    for (name, value) in &server.reported {
        put_setting(&mut out, name, value);
    }
    frame::put(&mut out, b'K', |out| out.put_slice(key));
    frame::put(&mut out, b'Z', |out| out.put_u8(b'I'));
    out
}

fn put_setting(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    frame::put(out, b'S', |out| {
        frame::put_text(out, name);
        frame::put_text(out, value);
    });
}

impl Session {
    async fn run(mut self, life: &Life) -> io::Result<()> {
        let ended = self.live(life).await;
        let ended = match ended {
            Ok(Some(farewell)) => self.client.say(&farewell.0).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Some(server) = self.server.take() {
            server.leave();
        }
        // A client that is gone needs no goodbye.
        let _gone = self.client.writing.shutdown().await;
        ended
    }

    /// Until somebody goes; with what the client is to be told.
    async fn live(&mut self, life: &Life) -> io::Result<Option<Farewell>> {
        loop {
            let door = self.door.clone();
            let changed = door.gate.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Err(farewell) = self.keep_up().await? {
                return Ok(Some(farewell));
            }
            if Flow::begins(&self.client.reading.buffer)? {
                self.unready = None;
                match self.go().await? {
                    Ok(Ended::Idle) => continue,
                    Ok(Ended::Gone) => return Ok(None),
                    Err(farewell) => return Ok(Some(farewell)),
                }
            }
            self.count();
            let stays = self.stays.as_ref().map(|session| session.end.clone());
            tokio::select! {
                biased;
                () = life.closing.cancelled() => return Ok(Some(Farewell::new("the gateway ends"))),
                () = cancelled(stays) => return Ok(Some(self.cannot_go())),
                filled = self.client.reading.fill() => {
                    if !filled? {
                        return Ok(None);
                    }
                }
                heard = hear(&mut self.server) => {
                    if let Some(end) = self.heard(heard).await? {
                        return Ok(Some(end));
                    }
                }
                () = finished(&mut self.standby) => {}
                () = &mut changed => {}
            }
        }
    }

    fn mode(&self) -> Mode {
        self.door.gate.mode()
    }

    /// What an idle session does when the grant has changed: it is read before the owner changes, and goes where the owner is.
    async fn keep_up(&mut self) -> io::Result<Result<(), Farewell>> {
        let (mode, owner) = (self.mode(), self.door.gate.owner());
        if mode == Mode::Standing {
            if owner == self.side {
                self.standby = None;
                self.stays = None;
            }
        } else {
            self.read_state().await?;
            self.get_ready();
        }
        if mode != Mode::Held
            && (owner != self.side || self.server.is_none())
            // A line that is full, or a gateway that ends: the session stays where it is until it is used.
            && let Ok(ticket) = self.door.gate.enter(self.label.clone(), 0).await
        {
            return self.go_to(&ticket).await;
        }
        Ok(Ok(()))
    }

    /// Arming waits for idle sessions that nobody has read, or that are being made at the other side.
    fn count(&mut self) {
        let is_made = self.standby.as_ref().is_none_or(|standby| !matches!(standby.made, Made::Opening(_)));
        if self.state.is_some() && is_made {
            self.unready = None;
        } else if self.unready.is_none() {
            self.unready = Some(Unready::count(&self.door));
        }
    }

    /// Asks the server what the session has become, unless that is known.
    async fn read_state(&mut self) -> io::Result<()> {
        if self.state.is_some() {
            return Ok(());
        }
        let Some(server) = &mut self.server else { return Ok(()) };
        let mut aside = BytesMut::new();
        let flow = &self.flow;
        let read = {
            let _permit = self.door.reading.acquire().await;
            let reading = Box::pin(State::read(server, &flow.custom, &mut aside));
            tokio::time::timeout(READ, reading).await
        };
        match read {
            Ok(Ok(mut state)) => {
                state.unnamed = flow.unnamed.clone();
                state.bound = state.bound.or_else(|| flow.hidden.map(str::to_owned));
                self.state = Some(state);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::Other => {
                tracing::warn!(database = self.door.plan.name, %error, "a session cannot be read");
            }
            // Whether an answer is still to come is not known: nothing more can be asked there.
            _ => self.server = None,
        }
        if !aside.is_empty() {
            self.client.say(&aside).await?;
        }
        Ok(())
    }

    /// Before a switch: a session that can go is made at the other side already, one that cannot is counted.
    fn get_ready(&mut self) {
        let side = self.side.other();
        let Some(state) = &mut self.state else { return };
        let known = self.standby.as_ref().filter(|standby| standby.side == side && standby.state == *state);
        let (is_known, made) = (known.is_some(), known.map(|standby| &standby.made));
        if let Some(Made::Never(why)) = made {
            state.bound = Some(why.clone());
        }
        if state.bound.is_some() {
            if self.stays.is_none() {
                self.stays = Some(self.door.gate.session());
            }
            return;
        }
        self.stays = None;
        if !is_known {
            let state = state.clone();
            let opening = tokio::spawn(open(self.door.clone(), self.caller(), state.clone(), side));
            self.standby = Some(Standby { state, side, made: Made::Opening(opening) });
        }
    }

    /// Who the client is, with the encoding that it has now: everything that is read of its session is in it.
    fn caller(&self) -> Caller {
        let mut caller = self.caller.clone();
        if let Some(encoding) = self.flow.told.get(&b"client_encoding"[..]).cloned() {
            caller.parameters.insert(Bytes::from_static(b"client_encoding"), encoding);
        }
        caller
    }

    fn cannot_go(&self) -> Farewell {
        let why = self.state.as_ref().and_then(|state| state.bound.as_deref());
        Farewell(cannot_go(why.unwrap_or("what it has become is not known")))
    }

    /// To the owner's server, with everything. The ticket is held meanwhile.
    async fn go_to(&mut self, ticket: &Ticket) -> io::Result<Result<(), Farewell>> {
        // The old server may still say what is not known.
        self.read_state().await?;
        let state = match &self.state {
            Some(state) if state.bound.is_none() => state.clone(),
            _ => return Ok(Err(self.cannot_go())),
        };
        let mut server = match self.take_standby(&state, ticket.owner).await {
            Some(server) => server,
            None => {
                let opening = open_in_time(self.door.clone(), self.caller(), state, ticket.owner);
                match Box::pin(opening).await {
                    Ok(server) => server,
                    Err(closed) => {
                        tracing::warn!(
                            database = self.door.plan.name,
                            why = closed.words(),
                            "a session cannot go on"
                        );
                        return Ok(Err(Farewell(closed.message())));
                    }
                }
            }
        };
        // What an idle session was told by its old server while we were busy here.
        if let Some(old) = self.server.take() {
            old.leave();
        }
        let mut news = BytesMut::new();
        let told = &mut self.flow.told;
        for (name, value) in std::mem::take(&mut server.reported) {
            if told.get(&name) != Some(&value) {
                put_setting(&mut news, &name, &value);
                told.insert(name, value);
            }
        }
        self.key.is_at(ticket.owner, server.key.clone());
        self.side = ticket.owner;
        self.server = Some(server);
        self.stays = None;
        if !news.is_empty() {
            self.client.say(&news).await?;
        }
        Ok(Ok(()))
    }

    async fn take_standby(&mut self, state: &State, side: Side) -> Option<Server> {
        let mut standby = self.standby.take()?;
        if standby.side != side || standby.state != *state {
            return None;
        }
        if matches!(standby.made, Made::Opening(_)) {
            standby.finish().await;
        }
        match std::mem::replace(&mut standby.made, Made::Not) {
            // Whatever it says by itself meanwhile, its end most of all, makes another one better.
            Made::Open(mut server) => match server.reading.fill().now_or_never() {
                None => Some(*server),
                Some(_) => None,
            },
            _ => None,
        }
    }

    /// The client has something to say: one transaction, or several that it sent at once.
    async fn go(&mut self) -> io::Result<Result<Ended, Farewell>> {
        if self.client.reading.buffer.first() == Some(&b'X') {
            return Ok(Ok(Ended::Gone));
        }
        let bytes = self.client.reading.buffer.len() as u64;
        let stays = self.stays.as_ref().map(|session| session.end.clone());
        let entered = tokio::select! {
            entered = self.door.gate.enter(self.label.clone(), bytes) => entered,
            () = cancelled(stays) => return Ok(Err(self.cannot_go())),
        };
        let ticket = match entered {
            Ok(ticket) => ticket,
            Err(full) => return Ok(Err(refusal(&self.door, full.to_string()))),
        };
        // What the server said while the client waited: it may be gone.
        while let Some(heard) = hear(&mut self.server).now_or_never() {
            if let Some(end) = self.heard(heard).await? {
                return Ok(Err(end));
            }
        }
        if (ticket.owner != self.side || self.server.is_none())
            && let Err(farewell) = self.go_to(&ticket).await?
        {
            return Ok(Err(farewell));
        }
        if ticket.is_stale() {
            return Ok(Ok(Ended::Idle));
        }
        let ended = Box::pin(self.pass()).await?;
        let is_idle = matches!(ended, Ended::Idle);
        if is_idle && self.mode() != Mode::Standing {
            // Still under the ticket: the fence comes after it.
            self.read_state().await?;
        }
        self.door.times.record(ticket.started.elapsed());
        self.door.transactions.fetch_add(1, Ordering::Relaxed);
        Ok(Ok(ended))
    }

    /// Both directions, until the session is idle again.
    async fn pass(&mut self) -> io::Result<Ended> {
        let Some(server) = &mut self.server else { return Ok(Ended::Gone) };
        self.state = None;
        let (flow, client, gate) = (Mutex::new(&mut self.flow), &mut self.client, &self.door.gate);
        let lock = || flow.lock().expect("no code panics while it holds this lock");
        let (from, to) = (&mut client.reading, &mut server.writing);
        let (back_from, back_to) = (&mut server.reading, &mut client.writing);
        // Is one of the two in the midst of writing? The other does not end under it.
        let (is_sending, is_answering) = (AtomicBool::new(false), AtomicBool::new(false));
        let answered = Notify::new();
        let up = async {
            loop {
                let heard = answered.notified();
                let (bytes, why) = {
                    let mut flow = lock();
                    let taken = flow.up(&mut from.buffer, || gate.mode() == Mode::Held)?;
                    is_sending.store(!taken.0.is_empty(), Ordering::Relaxed);
                    taken
                };
                if !bytes.is_empty() {
                    to.write_all(&bytes).await?;
                    to.flush().await?;
                    is_sending.store(false, Ordering::Relaxed);
                }
                if lock().is_idle() && !is_answering.load(Ordering::Relaxed) {
                    return Ok(Ended::Idle);
                }
                match why {
                    Up::More => {
                        if !from.fill().await? {
                            return Ok(Ended::Gone);
                        }
                    }
                    Up::Wait => heard.await,
                    Up::Goodbye => return Ok(Ended::Gone),
                }
            }
        };
        let down = async {
            loop {
                let bytes = {
                    let mut flow = lock();
                    let bytes = flow.down(&mut back_from.buffer)?;
                    is_answering.store(!bytes.is_empty(), Ordering::Relaxed);
                    bytes
                };
                if !bytes.is_empty() {
                    back_to.write_all(&bytes).await?;
                    back_to.flush().await?;
                    is_answering.store(false, Ordering::Relaxed);
                    answered.notify_one();
                    if lock().is_idle() && !is_sending.load(Ordering::Relaxed) {
                        return Ok(Ended::Idle);
                    }
                }
                if !back_from.fill().await? {
                    return Ok(Ended::Gone);
                }
            }
        };
        tokio::select! {
            ended = up => ended,
            ended = down => ended,
        }
    }

    /// What a server says to an idle session goes to the client; that it ends is the client's concern only where nobody knows what the
    /// session was: otherwise it is made again.
    async fn heard(&mut self, heard: io::Result<bool>) -> io::Result<Option<Farewell>> {
        let is_gone = !matches!(heard, Ok(true));
        let (mut pass, mut last_words) = (BytesMut::new(), None);
        if let Some(server) = &mut self.server {
            while let Some(head) =
                frame::head(&server.reading.buffer)?.filter(|head| head.length <= server.reading.buffer.len())
            {
                let message = server.reading.buffer.split_to(head.length);
                match head.kind {
                    b'E' => last_words = Some(message),
                    b'A' | b'N' => pass.put_slice(&message),
                    b'S' => {
                        let mut body = message.freeze().split_off(HEAD);
                        let (name, value) = (frame::text(&mut body)?, frame::text(&mut body)?);
                        put_setting(&mut pass, &name, &value);
                        self.flow.told.insert(name, value);
                    }
                    _ => {}
                }
            }
        }
        if !pass.is_empty() {
            self.client.say(&pass).await?;
        }
        if !is_gone && last_words.is_none() {
            return Ok(None);
        }
        self.server = None;
        if self.state.is_some() {
            return Ok(None);
        }
        let last_words = last_words.map(Farewell);
        Ok(Some(last_words.unwrap_or_else(|| Farewell::new("the server ended the session"))))
    }
}

/// Waits for the end of what cannot go elsewhere; for ever where nothing has to end.
async fn cancelled(stays: Option<Arc<CancellationToken>>) {
    match stays {
        Some(end) => end.cancelled().await,
        None => std::future::pending().await,
    }
}

/// See [`Standby::finish`]; for ever where there is none.
async fn finished(standby: &mut Option<Standby>) {
    match standby {
        Some(standby) => standby.finish().await,
        None => std::future::pending().await,
    }
}

/// Waits for the server; for ever where there is none.
async fn hear(server: &mut Option<Server>) -> io::Result<bool> {
    match server {
        Some(server) => server.reading.fill().await,
        None => std::future::pending().await,
    }
}

/// Opens a session and makes it what it was.
async fn open(door: Arc<Door>, caller: Caller, state: State, side: Side) -> Result<Server, Closed> {
    let _permit = door.opening[side as usize].acquire().await;
    let password = &caller.passwords[side as usize];
    let mut server = Server::open(door.end(side), &caller, password).await?;
    let making = tokio::time::timeout(READ, state.make(&mut server, &caller.user)).await;
    let made = making.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match made {
        Ok(()) => Ok(server),
        Err(error) if error.kind() == io::ErrorKind::Other => Err(Closed::Unlike(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// The same, again and again: the new owner opens its doors at this very moment.
async fn open_in_time(door: Arc<Door>, caller: Caller, state: State, side: Side) -> Result<Server, Closed> {
    let until = Instant::now() + MOVE;
    loop {
        match Box::pin(open(door.clone(), caller.clone(), state.clone(), side)).await {
            Err(closed) if !matches!(closed, Closed::Unlike(_)) && Instant::now() < until => {
                tracing::debug!(why = closed.words(), "a session is opened again");
                tokio::time::sleep(AGAIN).await;
            }
            opened => return opened,
        }
    }
}
