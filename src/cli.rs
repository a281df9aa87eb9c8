//! The command line: `attach`, `detach`, `relay`, `outbox`, `set-aside`, `stuck`, `new-identity`, `schema`, `demo`.

mod attach;
mod demo;
mod new_identity;
mod outbox;
mod purge;
mod relay;
mod schema;
mod set_aside;
mod stuck;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::error::{ContextKind, ErrorKind};
use clap::{Args, Parser, Subcommand};
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use tokio_util::sync::CancellationToken;

use runspan::DatabaseUrl;
use runspan::relay::RelayError;
use runspan::store::{self, Selection, Store, StoreError};
use runspan::telemetry::log_filter;

/// The exit codes of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// The command failed.
    Failed = 1,
    /// The command line or a variable is wrong (clap uses the same).
    Usage = 2,
    /// `relay --until-idle`: only undeliverable requests are left.
    Undeliverable = 3,
    /// `relay --until-idle`: the database is down.
    DatabaseAway = 4,
    /// `stuck --exit-code`: a run is stuck.
    Stuck = 5,
    /// Stopped by a signal before its end, as shells count SIGINT.
    Interrupted = 130,
}

/// One line for the user, and the exit code.
struct Failure {
    exit: Exit,
    line: String,
    /// Whether the database failed: then the line begins with its URL.
    of_database: bool,
}

impl Failure {
    fn new(exit: Exit, line: impl ToString) -> Self {
        Self { exit, line: line.to_string(), of_database: false }
    }

    fn usage(line: impl ToString) -> Self {
        Self::new(Exit::Usage, line)
    }

    fn failed(line: impl ToString) -> Self {
        Self::new(Exit::Failed, line)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let of_database = matches!(error, StoreError::Database(_) | StoreError::RightsMissing(_));
        Self { of_database, ..Self::failed(error) }
    }
}

impl From<RelayError> for Failure {
    fn from(error: RelayError) -> Self {
        match error {
            RelayError::Config(_) | RelayError::Client(_) => Self::usage(error),
            RelayError::Store(error) => error.into(),
            _ => Self::failed(error),
        }
    }
}

const ABOUT: &str = "\
Every durable workflow run as one OpenTelemetry span, from queue to terminal state

  runspan demo       # see it work, in seconds: needs nothing

Three commands convert the runs of a table workflow_runs to spans:

  export DATABASE_URL=postgres://user@host/database
  runspan attach     # triggers journal every transition, in the writer's own transaction
  OTEL_SERVICE_NAME=app OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 runspan relay";

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed
    2  wrong command line or variable
    3  only undeliverable requests are left (relay --until-idle)
    4  the database is down (relay --until-idle)
    5  stuck runs were found (stuck --exit-code)
  130  stopped by a signal before the end (demo, relay --until-idle)";

#[derive(Parser)]
#[command(
    name = "runspan",
    version,
    about = "Every durable workflow run as one OpenTelemetry span, from queue to terminal state",
    long_about = ABOUT,
    after_long_help = EXIT_CODES,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

macro_rules! commands {
    ($($name:ident($args:path),)*) => {
        #[derive(Subcommand)]
        enum Command {
            $($name($args),)*
        }

        impl Command {
            /// The command's database, if one is given.
            fn database(&self) -> Option<DatabaseUrl> {
                match self {
                    $(Self::$name(args) => args.database_url(),)*
                }
            }

            async fn run(self) -> Result<(), Failure> {
                match self {
                    $(Self::$name(args) => args.run().await,)*
                }
            }
        }
    };
}

// A line per command. Its arguments, help and `run` are in its file.
commands! {
    Demo(demo::DemoArgs),
    Attach(attach::AttachArgs),
    Detach(attach::DetachArgs),
    Relay(relay::RelayArgs),
    Outbox(outbox::OutboxArgs),
    SetAside(set_aside::SetAsideArgs),
    Stuck(stuck::StuckArgs),
    NewIdentity(new_identity::NewIdentityArgs),
    Schema(schema::SchemaArgs),
}

