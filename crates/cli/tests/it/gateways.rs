//! Two gateways that switch together, one of them on "another machine": controlled over TLS, through a line that can be cut.
//! Whatever befalls one of them, no write goes to a side that does not own them.

use crate::harness::{Gateway, Place, Ran, ran, send, wait_for};
use rehome_journal::{RunView, Stage};
use rehome_part::Side;
use rehome_testkit::load::{Load, LoadConfig, LoadLog};
use rehome_testkit::oracle;
use rehome_testkit::world::{World, WorldConfig};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(60);

/// The line between the engine and the far gateway. Cut, it is silent: nothing arrives, nothing is refused.
struct Line {
    address: SocketAddr,
    to: watch::Sender<Option<SocketAddr>>,
    cut: watch::Sender<bool>,
}

impl Line {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, target) = watch::channel(None);
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, target.clone(), is_cut.clone()));
            }
        });
        Self { address, to, cut }
    }
}

async fn carry(near: TcpStream, mut target: watch::Receiver<Option<SocketAddr>>, cut: watch::Receiver<bool>) {
    let Some(to) = target.wait_for(Option::is_some).await.ok().and_then(|to| *to) else { return };
    let Ok(far) = TcpStream::connect(to).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::join!(pass(near_in, far_out, cut.clone()), pass(far_in, near_out, cut));
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut cut: watch::Receiver<bool>,
) {
    let mut piece = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        if cut.wait_for(|cut| !cut).await.is_err() || to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}

fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// A shop with two entrances, and people at both.
struct Entrances {
    place: Place,
    world: World,
    near: Gateway,
    far: Gateway,
    line: Line,
    loads: Vec<Load>,
}

impl Entrances {
    async fn open() -> Self {
        let place = Place::new();
        let config = WorldConfig::new(place.path("world"), env!("CARGO_BIN_EXE_rehome").into(), 60);
        let world = World::start(&config).await.unwrap();
        let line = Line::open().await;
        let certificate = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
        let chain = place.write("edge.pem", &certificate.cert.pem());
        let key = place.write("edge.key", &certificate.signing_key.serialize_pem());
        let token = place.write("token", "long and shown by both ends");
        let text = std::fs::read_to_string(&world.migration_file).unwrap();
        let gateways = format!(
            "\n[[gateways]]\nname = \"near\"\ncontrol = {:?}\n\n[[gateways]]\nname = \"far\"\ncontrol = {:?}\n\
             token = \"file:{}\"\nremote = {{ address = \"{}\", listen = \"127.0.0.1:0\", tls = {{ chain = {:?}, \
             key = \"file:{}\" }}, ca = {:?} }}\n",
            place.path("near/g.sock"),
            place.path("far/g.sock"),
            token.display(),
            line.address,
            chain,
            key.display(),
            chain,
        );
        place.write("rehome.toml", &format!("{text}{gateways}"));
        // The same file on the other machine, where the service has another address of its own.
        let elsewhere = text.replace(&world.gateway.to_string(), "127.0.0.1:0");
        place.write("elsewhere.toml", &format!("{elsewhere}{gateways}"));
        let near = Gateway::start(&place, "rehome.toml", "near");
        let far = Gateway::start(&place, "elsewhere.toml", "far");
        line.to.send_replace(far.remote);
        let mut entrances = Self { place, world, near, far, line, loads: Vec::new() };
        for (name, gateway) in [("near", entrances.near.listens), ("far", entrances.far.listens)] {
            let load = Load::start(LoadConfig {
                gateway,
                readers: 2,
                writers: 4,
                rate: 60.0,
                name: name.into(),
                seed: 1,
                media: Arc::default(),
                log: entrances.place.path(&format!("load-{name}.jsonl")),
                patience: Duration::from_secs(30),
            });
            entrances.loads.push(load.unwrap());
        }
        entrances
    }

    /// A command in a thread of its own: the loads and the line go on meanwhile.
    async fn rehome(&self, words: &[&str]) -> Ran {
        let mut command = self.place.command(&["--file", "rehome.toml"]);
        command.args(words);
        tokio::task::spawn_blocking(move || ran(command.output().unwrap())).await.unwrap()
    }

    async fn ready(&self, fault: Option<&str>) {
        let end_with = format!("--end-with={}", std::process::id());
        let mut words = vec!["apply", "--until", "ready", "--yes", &end_with];
        let fault = fault.map(|fault| format!("--fault={fault}"));
        words.extend(fault.as_deref());
        let ready = self.rehome(&words).await;
        assert_eq!(ready.code, 0, "{}\n{}", ready.stdout, ready.stderr);
    }

    fn view(&self) -> RunView {
        RunView::load(&self.run_folder()).unwrap()
    }

    fn run_folder(&self) -> PathBuf {
        self.place.path("state").join("shop")
    }

    fn engine(&self) -> u32 {
        let lease = self.view().lease.unwrap();
        lease.holder.rsplit_once("pid ").unwrap().1.trim().parse().unwrap()
    }

    fn acknowledged(&self, load: usize) -> u64 {
        self.loads[load].counts().writes_acknowledged
    }

    /// So many more writes are acknowledged at this entrance.
    async fn goes_on(&self, load: usize, more: u64) {
        let wanted = self.acknowledged(load) + more;
        let done = async {
            while self.acknowledged(load) < wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, done).await.expect("this entrance takes writes");
    }

