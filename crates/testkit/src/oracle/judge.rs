//! Compares what clients were told with what is there. Pure: the same evidence gives the same verdict.

use super::evidence::Evidence;
use super::{Breach, Verdict, Violation, sides};
use crate::cloud::Mutation;
use crate::load::{LoadLog, Operation, Outcome, Write};
use crate::shop::{ORDERS, Order, RECEIPTS};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// `logs`: every load that ran on this world. `journals`: every cloud's name and mutations since the loads began, and before if
/// wished. `owners`: names of the clouds that owned the application, in order of epochs.
pub fn judge(
    logs: &[&LoadLog],
    evidence: &Evidence,
    journals: &[(String, Vec<Mutation>)],
    owners: &[String],
) -> Verdict {
    let mut case = Case::new(logs, evidence);
    for write in logs.iter().flat_map(|log| &log.writes) {
        case.count(write);
        if write.operation == Operation::Create {
            case.judge_receipts(write);
        }
    }
    case.judge_orders(logs);
    case.judge_strangers();
    case.judge_objects();
    case.judge_shown(logs);
    case.verdict.violations.extend(sides::overlaps(journals, owners));
    case.verdict.writes_lost = case.lost.len() as u64;
    case.verdict.writes_doubled = case.doubled.len() as u64;
    case.verdict.ok = case.verdict.violations.is_empty();
    case.verdict
}

type WriteName<'a> = (&'a str, u64);

struct Case<'a> {
    evidence: &'a Evidence,
    /// Order ids by the write their receipt names.
    receipts: HashMap<WriteName<'a>, Vec<&'a str>>,
    orders: HashMap<&'a str, &'a Order>,
    creates: HashMap<WriteName<'a>, &'a Write>,
    lost: BTreeSet<WriteName<'a>>,
    doubled: BTreeSet<WriteName<'a>>,
    verdict: Verdict,
}

