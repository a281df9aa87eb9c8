//! One seed: its processes, its faults, and what came of it.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use runspan::otlp::config::Protocol;
use tokio::runtime::Handle;
use tonic::Code;

use crate::child::Child;
use crate::cluster::{Cluster, Template, load};
use crate::collector::Collector;
use crate::database::Database;
use crate::link::Link;
use crate::oracle::{Arrived, Oracle, Verdict};
use crate::plan::{Answers, Event, Kind, Plan, Which};
use crate::pooler::Pooler;
use crate::process::runspan;
use crate::proxy::{Coverage, Proxy};
use crate::receiver::{Received, Receiver, Reply};
use crate::{planted, service};

/// How long a relay waits for an answer.
pub(crate) const TIME_OUT: Duration = Duration::from_millis(1_500);

/// What an online schema change does in the end.
const SWAP: &str = "
    BEGIN;
    LOCK TABLE workflow_runs;
    CREATE TABLE shadow (LIKE workflow_runs INCLUDING ALL);
    INSERT INTO shadow SELECT * FROM workflow_runs;
    ALTER TABLE workflow_runs RENAME TO workflow_runs_old;
    ALTER TABLE shadow RENAME TO workflow_runs;
    COMMIT";

const SET_BACK: &str = "SELECT setval('runspan.' || name, 1, false)
    FROM unnest(ARRAY['journal_seq', 'outbox_id_seq', 'deltas_id_seq', 'commits_id_seq']) name";

/// How the receiver answers now, and what it has.
#[derive(Default)]
struct Desk {
    answers: Option<Answers>,
    has_poison: bool,
    arrived: Vec<(Instant, Received)>,
}

enum Gateway {
    Own { receiver: Receiver, desk: Arc<Mutex<Desk>> },
    Collector(Collector),
}

/// The processes and faults of a seed.
pub(crate) struct Play<'a> {
    plan: &'a Plan,
    home: PathBuf,
    runtime: &'a Handle,
    cluster: Cluster,
    database: Database,
    gateway: Gateway,
    link: Link,
    proxy: Proxy,
    _pooler: Option<Pooler>,
    writers: Vec<Child>,
    relays: [Child; 2],
    stopped: Option<u32>,
    /// Whether an attach failed for want of space.
    has_to_attach: bool,
    /// How many processes were started, for the seeds of the writers.
    started: u64,
    faults: Vec<(Instant, Instant)>,
    wrong: Vec<String>,
}

/// Plays a seed. What goes on is written to files in `home`.
pub(crate) fn run(plan: &Plan, template: &Template, home: PathBuf, runtime: &Handle) -> (Verdict, Coverage) {
    fs::create_dir_all(&home).unwrap();
    crate::cluster::own(&home);
    fs::write(home.join("plan"), format!("{plan:#?}\n")).unwrap();
    let mut scene = Play::begin(plan, template, home, runtime);
    scene.faults_happen();
    scene.calm();
    scene.drain();
    let coverage = scene.proxy.coverage();
    (scene.end(), coverage)
}

impl<'a> Play<'a> {
    fn begin(plan: &'a Plan, template: &Template, home: PathBuf, runtime: &'a Handle) -> Self {
        let cluster = template.copy(&home);
        let database = Database::at(&cluster.url("app"));
        if plan.has_gaps() {
            load(&database, "chaos/ledger.sql");
        }
        if plan.app_clock != 0 {
            let hours = plan.app_clock;
            database.sql(&format!(
                "ALTER TABLE workflow_runs ALTER created_at SET DEFAULT now() + interval '{hours} hours'"
            ));
        }
        let gateway = if plan.has(Kind::Collector) {
            Gateway::Collector(Collector::start())
        } else {
            Gateway::own(plan, runtime)
        };
        let pooler = plan.has(Kind::Pooled).then(|| Pooler::start(database.url()));
        let behind = pooler.as_ref().map_or(cluster.port(), Pooler::port);
        let (link, proxy) = runtime
            .block_on(async { (Link::start(gateway.port(plan.protocol)).await, Proxy::start(behind).await) });
        let start = |number| start_relay(plan, &home, &proxy, &link, number);
        let relays = [start(0), start(1)];
        let mut scene = Self {
            plan,
            runtime,
            database,
            gateway,
            relays,
            link,
            proxy,
            _pooler: pooler,
            cluster,
            home,
            writers: Vec::new(),
            stopped: None,
            has_to_attach: false,
            started: 0,
            faults: Vec::new(),
            wrong: Vec::new(),
        };
        scene.writers = (0..plan.writers).map(|_| scene.start_writer()).collect();
        scene
    }