    /// Ends the traffic; nothing was lost, doubled or failed, and each side took writes only while it owned them.
    async fn judge(mut self, owners: &[Side]) {
        let mut logs: Vec<LoadLog> = Vec::new();
        for load in self.loads.drain(..) {
            logs.push(load.stop().await);
        }
        let cloud = |side: &Side| match side {
            Side::Source => &self.world.source,
            Side::Target => &self.world.target,
        };
        let owner = cloud(owners.last().unwrap());
        let ignored = [".rehome/".to_owned()];
        let evidence =
            oracle::gather(&owner.bucket().unwrap(), &self.world.manifest, &ignored).await.unwrap();
        let journals = [&self.world.source, &self.world.target].map(|cloud| cloud.journal().unwrap());
        let names: Vec<String> = owners.iter().map(|side| cloud(side).name.clone()).collect();
        let verdict = oracle::judge(&logs.iter().collect::<Vec<_>>(), &evidence, &journals, &names);
        assert!(verdict.ok, "{:#?}", verdict.violations);
        assert!(verdict.writes_acknowledged > 50, "{verdict:?}");
        for log in &logs {
            assert_eq!(log.counts.failed, 0, "{:#?}", log.failures);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_switch_and_come_back_together() {
    let entrances = Entrances::open().await;
    entrances.ready(None).await;
    let switched = entrances.rehome(&["switch", "--yes"]).await;
    assert_eq!(switched.code, 0, "{}\n{}", switched.stdout, switched.stderr);
    for load in [0, 1] {
        entrances.goes_on(load, 20).await;
    }
    let reversed = entrances.rehome(&["reverse", "--yes"]).await;
    assert_eq!(reversed.code, 21, "{}\n{}", reversed.stdout, reversed.stderr);
    for load in [0, 1] {
        entrances.goes_on(load, 20).await;
    }
    entrances.judge(&[Side::Source, Side::Target, Side::Source]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_does_not_answer_keeps_the_switch_from_being_armed() {
    let entrances = Entrances::open().await;
    entrances.ready(None).await;
    entrances.far.signal(Signal::STOP);
    let refused = entrances.rehome(&["switch", "--yes"]).await;
    assert_eq!(refused.code, 20, "{}\n{}", refused.stdout, refused.stderr);
    let view = entrances.view();
    assert!(view.switches.is_empty() && view.owner == Side::Source, "nothing was armed: {view:?}");
    entrances.goes_on(0, 5).await;
    entrances.far.signal(Signal::CONT);
    // Writes took as long as it slept, and the prediction believes that this can happen again.
    let switched = entrances.rehome(&["switch", "--yes", "--accept", "predicted-pause"]).await;
    assert_eq!(switched.code, 0, "{}\n{}", switched.stdout, switched.stderr);
    entrances.goes_on(1, 20).await;
    entrances.judge(&[Side::Source, Side::Target]).await;
}

/// The engine stands still right after the decision, so that there is time to take the far gateway away.
async fn decided_while(entrances: &Entrances, away: impl FnOnce()) -> tokio::task::JoinHandle<Ran> {
    let mut command = entrances.place.command(&["--file", "rehome.toml", "switch", "--yes"]);
    let switch = tokio::task::spawn_blocking(move || ran(command.output().unwrap()));
    let engine = entrances.engine();
    tokio::task::block_in_place(|| {
        wait_for("the decision", PATIENCE, || is_stopped(engine).then_some(()));
    });
    away();
    send(engine, Signal::CONT);
    switch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_slept_through_the_decision_writes_nothing_to_the_old_owner() {
    let entrances = Entrances::open().await;
    entrances.ready(Some("stop@after:decide")).await;
    let switch = decided_while(&entrances, || entrances.far.signal(Signal::STOP)).await;
    // The other entrance is open to the new owner while this one sleeps.
    entrances.goes_on(0, 20).await;
    let asleep = entrances.acknowledged(1);
    entrances.goes_on(0, 20).await;
    assert_eq!(entrances.acknowledged(1), asleep);
    entrances.far.signal(Signal::CONT);
    entrances.goes_on(1, 20).await;
    let switched = switch.await.unwrap();
    assert_eq!(switched.code, 0, "{}\n{}", switched.stdout, switched.stderr);
    entrances.judge(&[Side::Source, Side::Target]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_behind_a_cut_line_holds_until_it_is_told() {
    let entrances = Entrances::open().await;
    entrances.ready(Some("stop@after:decide")).await;
    let switch = decided_while(&entrances, || {
        entrances.line.cut.send_replace(true);
    })
    .await;
    entrances.goes_on(0, 20).await;
    // It is awake and has people who write, and its lease has ended long ago.
    let parked = entrances.acknowledged(1);
    entrances.goes_on(0, 60).await;
    assert_eq!(entrances.acknowledged(1), parked, "a write was let go without the decision");
    assert_eq!(entrances.view().stage, Stage::Open, "the switch waits for every gateway");
    entrances.line.cut.send_replace(false);
    entrances.goes_on(1, 20).await;
    let switched = switch.await.unwrap();
    assert_eq!(switched.code, 0, "{}\n{}", switched.stdout, switched.stderr);
    entrances.judge(&[Side::Source, Side::Target]).await;
}