impl<'a> Case<'a> {
    fn new(logs: &[&'a LoadLog], evidence: &'a Evidence) -> Self {
        let mut receipts: HashMap<WriteName<'a>, Vec<&'a str>> = HashMap::new();
        for (write, order) in evidence.receipts.iter().filter_map(|receipt| parse_receipt(receipt)) {
            receipts.entry(write).or_default().push(order);
        }
        let creates =
            logs.iter().flat_map(|log| &log.writes).filter(|write| write.operation == Operation::Create);
        Self {
            evidence,
            receipts,
            orders: evidence.orders.iter().map(|order| (order.id.as_str(), order)).collect(),
            creates: creates.map(|write| (name(write), write)).collect(),
            lost: BTreeSet::new(),
            doubled: BTreeSet::new(),
            verdict: Verdict::default(),
        }
    }

    fn find(&mut self, breach: Breach, what: impl Into<String>, text: impl Into<String>) {
        self.verdict.violations.push(Violation { breach, what: what.into(), text: text.into() });
    }

    fn find_lost(&mut self, write: &'a Write, text: impl Into<String>) {
        self.lost.insert(name(write));
        self.find(Breach::Lost, told(write), text);
    }

    fn find_doubled(&mut self, write: &'a Write, text: impl Into<String>) {
        self.doubled.insert(name(write));
        self.find(Breach::Doubled, told(write), text);
    }

    fn count(&mut self, write: &Write) {
        match write.outcome {
            Outcome::Acknowledged { .. } => self.verdict.writes_acknowledged += 1,
            Outcome::Refused { .. } => self.verdict.writes_refused += 1,
            Outcome::Unknown { .. } => self.verdict.writes_unknown += 1,
        }
        // Writers only ever touch orders that they were told they have.
        if let (Outcome::Refused { status: 404, why }, Some(order)) = (&write.outcome, &write.order) {
            self.find(
                Breach::ReadYourWrites,
                told(write),
                format!("its acknowledged order {order} was not found: {why}"),
            );
        }
    }

    fn judge_receipts(&mut self, write: &'a Write) {
        let receipts = self.receipts.get(&name(write)).cloned().unwrap_or_default();
        if receipts.len() > 1 {
            return self
                .find_doubled(write, format!("{} receipts: orders {}", receipts.len(), receipts.join(", ")));
        }
        match (&write.outcome, receipts.first()) {
            (Outcome::Acknowledged { .. }, None) => {
                self.find_lost(write, "acknowledged, and there is no receipt")
            }
            (Outcome::Acknowledged { .. }, Some(order)) if write.order.as_deref() != Some(order) => {
                self.find(Breach::Foreign, told(write), format!("the receipt is for order {order}"));
            }
            (Outcome::Refused { .. }, Some(order)) => {
                self.find(
                    Breach::RefusedButDone,
                    told(write),
                    format!("refused, and there is a receipt for order {order}"),
                );
            }
            _ => {}
        }
    }

    /// The writes of every order whose creation was acknowledged, in the order in which its client made them.
    fn judge_orders(&mut self, logs: &[&'a LoadLog]) {
        let mut by_order: BTreeMap<&'a str, Vec<&'a Write>> = BTreeMap::new();
        for write in logs.iter().flat_map(|log| &log.writes) {
            if let Some(order) = &write.order {
                by_order.entry(order).or_default().push(write);
            }
        }
        for (id, mut writes) in by_order {
            writes.sort_by_key(|write| write.number);
            self.judge_order(id, &writes);
        }
    }

    fn judge_order(&mut self, id: &'a str, writes: &[&'a Write]) {
        let done = |write: &&&Write| matches!(write.outcome, Outcome::Acknowledged { .. });
        let maybe_deleted = writes.iter().any(|write| {
            write.operation == Operation::Delete && matches!(write.outcome, Outcome::Unknown { .. })
        });
        let deletion = writes.iter().filter(done).find(|write| write.operation == Operation::Delete);
        let order = self.orders.get(id).copied();
        if let Some(deletion) = deletion {
            if order.is_some() {
                self.find_lost(deletion, format!("acknowledged, and order {id} is there"));
            }
            return;
        }
        let Some(order) = order else {
            if !maybe_deleted {
                // Everything acknowledged about this order went with it.
                for write in writes.iter().filter(done) {
                    self.find_lost(write, format!("acknowledged, and order {id} is not there"));
                }
            }
            return;
        };
        let mut newest = 0;
        for write in writes {
            self.judge_update(order, write);
            let is_delete = write.operation == Operation::Delete;
            if done(&write) && !is_delete {
                newest = write.number;
            }
        }
        let known: BTreeSet<u64> = writes.iter().map(|write| write.number).collect();
        for number in order.history.iter().filter(|number| !known.contains(number)) {
            self.find(Breach::Foreign, format!("order {id}"), format!("update {number} was made by nobody"));
        }
        if order.version < newest {
            let write = writes.iter().find(|write| write.number == newest);
            if let Some(write) = write.filter(|write| !self.lost.contains(&name(write))) {
                self.find_lost(
                    write,
                    format!("acknowledged, and order {id} is at version {}", order.version),
                );
            }
        }
    }

    fn judge_update(&mut self, order: &Order, write: &'a Write) {
        if write.operation != Operation::Update {
            return;
        }
        let times = order.history.iter().filter(|number| **number == write.number).count();
        match (&write.outcome, times) {
            (_, 2..) => self.find_doubled(write, format!("applied {times} times")),
            (Outcome::Acknowledged { .. }, 0) => {
                self.find_lost(write, "acknowledged, and not in the order's history")
            }
            (Outcome::Refused { .. }, 1) => {
                self.find(Breach::RefusedButDone, told(write), "refused, and in the history")
            }
            _ => {}
        }
    }

    /// Orders and receipts that no acknowledged write explains.
    fn judge_strangers(&mut self) {
        let mut of_unknown: HashMap<WriteName<'a>, u32> = HashMap::new();
        let evidence = self.evidence;
        for order in &evidence.orders {
            let write = self.creates.get(&(order.client.as_str(), order.number)).copied();
            match write.map(|write| (write, &write.outcome)) {
                Some((write, Outcome::Acknowledged { .. })) if write.order.as_deref() == Some(&order.id) => {}
                Some((write, Outcome::Acknowledged { .. })) => {
                    self.find_doubled(write, format!("made order {} too", order.id));
                }
                Some((write, Outcome::Unknown { .. })) => {
                    let times = of_unknown.entry(name(write)).or_default();
                    *times += 1;
                    if *times == 2 {
                        self.find_doubled(write, format!("made two orders, {} is one", order.id));
                    }
                }
                Some((write, Outcome::Refused { .. })) => {
                    self.find(
                        Breach::RefusedButDone,
                        told(write),
                        format!("refused, and made order {}", order.id),
                    );
                }
                None => {
                    self.find(Breach::Foreign, format!("{ORDERS}{}.json", order.id), "nobody made this order")
                }
            }
        }
        for receipt in &evidence.receipts {
            let known = parse_receipt(receipt).is_some_and(|(write, _)| self.creates.contains_key(&write));
            if !known {
                self.find(
                    Breach::Foreign,
                    format!("{RECEIPTS}{receipt}"),
                    "nobody was promised this receipt",
                );
            }
        }
    }

    fn judge_objects(&mut self) {
        let evidence = self.evidence;
        self.verdict.objects_compared = evidence.media_compared;
        for (key, why) in &evidence.damaged_orders {
            self.find(Breach::Changed, key, why);
        }
        for media in &evidence.media_wrong {
            self.find(Breach::Changed, &media.key, &media.wrong);
        }
        for key in evidence.media_unknown.iter().chain(&evidence.other_keys) {
            self.find(Breach::Foreign, key, "nobody wrote this object");
        }
    }

    fn judge_shown(&mut self, logs: &[&LoadLog]) {
        for log in logs {
            self.verdict.read_your_writes_violations += log.counts.read_your_writes_violations;
            for text in &log.stale {
                self.find(Breach::ReadYourWrites, "shown to a client", text);
            }
            for text in &log.wrong {
                self.find(Breach::Shown, "shown to a client", text);
            }
        }
    }
}

fn name(write: &Write) -> (&str, u64) {
    (&write.client, write.number)
}

fn told(write: &Write) -> String {
    let what = match write.operation {
        Operation::Create => "create",
        Operation::Update => "update",
        Operation::Delete => "delete",
    };
    let order = write.order.as_deref().unwrap_or("unknown");
    format!("write {} of {} ({what} order {order})", write.number, write.client)
}

/// `{client}/{number}-{order}`.
fn parse_receipt(receipt: &str) -> Option<((&str, u64), &str)> {
    let (client, rest) = receipt.split_once('/')?;
    let (number, order) = rest.split_once('-')?;
    Some(((client, number.parse().ok()?), order))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::{Operation as Change, Principal};
    use crate::oracle::Media;

    fn write(number: u64, operation: Operation, order: Option<&str>, outcome: Outcome) -> Write {
        let order = order.map(String::from);
        Write { client: "c".into(), number, operation, order, started_nanos: 0, ended_nanos: 1, outcome }
    }

    fn done() -> Outcome {
        Outcome::Acknowledged { cloud: "A".into() }
    }

    fn unknown() -> Outcome {
        Outcome::Unknown { why: "no answer".into() }
    }

    fn refused() -> Outcome {
        Outcome::Refused { status: 503, why: "held too long".into() }
    }

    fn order(id: &str, number: u64, history: &[u64]) -> Order {
        let version = history.last().copied().unwrap_or(number);
        Order { id: id.into(), client: "c".into(), number, amount: 1, version, history: history.to_vec() }
    }

    /// Two orders, one of them changed, a third removed, and an unknown creation that left nothing.
    fn honest() -> (LoadLog, Evidence) {
        let writes = vec![
            write(1, Operation::Create, Some("o1"), done()),
            write(2, Operation::Create, Some("o2"), done()),
            write(3, Operation::Update, Some("o2"), done()),
            write(4, Operation::Create, Some("o3"), done()),
            write(5, Operation::Delete, Some("o3"), done()),
            write(6, Operation::Create, None, unknown()),
            write(7, Operation::Create, None, refused()),
            write(8, Operation::Update, Some("o2"), unknown()),
        ];
        let evidence = Evidence {
            orders: vec![order("o1", 1, &[]), order("o2", 2, &[3])],
            receipts: vec!["c/1-o1".into(), "c/2-o2".into(), "c/4-o3".into()],
            ..Evidence::default()
        };
        (LoadLog { writes, ..LoadLog::default() }, evidence)
    }

    fn verdict(change: impl FnOnce(&mut LoadLog, &mut Evidence)) -> Verdict {
        let (mut log, mut evidence) = honest();
        change(&mut log, &mut evidence);
        judge(&[&log], &evidence, &[], &[])
    }

    #[track_caller]
    fn blames(verdict: &Verdict, breach: Breach, what: &str) {
        assert!(!verdict.ok);
        let found =
            verdict.violations.iter().any(|found| found.breach == breach && found.what.contains(what));
        assert!(found, "{breach:?} of {what} in {:#?}", verdict.violations);
    }

    #[test]
    fn an_honest_world_passes() {
        let verdict = verdict(|_, _| {});
        assert!(verdict.ok, "{:#?}", verdict.violations);
        let counts = (verdict.writes_acknowledged, verdict.writes_unknown, verdict.writes_refused);
        assert_eq!(counts, (5, 2, 1));
    }

    #[test]
    fn unknown_writes_may_have_happened_once() {
        let verdict = verdict(|_, evidence| {
            evidence.receipts.push("c/6-o6".into());
            evidence.orders.push(order("o6", 6, &[]));
            evidence.orders[1] = order("o2", 2, &[3, 8]);
        });
        assert!(verdict.ok, "{:#?}", verdict.violations);
    }

    #[test]
    fn a_lost_receipt_order_update_or_removal() {
        let lost = verdict(|_, evidence| drop(evidence.receipts.remove(0)));
        blames(&lost, Breach::Lost, "write 1 of c");
        assert_eq!(lost.writes_lost, 1);
        let lost = verdict(|_, evidence| drop(evidence.orders.remove(1)));
        blames(&lost, Breach::Lost, "write 2 of c");
        assert_eq!(lost.writes_lost, 2, "creation and change");
        let lost = verdict(|_, evidence| evidence.orders[1] = order("o2", 2, &[]));
        blames(&lost, Breach::Lost, "write 3 of c");
        assert_eq!(lost.writes_lost, 1);
        let lost = verdict(|_, evidence| evidence.orders.push(order("o3", 4, &[])));
        blames(&lost, Breach::Lost, "write 5 of c");
        let lost = verdict(|_, evidence| evidence.orders[1].version = 2);
        blames(&lost, Breach::Lost, "write 3 of c");
    }

    #[test]
    fn a_doubled_creation_or_update() {
        let doubled = verdict(|_, evidence| evidence.receipts.push("c/1-o9".into()));
        blames(&doubled, Breach::Doubled, "write 1 of c");
        assert_eq!(doubled.writes_doubled, 1);
        let doubled = verdict(|_, evidence| evidence.orders.push(order("o9", 1, &[])));
        blames(&doubled, Breach::Doubled, "write 1 of c");
        let doubled = verdict(|_, evidence| evidence.orders[1] = order("o2", 2, &[3, 3]));
        blames(&doubled, Breach::Doubled, "write 3 of c");
        let doubled = verdict(|_, evidence| evidence.receipts.extend(["c/6-x".into(), "c/6-y".into()]));
        blames(&doubled, Breach::Doubled, "write 6 of c");
        let doubled = verdict(|_, evidence| evidence.orders.extend([order("x", 6, &[]), order("y", 6, &[])]));
        blames(&doubled, Breach::Doubled, "write 6 of c");
    }

    #[test]
    fn refused_writes_and_strangers() {
        let done = verdict(|_, evidence| evidence.receipts.push("c/7-o7".into()));
        blames(&done, Breach::RefusedButDone, "write 7 of c");
        let done = verdict(|_, evidence| evidence.orders.push(order("o7", 7, &[])));
        blames(&done, Breach::RefusedButDone, "write 7 of c");
        blames(&verdict(|_, evidence| evidence.receipts.push("c/99-o".into())), Breach::Foreign, "c/99-o");
        blames(
            &verdict(|_, evidence| evidence.receipts.push("nonsense".into())),
            Breach::Foreign,
            "nonsense",
        );
        blames(
            &verdict(|_, evidence| evidence.orders.push(order("o", 99, &[]))),
            Breach::Foreign,
            "orders/o.json",
        );
        blames(
            &verdict(|_, evidence| evidence.orders[0] = order("o1", 1, &[77])),
            Breach::Foreign,
            "order o1",
        );
        blames(&verdict(|_, evidence| evidence.other_keys.push("x".into())), Breach::Foreign, "x");
        blames(
            &verdict(|_, evidence| evidence.media_unknown.push("media/x".into())),
            Breach::Foreign,
            "media/x",
        );
    }

    #[test]
    fn changed_objects_and_stale_reads() {
        let changed = verdict(|_, evidence| {
            evidence.media_wrong.push(Media { key: "media/a".into(), wrong: "missing".into() })
        });
        blames(&changed, Breach::Changed, "media/a");
        let damaged =
            verdict(|_, evidence| evidence.damaged_orders.push(("orders/z.json".into(), "half".into())));
        blames(&damaged, Breach::Changed, "orders/z.json");
        let stale = verdict(|log, _| {
            log.counts.read_your_writes_violations = 1;
            log.stale.push("c saw nothing".into());
        });
        blames(&stale, Breach::ReadYourWrites, "shown");
        assert_eq!(stale.read_your_writes_violations, 1);
        blames(&verdict(|log, _| log.wrong.push("a picture".into())), Breach::Shown, "shown");
        let gone = verdict(|log, _| {
            let outcome = Outcome::Refused { status: 404, why: "no such order".into() };
            log.writes.push(write(9, Operation::Update, Some("o1"), outcome));
        });
        blames(&gone, Breach::ReadYourWrites, "write 9 of c");
    }

    fn journal(cloud: &str, by: Principal, nanos: &[u64]) -> (String, Vec<Mutation>) {
        let mutation = |&nanos: &u64| Mutation {
            position: nanos,
            nanos,
            principal: by,
            operation: Change::Put,
            bucket: "shop".into(),
            key: format!("orders/{cloud}{nanos}"),
        };
        (cloud.into(), nanos.iter().map(mutation).collect())
    }

    fn sides(journals: &[(String, Vec<Mutation>)], owners: &[&str]) -> Verdict {
        let (log, evidence) = honest();
        let owners: Vec<String> = owners.iter().map(ToString::to_string).collect();
        judge(&[&log], &evidence, journals, &owners)
    }

    #[test]
    fn one_writable_side_at_a_time() {
        let app = Principal::Application;
        let (a, b) = (journal("A", app, &[1, 2, 3]), journal("B", app, &[4, 5]));
        assert!(sides(&[a.clone(), b.clone()], &["A", "B"]).ok);
        assert!(sides(std::slice::from_ref(&a), &["A", "B"]).ok);
        assert!(sides(&[journal("A", app, &[1, 9]), b.clone()], &["A", "B", "A"]).ok, "there and back");
        blames(
            &sides(&[journal("A", app, &[1, 4]), journal("B", app, &[3])], &["A", "B"]),
            Breach::TwoSides,
            "A4",
        );
        blames(&sides(&[a.clone(), b], &["A"]), Breach::TwoSides, "B4");
        let copier = journal("B", Principal::Migration, &[2]);
        let mut probe = journal("B", app, &[2]);
        probe.1[0].key = ".rehome/probe".into();
        assert!(sides(&[a.clone(), probe], &["A"]).ok, "a probe is not the shop");
        assert!(sides(&[a, copier], &["A"]).ok, "the migration writes where it likes");
    }
}