/// Which of the things that a command lists.
#[derive(Args)]
#[group(required = true)]
struct Chosen {
    /// The ids
    ids: Vec<i64>,
    /// All of them
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

impl Chosen {
    fn selection(mut self) -> Selection {
        if self.all {
            return Selection::All;
        }
        self.ids.sort_unstable();
        self.ids.dedup();
        Selection::Ids(self.ids)
    }
}

/// The database option of most commands.
#[derive(Args)]
struct Database {
    /// The application's database: `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, percent-encoded (`@` as `%40`) or
    /// with the password in PGPASSWORD or PGPASSFILE, or `sqlite:PATH`
    // A string, parsed later: clap would repeat an invalid value with its password.
    #[arg(long, global = true, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
}

impl Database {
    fn url(&self) -> Result<DatabaseUrl, Failure> {
        self.database_url
            .as_deref()
            .filter(|url| !url.trim().is_empty())
            .ok_or_else(|| Failure::usage("which database? Set DATABASE_URL or give --database-url URL"))?
            .parse()
            .map_err(Failure::usage)
    }

    fn open(&self) -> Result<Arc<dyn Store>, Failure> {
        Ok(store::open(&self.url()?)?)
    }
}

const UNREPEATED: &str = "there is a wrong argument, which is not repeated as it may hold a password: write \
                          --database-url 'URL', with the quotes, or set DATABASE_URL (see --help)";

/// Whether an error repeats a URL among the arguments, or a piece of one that a shell split at a space.
fn shows_a_url(error: &clap::Error, arguments: impl Iterator<Item = OsString>) -> bool {
    let shown = error.render().to_string();
    let word = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand].map(|kind| error.get(kind));
    let is_of_one = matches!(
        error.kind(),
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand | ErrorKind::ValueValidation
    );
    let shows_a_word = is_of_one && word.into_iter().flatten().any(|word| !word.to_string().starts_with('-'));
    arguments.filter_map(|argument| argument.into_string().ok()).any(|argument| {
        let values = [&*argument, argument.split_once('=').map_or("", |(_, value)| value)];
        let has_url = |value: &str| value.contains("://") || value.contains('@');
        shows_a_word && argument.contains('@')
            || values.iter().any(|value| has_url(value) && shown.contains(value))
    })
}

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if shows_a_url(&error, std::env::args_os()) => {
            return end(Err(Failure::usage(UNREPEATED)), None);
        }
        Err(error) => error.exit(),
    };
    // The demo's report shows what its relay does.
    let default_filter =
        if matches!(cli.command, Command::Demo(_)) { "runspan=warn" } else { "runspan=info" };
    if let Err(failure) = start_logging(default_filter) {
        return end(Err(failure), None);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(Err(Failure::failed(format!("cannot start: {error}"))), None),
    };
    let database = cli.command.database();
    let done = runtime.block_on(cli.command.run());
    // A task that hangs on a dead connection must not block the exit.
    runtime.shutdown_background();
    end(done, database.as_ref())
}

fn end(done: Result<(), Failure>, database: Option<&DatabaseUrl>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { exit, line, of_database }) => {
            let whose = database.filter(|_| of_database).map(|url| format!("{url}: ")).unwrap_or_default();
            let style = anstyle::AnsiColor::Red.on_default().bold();
            note(format_args!("{style}error:{style:#} {whose}{line}"));
            ExitCode::from(exit as u8)
        }
    }
}

/// Prints a command's output: the only place that writes to standard output.
///
/// A closed pipe (`| head`) is not an error; any other failure fails the command.
fn print(text: impl Display) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Like [`print`], with a newline.
fn print_line(line: impl Display) -> Result<(), Failure> {
    print(format_args!("{line}\n"))
}

/// A line on stderr. There is nowhere to report that stderr fails.
fn note(line: impl Display) {
    let _ = writeln!(anstream::stderr(), "{line}");
}

