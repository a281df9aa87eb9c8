//! Notices that certificate files changed on disk: they are renewed while the process runs.

use std::{fs, path::PathBuf, time::SystemTime};

use crate::otlp::config::SignalConfig;

/// The files of a TLS connection, as they were when they were last read.
#[derive(Debug)]
pub(crate) struct WatchedFiles {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
}

/// What changes with the content of a file, and also if a link to it is pointed elsewhere.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    #[cfg(unix)]
    inode: u64,
}

impl WatchedFiles {
    /// The files that this configuration uses: none without TLS.
    pub(crate) fn of(config: &SignalConfig) -> Self {
        let client = config.tls.client.iter().flat_map(|client| [&client.certificate, &client.key]);
        let files = config.tls.ca.iter().chain(client).filter(|_| config.endpoint.is_tls());
        let paths: Vec<PathBuf> = files.map(|file| file.path.clone()).collect();
        let seen = stamps(&paths);
        Self { paths, seen }
    }

    /// Whether one of them changed since the last call.
    pub(crate) fn have_changed(&mut self) -> bool {
        let now = stamps(&self.paths);
        let have_changed = now != self.seen;
        self.seen = now;
        have_changed
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata))).collect()
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            #[cfg(unix)]
            inode: std::os::unix::fs::MetadataExt::ino(metadata),
        }
    }
}
