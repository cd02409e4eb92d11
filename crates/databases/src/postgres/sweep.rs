//! After a switch: writes that reached the old owner behind its fence. The slot of the flow that ended stays there and is read here,
//! and what no follower made is a late write. A new row is copied where the new owner has none of its key; everything else touches
//! what the new owner may have touched, and is for a person.

use super::connect::Session;
use super::lsn::Lsn;
use super::part::PostgresPart;
use super::pgoutput::{Change, Value, local_changes};
use super::quote;
use rehome_part::{Error, ErrorKind, Finding, Flow, Result, Severity, Side};

/// Changes read at once; more are read the next time.
const MOST: i32 = 10_000;

fn fact(flow: Flow) -> String {
    format!("late:{}", super::own::word(flow))
}

pub(super) async fn sweep(part: &PostgresPart, flow: Flow, since: Lsn) -> Result<Vec<Finding>> {
    let stream = part.stream(flow);
    let from = part.sessions.on(flow.from()).await?;
    let mut findings: Vec<Finding> = match part.facts.get(&fact(flow)) {
        Some(text) => serde_json::from_str(&text).map_err(|error| {
            Error::permanent(ErrorKind::Corrupt, format!("the late writes found before: {error}"))
        })?,
        None => Vec::new(),
    };
    match stream.slot(&from).await? {
        Some(slot) if !slot.is_lost && slot.reader.is_none() => {}
        // Read by its follower still, or gone with the log it kept: then nothing can be told.
        _ => return Ok(findings),
    }
    let statement = "
        SELECT lsn::text, data FROM pg_logical_slot_peek_binary_changes($1, NULL, $2, 'proto_version', '1', 'publication_names', $3)";
    let name = part.names.stream(flow);
    let rows = from.rows("read late writes", statement, &[&name, &MOST, &part.names.publication]).await?;
    let Some(last) = rows.last() else { return Ok(findings) };
    let end: Lsn = last.get::<_, String>(0).parse()?;
    let late = rows.iter().map(|row| row.get::<_, Vec<u8>>(1));
    for change in local_changes(late, since)? {
        // Known before it is done: after a kill in between it is looked at again, and is there already.
        if let Some(finding) = judge(part, flow, &from, &change).await?
            && !findings.contains(&finding)
        {
            findings.push(finding);
        }
    }
    if end > since {
        let text = serde_json::to_string(&findings)
            .map_err(|error| Error::permanent(ErrorKind::Other, format!("remember late writes: {error}")))?;
        part.facts.set(&fact(flow), &text)?;
        let advance = "SELECT end_lsn::text FROM pg_replication_slot_advance($1, $2::text::pg_lsn)";
        from.rows("move on", advance, &[&name, &end.to_string()]).await?;
    }
    Ok(findings)
}

/// The sweep of a flow is history when the data flows that way again.
pub(super) fn forget(part: &PostgresPart, flow: Flow) -> Result<()> {
    part.facts.forget(&fact(flow))
}

async fn judge(part: &PostgresPart, flow: Flow, from: &Session, change: &Change) -> Result<Option<Finding>> {
    let table = format!("{}.{}", change.relation.schema, change.relation.table);
    let quoted = format!("{}.{}", quote::name(&change.relation.schema), quote::name(&change.relation.table));
    if change.is_truncate {
        return Ok(Some(conflict(
            flow.from(),
            format!("{table} was truncated on the old owner after its fence"),
        )));
    }
    let keys: Vec<usize> =
        (0..change.relation.columns.len()).filter(|place| change.relation.columns[*place].1).collect();
    let of = if change.after.is_empty() { &change.before } else { &change.after };
    let named: Vec<String> = keys
        .iter()
        .map(|place| format!("{} {}", change.relation.columns[*place].0, shown(of.get(*place))))
        .collect();
    let row = format!("{table}: the row with {}", named.join(", "));
    let is_insert = change.before.is_empty() && !change.after.is_empty();
    let to = part.sessions.on(flow.to()).await?;
    let condition: Vec<String> = keys
        .iter()
        .enumerate()
        .map(|(number, place)| {
            format!("{}::text = ${}", quote::name(&change.relation.columns[*place].0), number + 1)
        })
        .collect();
    let values: Option<Vec<String>> = keys
        .iter()
        .map(|place| match of.get(*place) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        })
        .collect();
    let Some(values) = values.filter(|values| !values.is_empty()) else {
        return Ok(Some(conflict(
            flow.from(),
            format!("{row} was written on the old owner after its fence"),
        )));
    };
    let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
        values.iter().map(|value| value as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
    let select = format!("SELECT md5(t::text), t::text FROM {quoted} t WHERE {}", condition.join(" AND "));
    let doing = format!("look at a late write of {table}");
    let (there, here) =
        tokio::try_join!(to.rows(&doing, &select, &parameters), from.rows(&doing, &select, &parameters))?;
    let same = |one: &[tokio_postgres::Row], other: &[tokio_postgres::Row]| {
        one.first().map(|row| row.get::<_, String>(0)) == other.first().map(|row| row.get::<_, String>(0))
    };
    if same(&there, &here) {
        return Ok(None);
    }
    if !is_insert || !there.is_empty() {
        let text =
            format!("{row} was written on the old owner after its fence, and is not the same on the new one");
        return Ok(Some(conflict(flow.from(), text)));
    }
    insert(&to, &quoted, change).await?;
    tracing::warn!(table, "a late write of the old owner was copied to the new one");
    Ok(None)
}

/// Puts the row where none of its key is; one that came meanwhile stays.
async fn insert(to: &Session, quoted: &str, change: &Change) -> Result<()> {
    let names = quote::names(change.relation.columns.iter().map(|(name, _)| name.as_str()));
    let values: Vec<String> = change
        .after
        .iter()
        .map(|value| match value {
            Value::Text(text) => quote::literal(text),
            Value::Null | Value::Same => "NULL".to_owned(),
        })
        .collect();
    // Literals without a type take that of their column.
    let statement = format!(
        "INSERT INTO {quoted} ({names}) OVERRIDING SYSTEM VALUE VALUES ({}) ON CONFLICT DO NOTHING",
        values.join(", ")
    );
    to.run("copy a late write", &statement).await
}

fn shown(value: Option<&Value>) -> String {
    match value {
        Some(Value::Text(text)) => text.chars().take(100).collect(),
        _ => "NULL".into(),
    }
}

fn conflict(side: Side, text: String) -> Finding {
    Finding {
        id: "late-write".into(),
        severity: Severity::Warning,
        side: Some(side),
        text,
        remedy: Some(
            "decide by hand which of the two is right, and find out who wrote past the fence".into(),
        ),
    }
}
