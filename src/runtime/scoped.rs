//! A future that keeps its `tracing` subscriber wherever it is polled or dropped.

use std::pin::Pin;
use std::task::{Context, Poll};

use tracing::{Dispatch, dispatcher};

/// A future that is polled and dropped with the subscriber that was current when it was created.
///
/// [`WithSubscriber`](tracing::instrument::WithSubscriber) covers polling only. A cancelled task is dropped outside of
/// its poll, and the registry of `tracing-subscriber` then looks up the parents of the closed spans in whichever
/// subscriber is current: it panics, or closes a span of another subscriber.
pub(super) struct Scoped<F> {
    work: Option<Pin<Box<F>>>,
    subscriber: Dispatch,
}

impl<F: Future> Scoped<F> {
    pub(super) fn new(work: F) -> Self {
        Self { work: Some(Box::pin(work)), subscriber: dispatcher::get_default(Dispatch::clone) }
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { work, subscriber } = &mut *self;
        let work = work.as_mut().expect("only drop takes it");
        dispatcher::with_default(subscriber, || work.as_mut().poll(context))
    }
}

impl<F> Drop for Scoped<F> {
    fn drop(&mut self) {
        dispatcher::with_default(&self.subscriber, || drop(self.work.take()));
    }
}
