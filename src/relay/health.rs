//! Health over HTTP: `/live` and `/ready`, for Kubernetes probes and for people.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::capture::utc;
use super::status::{Capture, RelayStatus, SenderState, Snapshot};
use crate::otlp::Signal;
use crate::store::{Store, StoreStatus};

/// A Kubernetes probe times out after a second by default: the answer has to come before.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);

#[derive(Clone)]
struct Observed {
    store: Arc<dyn Store>,
    status: RelayStatus,
}

/// Serves health on `listener` until `stop`.
///
/// - `/live`: 200 while the process answers.
/// - `/ready`: 200 while the database answers and can be used, whether this relay holds the lease or stands by; 503 otherwise.
///   The body has backlog, ages, senders, the last acknowledgement, and whether transitions reach the journal.
pub async fn serve(
    listener: TcpListener,
    store: Arc<dyn Store>,
    status: RelayStatus,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/live", get(|| async { Json(json!({ "live": true })) }))
        .route("/ready", get(ready))
        .with_state(Observed { store, status });
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn ready(State(observed): State<Observed>) -> (StatusCode, Json<Value>) {
    let snapshot = observed.status.snapshot();
    let status = tokio::time::timeout(PROBE_TIMEOUT, observed.store.status()).await;
    let problem = match (status, &snapshot.database_problem) {
        (Ok(Ok(status)), None) => return (StatusCode::OK, Json(describe(&snapshot, &status))),
        // It answers a read, and is of no use: read-only, or written to by a newer runspan.
        (Ok(Ok(_)) | Err(_), Some(problem)) => problem.clone(),
        (Ok(Err(error)), _) => error.to_string(),
        (Err(_), None) => "the database does not answer".to_owned(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "problem": problem })))
}

fn role(snapshot: &Snapshot) -> &'static str {
    if snapshot.is_disabled {
        return "disabled";
    }
    match (snapshot.lease_epoch, snapshot.stands_by) {
        (Some(_), _) => "relaying",
        (None, true) => "standby",
        (None, false) => "starting",
    }
}

/// Only the holder of the lease sends.
fn describe_sender(snapshot: &Snapshot, state: &SenderState) -> Value {
    if snapshot.lease_epoch.is_none() {
        return json!({ "state": if snapshot.stands_by { "standby" } else { "inactive" } });
    }
    match state {
        SenderState::Busy => json!({ "state": "busy" }),
        SenderState::Idle => json!({ "state": "idle" }),
        SenderState::Waiting(why) => json!({ "state": "waiting", "problem": why }),
        SenderState::Refused(why) => json!({ "state": "refused", "problem": why }),
    }
}

/// `live` is null while unknown. From half of its limit on, how full the journal is counts as a problem.
fn describe_capture(capture: Option<&Capture>, status: &StoreStatus) -> Value {
    let problems = capture.map_or(&[][..], |capture| &capture.problems).iter().map(ToString::to_string);
    let percent = status.journal_percent();
    let fill = (percent >= 50).then(|| format!("the journal is {percent} % full"));
    json!({
        "live": capture.map(Capture::is_live),
        "since": capture.and_then(|capture| capture.since).map(utc),
        "problems": problems.chain(fill).collect::<Vec<_>>(),
    })
}

fn describe(snapshot: &Snapshot, status: &StoreStatus) -> Value {
    let channels = snapshot.senders.iter().map(|(channel, state)| (channel.to_string(), state));
    let metrics = snapshot.metrics.iter().map(|state| (Signal::Metrics.to_string(), state));
    let senders: serde_json::Map<String, Value> =
        channels.chain(metrics).map(|(name, state)| (name, describe_sender(snapshot, state))).collect();
    let acknowledged = snapshot.acknowledged_at.and_then(|at| SystemTime::now().duration_since(at).ok());
    json!({
        "ready": true,
        "role": role(snapshot),
        "leaseEpoch": snapshot.lease_epoch,
        "lastAcknowledgementSecondsAgo": acknowledged.map(|ago| ago.as_secs_f64()),
        "deliveredItems": snapshot.delivered_items,
        "rejectedItems": snapshot.rejected_items,
        "senders": senders,
        "journal": describe_capture(snapshot.capture.as_ref(), status),
        "database": status,
    })
}
