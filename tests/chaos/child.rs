//! Processes of a play, whose words are kept in files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, ExitStatus, Stdio};

use crate::wait_for;

/// A process that ends with its play.
pub(crate) struct Child {
    process: Process,
    log: PathBuf,
}

impl Child {
    /// Starts it; what it says is appended to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let process =
            command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { process, log: log.to_owned() }
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

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_for(&format!("end of the process that writes {}", self.log.display()), || self.has_ended())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
