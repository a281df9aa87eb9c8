//! A stop at the worst moment: an export has arrived, and that is being written down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use runspan::otlp::Signal;
use runspan::store::Store;
use tokio_util::sync::CancellationToken;

use super::{SUCCEEDED, start, succeed};
use crate::database::{Database, eventually};
use crate::hooked::{Hooked, Hooks};
use crate::points::{Samples, points};
use crate::receiver::{Receiver, Reply};

on_every_database!(what_is_being_written_down_at_a_stop_is_told_once);

/// Holds the write up, until someone has read what was there before it, or wants to come after it.
#[derive(Default)]
struct Gate {
    is_armed: AtomicBool,
    begun: CancellationToken,
    open: CancellationToken,
    done: CancellationToken,
}

impl Gate {
    async fn let_pass(&self) {
        if self.begun.is_cancelled() {
            self.open.cancel();
            self.done.cancelled().await;
        }
    }
}

#[async_trait]
impl Hooks for Gate {
    async fn before(&self, call: &'static str) {
        match call {
            "record" if self.is_armed.swap(false, Ordering::SeqCst) => {
                self.begun.cancel();
                self.open.cancelled().await;
            }
            // The write has the lease's row.
            "renew_lease" => self.let_pass().await,
            _ => {}
        }
    }

    async fn after(&self, call: &'static str) {
        match call {
            "record" if self.open.is_cancelled() => self.done.cancel(),
            "recorded" => self.let_pass().await,
            _ => {}
        }
    }
}

async fn what_is_being_written_down_at_a_stop_is_told_once(database: &Database) {
    let (inner, receiver) = (database.attach().await.0, Receiver::grpc().await);
    let gate = Arc::new(Gate::default());
    let store: Arc<dyn Store> = Arc::new(Hooked { store: Arc::clone(&inner), hooks: Arc::clone(&gate) });
    let told = |count: f64| move |receiver: &Receiver| Samples::of(receiver).last(SUCCEEDED) == Some(count);
    let mut session = database.connect().await;
    succeed(&mut session, "triage", 1..=1).await;
    let relay = start(&store, &receiver);
    receiver.wait_until("the first run", told(1.0)).await;
    let arms = Arc::clone(&gate);
    receiver.rule(move |request| {
        let is_it =
            |(series, _, value): &(String, u64, f64)| series == SUCCEEDED && (value - 2.0).abs() < 0.1;
        if request.signal == Signal::Metrics && points(request).iter().any(is_it) {
            arms.is_armed.store(true, Ordering::SeqCst);
        }
        Reply::Accept
    });
    succeed(&mut session, "triage", 2..=2).await;
    eventually("an export that is being written down", async || gate.begun.is_cancelled()).await;
    relay.stop().await.unwrap();
    assert!(told(2.0)(&receiver));

    // And nothing is missing from what the next one tells.
    receiver.rule(|_| Reply::Accept);
    let relay = start(&inner, &receiver);
    succeed(&mut session, "triage", 3..=3).await;
    receiver.wait_until("all runs", told(3.0)).await;
    relay.stop().await.unwrap();
}
