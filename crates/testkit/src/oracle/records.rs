//! Reads orders and receipts where the owner keeps them in PostgreSQL.

use super::Evidence;
use crate::cloud::{Mutation, Operation, Principal};
use crate::shop::{DatabaseConfig, RECEIPTS, order_of};
use tokio_postgres::NoTls;

/// Adds what the database holds to the evidence, and to each cloud's journal the moments at which its shop wrote receipts.
pub async fn gather_records(
    owner: &DatabaseConfig,
    evidence: &mut Evidence,
    journals: &mut [(String, Vec<Mutation>)],
) -> Result<(), String> {
    let said = |error: tokio_postgres::Error| error.to_string();
    let mut config = tokio_postgres::Config::new();
    config.host(owner.address.ip().to_string()).port(owner.address.port()).dbname(&owner.database);
    config.user(&owner.user).password(&owner.password);
    let (client, connection) = config.connect(NoTls).await.map_err(said)?;
    let running = tokio::spawn(connection);
    let orders = "SELECT id, client, number, amount, version, history FROM public.orders";
    let rows = client.query(orders, &[]).await.map_err(said)?;
    evidence.orders.extend(rows.iter().map(order_of));
    let receipts =
        "SELECT client || '/' || number || '-' || order_id, cloud, nanos FROM public.receipts ORDER BY id";
    for row in client.query(receipts, &[]).await.map_err(said)? {
        let (receipt, cloud, nanos): (String, String, i64) = (row.get(0), row.get(1), row.get(2));
        if let Some((_, journal)) = journals.iter_mut().find(|(name, _)| *name == cloud) {
            journal.push(Mutation {
                position: 0,
                nanos: nanos.cast_unsigned(),
                principal: Principal::Application,
                operation: Operation::Put,
                bucket: owner.database.clone(),
                key: format!("{RECEIPTS}{receipt}"),
            });
        }
        evidence.receipts.push(receipt);
    }
    running.abort();
    Ok(())
}