/// Logs to stderr, filtered by `RUST_LOG`; standard output belongs to the command.
fn start_logging(default_filter: &str) -> Result<(), Failure> {
    let value = environment("RUST_LOG");
    let filter = log_filter(value.as_deref(), default_filter, is_crate).map_err(Failure::usage)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(anstream::stderr)
        .with_ansi(anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never)
        .with_target(false)
        // They would be written to stderr, which failed, and panic.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// Whether a crate of this program has this name: others log nothing here.
fn is_crate(target: &str) -> bool {
    let target = target.replace('-', "_");
    let names = include_str!("../Cargo.lock").lines().filter_map(|line| line.strip_prefix("name = \""));
    names.filter_map(|name| name.strip_suffix('"')).any(|name| name.replace('-', "_") == target)
}

/// A signal this soon after the first is a duplicate: `timeout` signals its child and then the child's process group.
const DUPLICATE_SIGNAL: Duration = Duration::from_millis(500);

/// A token that SIGINT or SIGTERM cancels. A second signal exits immediately.
fn stop_on_signal() -> Result<CancellationToken, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let cannot = |error| Failure::failed(format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            match first {
                None => {
                    tracing::info!("stopping: finishing the current batch");
                    stopped.cancel();
                    first = Some(Instant::now());
                }
                Some(first) if first.elapsed() < DUPLICATE_SIGNAL => {}
                Some(_) => std::process::exit(Exit::Interrupted as i32),
            }
        }
    });
    Ok(stop)
}

/// A summary with a table below it.
fn listing<const N: usize>(
    summary: String,
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header).add_rows(rows);
    // The last column is padded.
    table.lines().fold(summary, |text, line| text + "\n" + line.trim_end())
}

/// A count with its noun: `1 request`, `2 requests`.
fn counted(count: impl Into<i128>, thing: &str) -> String {
    let count = count.into();
    match thing.strip_suffix('y') {
        _ if count == 1 => format!("{count} {thing}"),
        Some(stem) => format!("{count} {stem}ies"),
        None => format!("{count} {thing}s"),
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_error_repeats_a_url() {
        let is_hidden = |arguments: &[&str]| {
            let arguments = ["runspan"].iter().chain(arguments).map(OsString::from);
            let error = Cli::try_parse_from(arguments.clone()).err().expect("it is wrong");
            shows_a_url(&error, arguments)
        };
        let url = "postgres://app:hunter2@db/app";
        for arguments in [
            &[url][..],
            &["relay", url],
            &["relay", "app:hunter2@db/app"],
            &["outbox", "retry", url],
            &["relay", "--logs", url],
            &["relay", "--until-idle=postgres://app:hunter2@db/app"],
            &["relay", "--lease", url],
            &["relay", "--health-addr", url],
            &["relay", "--max-outbox", url],
            &["relay", "--duration-buckets", url],
            &["relay", "--database-url", "postgres://app:Q7", "X8@db/app"],
            &["relay", "--database-url", "postgres://app:Q7", "X8", "Z9@db/app"],
            &["outbox", "--database-url", "postgres://app:Q7", "X8", "Z9@db/app"],
            &["outbox", "retry", "--database-url", "postgres://app:Q7", "X8", "Z9@db/app"],
        ] {
            let all = ["runspan"].iter().chain(arguments);
            let shown = Cli::try_parse_from(all).err().expect("it is wrong").to_string();
            let repeats = ["hunter2", "Q7", "X8", "Z9"].iter().any(|piece| shown.contains(piece));
            assert!(is_hidden(arguments) || !repeats, "{arguments:?}: {shown}");
        }
        assert!(is_hidden(&["relay", url]) && is_hidden(&["outbox", "retry", url]));
        for arguments in [
            &["relay", "now"][..],
            &["replay"],
            &["relay", "--url", url],
            &["relay", "--logs", "stdin", "--database-url", url],
            &["outbox", "retry", "one"],
            &["outbox", "drop", "--database-url", url],
        ] {
            assert!(!is_hidden(arguments), "{arguments:?}");
        }
    }
}
