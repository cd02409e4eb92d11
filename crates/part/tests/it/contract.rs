use async_trait::async_trait;
use rehome_part::contract::{Options, Refused, Rig, check};
use rehome_part::sim::{Guard, SimPart, SimWorld};
use rehome_part::{Capabilities, Error, ErrorKind, Follows, Part, Side};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
struct SimRig {
    world: SimWorld,
    capabilities: Capabilities,
}

fn everything() -> Capabilities {
    Capabilities { follows: Follows::Feed, can_fence: true, can_probe: true, can_reverse: true }
}

impl SimRig {
    fn new(capabilities: Capabilities) -> Self {
        let world = SimWorld::new();
        world.behave(|b| {
            b.copy_time_per_object = Duration::from_millis(3);
            b.apply_time_per_change = Duration::from_millis(2);
            b.listing_pass = Duration::from_millis(200);
        });
        Self { world, capabilities }
    }
}

#[async_trait]
impl Rig for SimRig {
    fn part(&self) -> Arc<dyn Part> {
        Arc::new(SimPart::over("simulated", self.world.clone()).with(self.capabilities.clone()))
    }

    async fn write(&self, side: Side, key: &str, content: &[u8]) -> Result<(), Refused> {
        self.world.write(side, key, content).map(drop).map_err(|error| Refused(error.to_string()))
    }

    async fn delete(&self, side: Side, key: &str) -> Result<(), Refused> {
        self.world.delete(side, key).map(drop).map_err(|error| Refused(error.to_string()))
    }

    async fn read(&self, side: Side, key: &str) -> Option<Vec<u8>> {
        self.world.read(side, key)
    }

    async fn plant(&self, side: Side, key: &str, content: Option<&[u8]>) {
        self.world.plant(side, key, content.map(<[u8]>::to_vec));
    }

    async fn write_late(&self, side: Side, key: &str, content: &[u8]) {
        self.world.write_late(side, key, content);
    }

    async fn guard(&self, side: Side) -> String {
        let snapshot = self.world.snapshot();
        let side = if side == Side::Source { snapshot.source } else { snapshot.target };
        format!("exists: {}, guard: {:?}", side.exists, side.guard)
    }

    async fn make_target(&self) {
        self.world.found(Side::Target, Guard::Open);
    }

    async fn remains(&self) -> Vec<String> {
        self.world.leftovers()
    }
}

/// Generous, because paused time costs nothing.
fn patient() -> Options {
    Options { patience: Duration::from_secs(60), quiet: Duration::from_secs(10), objects: 12 }
}

async fn run(capabilities: Capabilities, bend: impl Fn(&SimWorld)) -> Result<(), String> {
    let make = || async {
        let rig = SimRig::new(capabilities.clone());
        bend(&rig.world);
        rig
    };
    check(make, &patient()).await
}

#[tokio::test(start_paused = true)]
async fn the_simulated_part_keeps_the_contract() {
    run(everything(), |_| {}).await.expect("the contract holds");
}

#[tokio::test]
async fn the_simulated_part_keeps_the_contract_in_real_time() {
    let options = Options { quiet: Duration::from_millis(30), ..Options::default() };
    let make = || async { SimRig::new(everything()) };
    check(make, &options).await.expect("the contract holds");
}

#[tokio::test(start_paused = true)]
async fn the_simulated_part_keeps_the_contract_with_fewer_capabilities() {
    let without = [
        Capabilities { follows: Follows::Listing, ..everything() },
        Capabilities { can_fence: false, can_probe: false, ..everything() },
        Capabilities { can_probe: false, ..everything() },
        Capabilities { can_reverse: false, ..everything() },
    ];
    for capabilities in without {
        let result = run(capabilities.clone(), |_| {}).await;
        assert_eq!(result, Ok(()), "{capabilities:?}");
    }
}

/// Bends the world in one way and expects that the suite names every case that this breaks.
async fn must_notice(cases: &[&str], bend: impl Fn(&SimWorld)) {
    let found = run(everything(), bend).await.expect_err("a broken part passed the contract suite");
    for case in cases {
        assert!(found.lines().any(|line| line.starts_with(case)), "{case} did not notice; noticed:\n{found}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_suite_notices_a_fence_that_keeps_nobody_out() {
    must_notice(&["guards::fence_closes_and_unfence_restores", "going::retire_leaves_nothing"], |world| {
        world.lying_fence(Side::Source, true);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_suite_notices_a_lost_marker() {
    must_notice(&["going::drain_needs_position_and_marker", "going::seal_and_follow_back"], |world| {
        world.behave(|b| b.lose_markers = true);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_suite_notices_lost_changes() {
    must_notice(
        &[
            "data::copy_then_follow",
            "data::follow_goes_on_after_a_kill",
            "data::positions_only_grow",
            "going::drain_needs_position_and_marker",
            "going::unseal_forgets",
        ],
        |world| {
            world.behave(|b| {
                b.lose_changes_of =
                    ["new-in-between", "while-dead", "moving", "last-write", "after-the-abort"]
                        .map(String::from)
                        .into();
            });
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_suite_notices_methods_that_fail_when_repeated() {
    for (method, case) in [
        ("prepare", "guards::prepare_and_back"),
        ("unprepare", "guards::prepare_and_back"),
        ("fence(source)", "guards::fence_closes_and_unfence_restores"),
        ("unfence(source)", "guards::fence_closes_and_unfence_restores"),
        ("mark", "guards::fence_admits_the_marker"),
        ("copy", "data::copy_then_follow"),
        ("seal(forward)", "going::seal_and_follow_back"),
        ("unseal", "going::unseal_forgets"),
        ("sweep", "going::sweep_finds_late_writes"),
        ("retire", "going::retire_leaves_nothing"),
    ] {
        must_notice(&[case], |world| {
            world.faults().fail(method, 2, Error::permanent(ErrorKind::Other, "repeated"));
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_suite_notices_a_call_that_never_ends() {
    must_notice(&["going::drain_stops_when_asked"], |world| {
        world.faults().hang("drain");
    })
    .await;
    must_notice(&["data::copy_then_follow", "going::retire_leaves_nothing"], |world| {
        world.faults().hang("follow(forward)");
    })
    .await;
}
