//! What lies between the relays and PostgreSQL: it counts the messages of the frontend protocol, and cuts a connection at
//! the one that it is told.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// How long the server has to do what is forwarded before a cut.
const LAST_WORD: Duration = Duration::from_secs(2);

/// How the statements of projector, sender, exporter and lease begin.
const STATEMENTS: [&str; 30] = [
    "BEGIN",
    "COMMIT",
    "SELECT version FROM runspan.meta",
    "SELECT holder, epoch",
    "UPDATE runspan.lease SET holder",
    "UPDATE runspan.lease SET expires_at = clock",
    "UPDATE runspan.lease SET expires_at = 'epoch'",
    "SELECT format('%s-%s-%s'",
    "SELECT instance, low",
    "SELECT runspan.missed_runs()",
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SELECT runspan.adopt(",
    "SELECT entries, vanished FROM runspan.catch_up()",
    "SELECT seq, CASE",
    "SELECT run_id, state FROM runspan.open_runs",
    "SELECT set_config",
    "DELETE FROM runspan.journal",
    "INSERT INTO runspan.open_runs",
    "DELETE FROM runspan.open_runs",
    "WITH next AS (SELECT nextval",
    "INSERT INTO runspan.deltas (id, delta) OVERRIDING SYSTEM VALUE SELECT",
    "WITH next AS ( INSERT INTO runspan.commits",
    "SELECT id, place",
    "DELETE FROM runspan.outbox",
    "SELECT coalesce(sum(bytes)",
    "SELECT head, totals",
    "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, d.id",
    "DELETE FROM runspan.deltas",
    "INSERT INTO runspan.series",
    "SELECT workflow_name, status",
    "SELECT coalesce(pg_sequence_last_value",
];

/// Where to cut.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    pub(crate) target: Target,
    /// The message is forwarded, and done, but its answer is lost; otherwise it is lost itself.
    pub(crate) is_after: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// The n-th message from now on, whatever it is.
    Message(u32),
    /// The n-th execution of a statement that begins so.
    Statement(&'static str, u32),
}

impl Cut {
    /// The `number`-th of a seed: one in four at some message, the others at each statement and on either side of it in
    /// turn, from seed to seed.
    pub(crate) fn choose(seed: u64, number: u64, random: &mut StdRng) -> Self {
        if random.random_ratio(1, 4) {
            return Self { target: Target::Message(random.random_range(1..=120)), is_after: random.random() };
        }
        let turn = usize::try_from(seed * 5 + number).expect("seeds are small");
        let statement = STATEMENTS[turn % STATEMENTS.len()];
        let time = random.random_range(1..=2);
        let is_after = (turn / STATEMENTS.len()).is_multiple_of(2);
        Self { target: Target::Statement(statement, time), is_after }
    }
}

/// How often each statement was seen, and was the last before a cut: lost itself, or its answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(pub(crate) BTreeMap<String, [u64; 3]>);

pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _serving: AbortOnDropHandle<()>,
}

struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
    stalled: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    cuts: Vec<Cut>,
    done: Vec<Instant>,
    coverage: Coverage,
}

/// What becomes of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Forwarded,
    Lost,
    AnswerLost,
}

