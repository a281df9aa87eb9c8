//! The boundaries that a process comes to, and the one at which it dies.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use crate::hooked::Hooks;

/// The n-th time that something begins, or is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boundary {
    pub(crate) name: String,
    pub(crate) time: u32,
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.time)
    }
}

impl FromStr for Boundary {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, time) = text.rsplit_once('#').ok_or(())?;
        Ok(Self { name: name.to_owned(), time: time.parse().map_err(|_| ())? })
    }
}

/// Counts the boundaries that this process comes to, and ends it at one.
#[derive(Default)]
pub(crate) struct Fate {
    pub(crate) end: Option<Boundary>,
    reached: Mutex<BTreeMap<String, u32>>,
}

impl Fate {
    pub(crate) fn at(end: Option<Boundary>) -> Arc<Self> {
        Arc::new(Self { end, ..Self::default() })
    }

    /// Dies here, if this is the place: no destructor runs, no buffer is written.
    pub(crate) fn reach(&self, name: &str) {
        let mut reached = self.reached.lock().unwrap();
        let time = reached.entry(name.to_owned()).or_default();
        *time += 1;
        if self.end.as_ref().is_some_and(|end| end.name == name && end.time == *time) {
            std::process::abort();
        }
    }

    /// How often each was reached.
    pub(crate) fn reached(&self) -> BTreeMap<String, u32> {
        self.reached.lock().unwrap().clone()
    }
}

#[async_trait]
impl Hooks for Fate {
    async fn before(&self, call: &'static str) {
        self.reach(&format!("before {call}"));
    }

    async fn after(&self, call: &'static str) {
        self.reach(&format!("after {call}"));
    }
}
