//! What the code under test logs while a test of one thread runs.

use std::fmt;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Keeps each line of runspan's: its level and its message.
#[derive(Clone, Default)]
pub struct Logged(Arc<Mutex<Vec<String>>>);

impl Logged {
    /// Keeps the lines of this thread until the guard is dropped.
    pub fn start() -> (Self, DefaultGuard) {
        let logged = Self::default();
        let guard = crate::scoped::registry().with(logged.clone()).set_default();
        (logged, guard)
    }

    /// The lines that contain `text`.
    pub fn with(&self, text: &str) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        lines.iter().filter(|line| line.contains(text)).cloned().collect()
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 += &format!(" {value:?}");
        }
    }
}

impl<S: Subscriber> Layer<S> for Logged {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("runspan::") {
            let mut line = Line(event.metadata().level().as_str().to_lowercase());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
    }
}