impl Proxy {
    pub(crate) async fn start(upstream: u16) -> Self {
        let shared = Arc::new(Shared {
            upstream: SocketAddr::from(([127, 0, 0, 1], upstream)),
            state: Mutex::default(),
            stalled: watch::Sender::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Self { address, shared, _serving: AbortOnDropHandle::new(serving) }
    }

    pub(crate) const fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn cut(&self, cut: Cut) {
        self.shared.state().cuts.push(cut);
    }

    /// Takes back what has not been cut, and says when something was.
    pub(crate) fn calm(&self) -> Vec<Instant> {
        self.stall(false);
        let mut state = self.shared.state();
        state.cuts.clear();
        state.done.clone()
    }

    /// Nothing comes through, in either direction, until it is taken back.
    pub(crate) fn stall(&self, is_stalled: bool) {
        self.shared.stalled.send_replace(is_stalled);
    }

    pub(crate) fn coverage(&self) -> Coverage {
        self.shared.state().coverage.clone()
    }
}

impl Coverage {
    pub(crate) fn add(&mut self, other: &Self) {
        for (statement, counts) in &other.0 {
            let sums = self.0.entry(statement.clone()).or_default();
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count;
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Decides on a message. `statement` is what it executes, if it is one that executes something.
    fn decide(&self, statement: Option<&str>) -> Fate {
        let mut state = self.state();
        let mut fate = Fate::Forwarded;
        for cut in &mut state.cuts {
            let left = match &mut cut.target {
                Target::Message(left) => left,
                Target::Statement(begins, left) if statement.is_some_and(|it| it.starts_with(*begins)) => {
                    left
                }
                Target::Statement(..) => continue,
            };
            *left = left.saturating_sub(1);
            if *left == 0 {
                fate = if cut.is_after { Fate::AnswerLost } else { Fate::Lost };
            }
        }
        state.cuts.retain(|cut| !matches!(cut.target, Target::Message(0) | Target::Statement(_, 0)));
        if fate != Fate::Forwarded {
            state.done.push(Instant::now());
        }
        if let Some(statement) = statement {
            let counts = state.coverage.0.entry(short(statement)).or_default();
            counts[0] += 1;
            match fate {
                Fate::Forwarded => {}
                Fate::Lost => counts[1] += 1,
                Fate::AnswerLost => counts[2] += 1,
            }
        }
        fate
    }

    async fn flows(&self) {
        let mut stalled = self.stalled.subscribe();
        let _ = stalled.wait_for(|stalled| !stalled).await;
    }
}

fn short(statement: &str) -> String {
    statement.chars().take(60).collect()
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            shared.flows().await;
            // A server that is down: the client's connection closes at once.
            let Ok(server) = TcpStream::connect(shared.upstream).await else { return };
            // What is passed on in parts would wait for acknowledgements.
            for stream in [&client, &server] {
                let _ = stream.set_nodelay(true);
            }
            let (client_reads, client_writes) = client.into_split();
            let (server_reads, server_writes) = server.into_split();
            let cut = watch::Sender::new(false);
            let mut forward = std::pin::pin!(forward(client_reads, server_writes, &shared, &cut));
            let mut answers = std::pin::pin!(answer(server_reads, client_writes, &shared, cut.subscribe()));
            // What ends first ends both; but a cut that loses an answer waits for the answer.
            tokio::select! {
                is_cut = &mut forward => if is_cut {
                    let _ = tokio::time::timeout(LAST_WORD, answers).await;
                },
                () = &mut answers => {}
            }
        });
    }
}

/// Client → server, message by message, until one is cut. Whether the server's answer is to be waited for.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    cut: &watch::Sender<bool>,
) -> bool {
    let mut buffer = Vec::new();
    let mut session = Session::default();
    loop {
        while let Some(length) = session.next(&buffer) {
            let statement = session.executes(&buffer[..length]);
            let fate = shared.decide(statement.as_deref());
            if fate == Fate::Lost {
                return false;
            }
            if fate == Fate::AnswerLost {
                cut.send_replace(true);
                // With the Sync behind it, or the server would not answer.
                let _ = to.write_all(&buffer).await;
                return true;
            }
            if to.write_all(&buffer[..length]).await.is_err() {
                return false;
            }
            buffer.drain(..length);
        }
        let read = from.read_buf(&mut buffer).await;
        shared.flows().await;
        if !matches!(read, Ok(1..)) {
            return false;
        }
    }
}

/// Server → client. Once a cut loses the answer: only until the server has answered.
async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    cut: watch::Receiver<bool>,
) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        shared.flows().await;
        if *cut.borrow() {
            // ReadyForQuery ends what it says.
            if length >= 6 && buffer[length - 6] == b'Z' {
                return;
            }
        } else if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// What a connection has said so far: which statement has which name.
#[derive(Default)]
struct Session {
    has_begun: bool,
    prepared: HashMap<Vec<u8>, String>,
    bound: String,
}

impl Session {
    /// The length of the message at the front, once it is all there.
    fn next(&mut self, buffer: &[u8]) -> Option<usize> {
        // The first has no type.
        let begins = usize::from(self.has_begun);
        let length = buffer.get(begins..begins + 4)?;
        let length = begins + u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        (buffer.len() >= length).then_some(length)
    }

    /// The statement that a message executes. A Parse alone executes nothing.
    fn executes(&mut self, message: &[u8]) -> Option<String> {
        if !std::mem::replace(&mut self.has_begun, true) {
            return None;
        }
        let mut texts = message[5..].split(|byte| *byte == 0);
        let mut text = || texts.next().unwrap_or_default();
        match message[0] {
            b'Q' => Some(plain(text())),
            b'P' => {
                let name = text().to_vec();
                self.prepared.insert(name, plain(text()));
                None
            }
            b'B' => {
                text();
                self.bound = self.prepared.get(text()).cloned().unwrap_or_default();
                None
            }
            b'E' => Some(self.bound.clone()),
            _ => None,
        }
    }
}

fn plain(sql: &[u8]) -> String {
    String::from_utf8_lossy(sql).split_whitespace().collect::<Vec<_>>().join(" ")
}