    fn start_writer(&mut self) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let seed = self.plan.seed << 16 | self.started;
        command.args(["--writer", self.database.url(), &seed.to_string()]);
        if self.plan.has(Kind::Poison) {
            command.arg("--poison");
        }
        self.started += 1;
        Child::start(&mut command, &self.home.join(format!("writer-{}.log", self.started)))
    }

    fn start_relay(&self, number: usize) -> Child {
        start_relay(self.plan, &self.home, &self.proxy, &self.link, number)
    }

    /// Everything of the plan, when it is due.
    fn faults_happen(&mut self) {
        let began = Instant::now();
        for (at, event) in &self.plan.events {
            std::thread::sleep(at.saturating_sub(began.elapsed()));
            let from = Instant::now();
            self.happens(event);
            self.faults.push((from, Instant::now()));
            self.look_after_relays();
        }
        std::thread::sleep(self.plan.lasts.saturating_sub(began.elapsed()));
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::KillRelay(which) => self.kill_relay(*which),
            Event::KillWriter(writer) => {
                let next = self.start_writer();
                self.writers[*writer] = next;
            }
            Event::KillPostgres => {
                self.cluster.kill();
                self.cluster.start();
            }
            Event::PauseHolder => {
                let holder = self.holder();
                if let Some(relay) = self.relays.iter().find(|relay| Some(relay.id()) == holder) {
                    relay.signal("STOP");
                    self.stopped = holder;
                }
            }
            Event::ResumeHolder => self.resume(),
            Event::Receiver(answers) => {
                if let Gateway::Own { receiver, desk } = &self.gateway {
                    lock(desk).answers = Some(*answers);
                    if *answers == Answers::ResetUnread {
                        receiver.script((0..6).map(|_| Reply::ResetUnread));
                    }
                }
            }
            Event::ReceiverBack => {
                if let Gateway::Own { desk, .. } = &self.gateway {
                    lock(desk).answers = None;
                }
            }
            Event::Link(how) => self.link.breaks(Some(*how)),
            Event::LinkBack => self.link.breaks(None),
            Event::Cut(cut) => self.proxy.cut(cut.clone()),
            Event::Stall => self.proxy.stall(true),
            Event::StallEnds => self.proxy.stall(false),
            Event::Full => self.set_full(true),
            Event::FullEnds => {
                self.set_full(false);
                if std::mem::take(&mut self.has_to_attach) {
                    self.attach();
                }
            }
            Event::Disable => {
                self.database.sql("ALTER TABLE workflow_runs DISABLE TRIGGER USER");
            }
            Event::Swap => {
                self.database.sql(SWAP);
            }
            Event::Attach => self.attach(),
            Event::SetBack => {
                self.database.sql(SET_BACK);
            }
            Event::ReadOnly => self.set_read_only(true),
            Event::ReadOnlyEnds => self.set_read_only(false),
            Event::CollectorAway => {
                if let Gateway::Collector(collector) = &mut self.gateway {
                    collector.go_away();
                }
            }
            Event::CollectorBack => {
                if let Gateway::Collector(collector) = &mut self.gateway {
                    collector.come_back();
                }
            }
        }
    }

    fn set_full(&self, is_full: bool) {
        self.database.sql(&format!("UPDATE disk SET is_full = {is_full}"));
    }

    /// For every session, from its next transaction on.
    fn set_read_only(&self, is_read_only: bool) {
        let setting = if is_read_only { "on" } else { "off" };
        self.database.sql(&format!("ALTER SYSTEM SET default_transaction_read_only = {setting}"));
        self.database.sql("SELECT pg_reload_conf()");
    }

    /// As the relay's log says to.
    fn attach(&mut self) {
        let output = runspan(&["attach", "--database-url", self.database.url()]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        // On a full disk the runs in flight are left to the relay; those of another table are to be attached to later.
        let is_full = stderr.contains("No space left on device");
        self.has_to_attach = is_full && stderr.contains("the triggers were removed again");
        let is_installed = is_full && stderr.contains("the triggers are installed");
        assert!(output.status.success() || is_installed || self.has_to_attach, "{stderr}");
    }

    /// The process that holds the lease.
    fn holder(&self) -> Option<u32> {
        self.database.holder().split_once('-')?.0.parse().ok()
    }

    fn kill_relay(&mut self, which: Which) {
        let holder = self.holder();
        for number in 0..2 {
            let is_holder = Some(self.relays[number].id()) == holder;
            let is_meant = match which {
                Which::Holder => is_holder,
                Which::Standby => !is_holder,
                Which::Both => true,
            };
            if !is_meant {
                continue;
            }
            self.relays[number].kill();
            self.relays[number] = self.start_relay(number);
            if is_holder {
                // It is dead: the next may begin, though what its backend has in hand may yet be committed.
                self.database.free_the_lease();
            }
        }
    }

    fn resume(&mut self) {
        let stopped = self.stopped.take();
        if let Some(relay) = self.relays.iter().find(|relay| Some(relay.id()) == stopped) {
            relay.signal("CONT");
        }
    }

    /// No relay ends of itself.
    fn look_after_relays(&mut self) {
        for number in 0..2 {
            if let Some(status) = self.relays[number].has_ended() {
                self.wrong.push(format!("relay {number} has ended of itself: {status}"));
                self.relays[number] = self.start_relay(number);
            }
        }
    }

    /// The writers end, and so does every fault.
    fn calm(&mut self) {
        self.writers.iter_mut().for_each(Child::kill);
        self.resume();
        self.link.breaks(None);
        let cuts = self.proxy.calm();
        self.faults.extend(cuts.into_iter().map(|at| (at, at)));
        if self.plan.has(Kind::Full) {
            self.set_full(false);
        }
        if std::mem::take(&mut self.has_to_attach) {
            self.attach();
        }
        if self.plan.has(Kind::ReadOnly) {
            self.set_read_only(false);
        }
        if let Gateway::Own { desk, .. } = &self.gateway {
            lock(desk).answers = None;
        }
        self.look_after_relays();
        self.relays.iter().for_each(|relay| relay.signal("TERM"));
        for (number, relay) in self.relays.iter_mut().enumerate() {
            let status = relay.wait();
            if !status.success() && relay.has_spoken() {
                self.wrong.push(format!("relay {number} ended with {status}"));
            }
        }
        self.faults.push((Instant::now(), Instant::now()));
    }

    /// Sends what is left, and what was given up for dead once the receiver takes it.
    fn drain(&mut self) {
        if let (true, Gateway::Own { desk, .. }) = (self.plan.has(Kind::Poison), &self.gateway) {
            let desk = Arc::clone(desk);
            let code = self.relay_until_idle();
            if !matches!(code, Some(0 | 3)) {
                self.wrong.push(format!("the relay that drains with poison ended with {code:?}"));
            }
            self.judge_dead();
            lock(&desk).has_poison = false;
            let mut retry = runspan(&["outbox", "retry", "--all", "--database-url", self.database.url()]);
            assert!(retry.output().unwrap().status.success());
        }
        let code = self.relay_until_idle();
        if code != Some(0) {
            self.wrong.push(format!("the relay that drains ended with {code:?}"));
        }
    }

    fn relay_until_idle(&self) -> Option<i32> {
        // Nobody is alive who holds it: one that stood by would be idle at once.
        self.database.free_the_lease();
        let mut command = relay(self.plan, &self.home, self.cluster.port(), self.link.port());
        Child::start(command.arg("--until-idle"), &self.home.join("relay-last.log")).wait().code()
    }

    /// Dead is only poison, each on its own.
    fn judge_dead(&mut self) {
        #[derive(serde::Deserialize)]
        struct Dead {
            items: u64,
            body: String,
        }
        let dead: Vec<Dead> = self
            .database
            .rows("SELECT items, encode(body, 'hex') AS body FROM runspan.outbox WHERE dead IS NOT NULL");
        for Dead { items, body } in dead {
            let bytes: Vec<u8> = (0..body.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&body[at..at + 2], 16).unwrap())
                .collect();
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
            if items != 1 || !is_poison(&plain) {
                self.wrong.push(format!("a request of {items} items is dead, and is no poison alone"));
            }
        }
    }

    fn end(mut self) -> Verdict {
        for log in (1..=self.started).map(|number| self.home.join(format!("writer-{number}.log"))) {
            let said = fs::read_to_string(&log).unwrap_or_default();
            self.wrong
                .extend(said.lines().filter(|line| !line.is_empty()).map(|line| format!("writer: {line}")));
        }
        let arrived = match &mut self.gateway {
            Gateway::Own { desk, .. } => Arrived::Requests(std::mem::take(&mut lock(desk).arrived)),
            Gateway::Collector(collector) => {
                // Its files are whole once it has ended.
                collector.go_away();
                let [traces, logs, metrics] =
                    ["traces", "logs", "metrics"].map(|signal| collector.lines(signal));
                Arrived::Files { traces, logs, metrics }
            }
        };
        let logs = ["relay-0.log", "relay-1.log", "relay-last.log"].map(|log| self.home.join(log));
        let said = logs.map(|log| fs::read_to_string(log).unwrap_or_default()).concat();
        let time_outs = said.matches("no answer within").count();
        let oracle = Oracle { plan: self.plan, database: &self.database, faults: &self.faults, time_outs };
        // Now and then the oracle is put to the test itself.
        let asked = match &arrived {
            Arrived::Requests(requests) if self.plan.seed.is_multiple_of(10) => Some(requests.clone()),
            _ => None,
        };
        let mut verdict = oracle.judge(arrived);
        if let Some(requests) = asked.filter(|_| verdict.wrong.is_empty()) {
            verdict.wrong.extend(planted::unseen(&oracle, &requests));
        }
        verdict.wrong.append(&mut self.wrong);
        let _in = self.runtime.enter();
        verdict
    }
}

