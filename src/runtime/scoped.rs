//! Work that belongs to a subscriber, wherever it is polled and whoever drops it.

use std::pin::Pin;
use std::task::{Context, Poll};

use tracing::{Dispatch, dispatcher};

/// A future that is polled and also dropped in the subscriber that was current when it was made.
///
/// [`WithSubscriber`](tracing::instrument::WithSubscriber) only does the first. A task that is cancelled is dropped
/// outside of its poll, and the registry of `tracing-subscriber` then looks for the parent of each span that is
/// closed in whichever subscriber is current: it panics, or closes another's span.
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
        let work = work.as_mut().expect("only dropping takes it");
        dispatcher::with_default(subscriber, || work.as_mut().poll(context))
    }
}

impl<F> Drop for Scoped<F> {
    fn drop(&mut self) {
        dispatcher::with_default(&self.subscriber, || drop(self.work.take()));
    }
}
