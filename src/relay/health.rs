//! Health over HTTP: `/live` and `/ready`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::monitor::{Monitor, SenderState, Snapshot};
use crate::store::{Store, StoreStatus};

#[derive(Clone)]
struct Watched {
    store: Arc<dyn Store>,
    monitor: Monitor,
}

/// Serves health on `listener` until `stop`.
///
/// - `/live`: 200 while the process answers.
/// - `/ready`: 200 while the database answers, whether this relay holds the lease or stands by; 503 otherwise.
///   The body says backlog, ages, senders and the last acknowledgement.
pub async fn serve(
    listener: TcpListener,
    store: Arc<dyn Store>,
    monitor: Monitor,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/live", get(|| async { Json(json!({ "live": true })) }))
        .route("/ready", get(ready))
        .with_state(Watched { store, monitor });
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn ready(State(watched): State<Watched>) -> (StatusCode, Json<Value>) {
    let snapshot = watched.monitor.snapshot();
    match watched.store.status().await {
        Ok(status) => (StatusCode::OK, Json(describe(&snapshot, &status))),
        Err(error) => {
            let body = json!({ "ready": false, "problem": error.to_string() });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body))
        }
    }
}

fn describe(snapshot: &Snapshot, status: &StoreStatus) -> Value {
    let senders: serde_json::Map<String, Value> = snapshot
        .senders
        .iter()
        .map(|(channel, state)| {
            let state = match state {
                SenderState::Busy => json!({ "state": "busy" }),
                SenderState::Idle => json!({ "state": "idle" }),
                SenderState::Waiting(why) => json!({ "state": "waiting", "problem": why }),
                SenderState::Refused(why) => json!({ "state": "refused", "problem": why }),
            };
            (channel.to_string(), state)
        })
        .collect();
    let acknowledged = snapshot.acknowledged_at.and_then(|at| SystemTime::now().duration_since(at).ok());
    json!({
        "ready": true,
        "role": if snapshot.lease_epoch.is_some() { "relaying" } else { "standby" },
        "leaseEpoch": snapshot.lease_epoch,
        "lastAcknowledgementSecondsAgo": acknowledged.map(|ago| ago.as_secs_f64()),
        "deliveredItems": snapshot.delivered_items,
        "rejectedItems": snapshot.rejected_items,
        "senders": senders,
        "database": status,
    })
}
