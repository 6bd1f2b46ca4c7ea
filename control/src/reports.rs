//! What edges report over the broker, into the same function that `POST /edge/v1/receipts` ends in.
//!
//! Nobody proves anything here: the broker lets only the edges of a key speak with its id, so its
//! permissions are the proof (`deploy/nats.conf`). A report that gets lost is not asked for again;
//! the next one says the same, and newer.

use rules::head::Receipts;
use rules::limits::ADMIN_BODY_BYTES_MAX;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::authorize::Denied;
use crate::authorize::callers;
use crate::bus::nats::Report;
use crate::edges;
use crate::refusal::Refusal;
use crate::store::Store;

/// One after the other: the database takes one write at a time anyway, and the queue has a bound.
pub async fn run(store: Store, mut reports: mpsc::Receiver<Report>, stop: CancellationToken) {
    loop {
        let report = tokio::select! {
            () = stop.cancelled() => return,
            report = reports.recv() => match report {
                Some(report) => report,
                None => return,
            },
        };
        let answer = match take(&store, &report).await {
            Ok(()) => "204".to_owned(),
            Err(Denied::Failed(refusal @ (Refusal::Invalid(_) | Refusal::TooMany { .. }))) => {
                format!("422 {refusal}")
            }
            Err(Denied::Failed(refusal)) => {
                tracing::error!(
                    error = &refusal as &dyn std::error::Error,
                    "a report was not taken"
                );
                "500 control failed".to_owned()
            }
            Err(denied) => {
                tracing::warn!(edge_key = report.edge_key_id, %denied, "a report is refused");
                format!("401 {denied}")
            }
        };
        report.answer(answer).await;
    }
}

async fn take(store: &Store, report: &Report) -> Result<(), Denied> {
    if report.body.len() > ADMIN_BODY_BYTES_MAX {
        return Err(
            Refusal::invalid("", format!("the limit is {ADMIN_BODY_BYTES_MAX} bytes")).into()
        );
    }
    let receipts: Receipts = serde_json::from_slice(&report.body)
        .map_err(|error| Refusal::invalid("", error.to_string()))?;
    let mut tx = store.write().await?;
    let scope = callers::edge_by_broker(&mut tx, &report.edge_key_id).await?;
    edges::receive(&mut tx, &scope, &receipts).await?;
    tx.commit().await?;
    Ok(())
}
