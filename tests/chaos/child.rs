//! Processes of a play, whose words are kept in files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::time::Duration;

use runspan_test_support::end_to_end::wait_within;

/// How long a process may take to end: one may have much to send, on a machine that has much else to do.
const DEADLINE: Duration = Duration::from_mins(3);

/// A process that ends with its play.
pub(crate) struct Child {
    process: Process,
    log: PathBuf,
    /// How long the log was before.
    before: u64,
}

impl Child {
    /// Starts it; what it says is appended to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let before = file.metadata().unwrap().len();
        let process =
            command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { process, log: log.to_owned(), before }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.process.id());
        let _ = Command::new("sh").args(["-c", &kill]).status();
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// Whether it has said anything. Before that, what it is told may be its end.
    pub(crate) fn has_spoken(&self) -> bool {
        self.log.metadata().unwrap().len() > self.before
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_within(DEADLINE, &format!("end of the process that writes {}", self.log.display()), || {
            self.has_ended()
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
