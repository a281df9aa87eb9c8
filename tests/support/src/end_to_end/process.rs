//! Child processes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::wait_for;

/// The program under test, with nothing of this process's environment.
pub fn runspan(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.env_clear().args(arguments);
    command
}

/// Cargo builds the program beside the directory of the tests' own binaries.
fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).expect("target/debug/deps/").join("runspan")
}

/// A process that ends with its test.
pub struct Process {
    child: Child,
    name: String,
    output: TempDir,
}

/// How a process has ended.
#[derive(Debug)]
pub struct Ended {
    /// `None`: by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let output = tempfile::tempdir().unwrap();
        let file = |name| File::create(output.path().join(name)).unwrap();
        let child = command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr")).spawn();
        let name = command.get_program().display().to_string();
        let child = child.unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { child, name, output }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal: `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        // The shell's own, so that it is there wherever a shell is.
        let status = Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.child.id())]).status();
        assert!(status.unwrap().success());
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.output.path().join("stderr")).unwrap()
    }

    pub fn stdout(&self) -> String {
        fs::read_to_string(self.output.path().join("stdout")).unwrap()
    }

    /// Waits until it has said this on stderr.
    pub fn wait_to_say(&mut self, words: &str) {
        let what = format!("{words:?} from {}", self.name);
        wait_for(&what, || {
            let running = self.is_running();
            let said = self.stderr();
            assert!(running || said.contains(words), "ended without saying {words:?}: {said}");
            said.contains(words).then_some(())
        });
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Ended {
        let what = format!("end of {}", self.name);
        let status = wait_for(&what, || self.child.try_wait().unwrap());
        Ended { code: status.code(), stdout: self.stdout(), stderr: self.stderr() }
    }

    /// SIGTERM, and its end.
    pub fn terminate(self) -> Ended {
        self.signal("TERM");
        self.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let said = self.stderr();
            let tail = said.len() - said.floor_char_boundary(said.len().saturating_sub(4_000));
            eprintln!("--- {} said:\n{}", self.name, &said[said.len() - tail..]);
        }
    }
}