impl Gateway {
    fn own(plan: &Plan, runtime: &Handle) -> Self {
        let receiver = runtime.block_on(Receiver::start(plan.protocol, None));
        let desk = Arc::new(Mutex::new(Desk { has_poison: plan.has(Kind::Poison), ..Desk::default() }));
        let (protocol, behind) = (plan.protocol, Arc::clone(&desk));
        let mut count = 0_u64;
        receiver.rule(move |request| {
            let mut desk = lock(&behind);
            count += 1;
            // Not all of them, or nothing would go on meanwhile.
            let answers = desk.answers.filter(|_| !count.is_multiple_of(4));
            let reply = if desk.has_poison
                && request.signal != runspan::otlp::Signal::Metrics
                && is_poison(&request.body)
            {
                refusal(protocol, 400, Code::InvalidArgument, None)
            } else {
                answers.map_or(Reply::Accept, |answers| reply(answers, protocol))
            };
            if reply.is_stored() {
                desk.arrived.push((Instant::now(), request.clone()));
            }
            reply
        });
        Self::Own { receiver, desk }
    }

    fn port(&self, protocol: Protocol) -> u16 {
        let endpoint = match (self, protocol) {
            (Self::Own { receiver, .. }, _) => receiver.endpoint(),
            (Self::Collector(collector), Protocol::Grpc) => collector.grpc(),
            (Self::Collector(collector), Protocol::HttpProtobuf) => collector.http(),
        };
        endpoint.rsplit_once(':').expect("an endpoint has a port").1.parse().unwrap()
    }
}

fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap()
}

fn reply(answers: Answers, protocol: Protocol) -> Reply {
    let soon = Some(Duration::from_secs(1));
    match answers {
        Answers::Hang => Reply::Hang,
        Answers::Late(after) => Reply::AcceptLate(after),
        Answers::TooMany => refusal(protocol, 429, Code::ResourceExhausted, soon),
        Answers::Busy => refusal(protocol, 429, Code::ResourceExhausted, None),
        Answers::Unavailable => refusal(protocol, 503, Code::Unavailable, None),
        Answers::AtOnce => refusal(protocol, 503, Code::Unavailable, Some(Duration::ZERO)),
        Answers::Partial => Reply::Partial { rejected: 1, message: "one too many".to_owned() },
        // The script says so; what comes behind it is taken.
        Answers::ResetUnread => Reply::Accept,
        Answers::AcceptThenReset => Reply::AcceptThenReset,
    }
}

fn refusal(protocol: Protocol, status: u16, code: Code, after: Option<Duration>) -> Reply {
    match (protocol, after) {
        (Protocol::Grpc, None) => Reply::grpc(code, "chaos"),
        (Protocol::Grpc, Some(after)) => Reply::grpc_retry(code, "chaos", after),
        (Protocol::HttpProtobuf, None) => Reply::http(status, &[], "chaos"),
        (Protocol::HttpProtobuf, Some(after)) => {
            Reply::http(status, &[("retry-after", &after.as_secs().to_string())], "chaos")
        }
    }
}

fn is_poison(body: &[u8]) -> bool {
    body.windows(6).any(|window| window == b"poison")
}

fn start_relay(plan: &Plan, home: &std::path::Path, proxy: &Proxy, link: &Link, number: usize) -> Child {
    let mut command = relay(plan, home, proxy.port(), link.port());
    if plan.clocks[number] != 0 {
        command
            .env("LD_PRELOAD", service("RUNSPAN_TEST_FAKETIME"))
            .env("FAKETIME", format!("{:+}h", plan.clocks[number]))
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    Child::start(&mut command, &home.join(format!("relay-{number}.log")))
}

/// `runspan relay`, on a database's port, with a receiver behind another.
fn relay(plan: &Plan, _home: &std::path::Path, database: u16, receiver: u16) -> Command {
    let pooled = if plan.has(Kind::Pooled) { "&statement-cache-capacity=0" } else { "" };
    let url = format!("postgres://postgres@127.0.0.1:{database}/app?sslmode=disable{pooled}");
    let mut command = runspan(&["relay", "--lease", "6s", "--database-url", &url]);
    command
        .env("OTEL_SERVICE_NAME", "shop")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{receiver}"))
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", plan.protocol.to_string())
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", if plan.gzip { "gzip" } else { "none" })
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", TIME_OUT.as_millis().to_string())
        .env("OTEL_METRIC_EXPORT_INTERVAL", "500");
    command
}
