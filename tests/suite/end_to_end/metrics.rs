//! Numbers in Prometheus, through the relay and the gateway, beside what SQL says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use runspan::series::Buckets;
use serde::Deserialize;

use super::database::Database;
use super::process::Process;
use super::prometheus::Prometheus;
use super::{DEADLINE, LOOK, relay, wait_for, wait_within};
use crate::collector::{Backends, Gateway};
use crate::dashboards;
use crate::rules;

/// Between two exports.
const INTERVAL: &str = "1000";

/// The whole way, but for the application.
struct Way {
    database: Database,
    gateway: Gateway,
    prometheus: Prometheus,
    _backends: Backends,
}

impl Way {
    async fn open() -> Self {
        let backends = Backends::start().await;
        let database = Database::attached();
        database.sql(
            "CREATE SEQUENCE numbers; CREATE TABLE refusals (workflow_name text);
             CREATE TABLE waits (id uuid PRIMARY KEY, workflow_name text NOT NULL, seconds float8 NOT NULL)",
        );
        let [telemetry] = super::collector::free_ports();
        let prometheus = Prometheus::start(telemetry);
        let (endpoint, telemetry) = (prometheus.otlp(), telemetry.to_string());
        let variables = [("PROMETHEUS_ENDPOINT", endpoint.as_str()), ("TELEMETRY_PORT", telemetry.as_str())];
        let gateway = Gateway::start(&backends, &[], &variables);
        Self { database, gateway, prometheus, _backends: backends }
    }

    fn relay(&self) -> Process {
        let mut command = relay(&self.database, &self.gateway.endpoint());
        Process::start(command.env("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL))
    }

    /// Runs of all kinds: each statement is a transaction. Their durations lie between nothing and three hours.
    fn write(&self, runs: u32) {
        self.database.sql(&format!(
            "INSERT INTO workflow_runs (workflow_name, target_type, target_owner, target_repo, target_number, created_at)
                 SELECT (ARRAY['triage', 'plan', 'review', 'never well', 'stays'])[1 + n % 5], 'issue', 'acme', 'widgets',
                     nextval('numbers'), clock_timestamp() - (random() ^ 6) * interval '3 hours'
                 FROM generate_series(1, {runs}) n"
        ));
        self.database.sql(
            "UPDATE workflow_runs SET status = 'running', updated_at = clock_timestamp()
             WHERE status = 'queued' AND workflow_name <> 'stays' AND target_number % 11 <> 0",
        );
        self.database.sql(
            "UPDATE workflow_runs SET updated_at = clock_timestamp(), status = 'failed',
                 state = '{\"failedReason\": \"enqueue failed: no route\"}'
             WHERE status = 'queued' AND workflow_name <> 'stays'",
        );
        // The row forgets when it first ran.
        self.database.sql(
            "INSERT INTO waits SELECT id, workflow_name, extract(epoch FROM updated_at - created_at)
             FROM workflow_runs WHERE workflow_name <> 'stays' AND id NOT IN (SELECT id FROM waits)",
        );
        self.database.sql(
            "UPDATE workflow_runs SET updated_at = clock_timestamp(),
                 status = CASE WHEN workflow_name = 'never well' OR target_number % 7 = 0 THEN 'failed'
                               WHEN target_number % 13 = 0 THEN 'incomplete' ELSE 'succeeded' END,
                 state = CASE WHEN target_number % 2 = 0 THEN '{\"failedReason\": \"owner lost: it died\"}'::jsonb
                              ELSE '{\"failedReason\": \"no such branch\"}'::jsonb END
             WHERE status = 'running'",
        );
        self.database.sql(
            "SELECT runspan.dispatch_refused('plan', 'issue', 'acme', 'widgets', n, 'context-mismatch', NULL, NULL)
             FROM generate_series(1, 3) n;
             INSERT INTO refusals SELECT 'plan' FROM generate_series(1, 3)",
        );
    }

    /// A count of the database's, as Prometheus would have it.
    fn count(&self, sql: &str) -> f64 {
        self.database.sql(sql).parse().unwrap()
    }

    /// Waits until Prometheus has counted all runs that have ended; the time of the sample that says so.
    fn counted(&self) -> f64 {
        let ended =
            self.count("SELECT count(*) FROM workflow_runs WHERE status NOT IN ('queued', 'running')");
        let refused = self.count("SELECT count(*) FROM refusals");
        let rose = |expr: &str, to: f64| self.prometheus.number(expr, None).is_some_and(|now| close(now, to));
        wait_for("all runs in Prometheus", || {
            (rose("sum(workflow_run_duration_seconds_count)", ended)
                && rose("sum(workflow_run_events_total{event=\"workflow.run.dispatch_refused\"})", refused))
            .then_some(())
        });
        self.prometheus.number("max(timestamp(workflow_run_events_total))", None).unwrap()
    }
}

/// What SQL says of a workflow.
#[derive(Debug, Deserialize)]
struct Truth {
    workflow_name: String,
    runs: f64,
    succeeded: f64,
    incomplete: f64,
    failed: f64,
    handler: f64,
    owner_lost: f64,
    enqueue_failed: f64,
    refused: f64,
    queued: f64,
    active: f64,
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
    wait_p50: Option<f64>,
    wait_p95: Option<f64>,
}

impl Truth {
    /// How many runs ended so.
    fn ended_as(&self, outcome: &str) -> f64 {
        match outcome {
            "succeeded" => self.succeeded,
            "incomplete" => self.incomplete,
            "failed" => self.failed,
            "deleted" => 0.0,
            other => panic!("no run ends as {other}"),
        }
    }

    /// How many failed so.
    fn failed_by(&self, error_type: &str) -> f64 {
        match error_type {
            "handler" => self.handler,
            "owner_lost" => self.owner_lost,
            "enqueue_failed" => self.enqueue_failed,
            other => panic!("no run fails by {other}"),
        }
    }

    /// How many events of this name there were, if SQL can tell.
    fn events(&self, event: &str) -> Option<f64> {
        match event.strip_prefix("workflow.run.")? {
            "queued" => Some(self.queued),
            "completed" => Some(self.runs),
            "dispatch_refused" => Some(self.refused),
            "enqueue_failed" => Some(self.enqueue_failed),
            "conflict" | "handed_off" => Some(0.0),
            "running" => None,
            outcome => Some(self.ended_as(outcome)),
        }
    }
}

fn truth(database: &Database, by: &str) -> Vec<Truth> {
    database.rows(&format!(
        "SELECT {by} AS workflow_name, count(*) FILTER (WHERE ended) AS runs,
             count(*) FILTER (WHERE status = 'succeeded') AS succeeded,
             count(*) FILTER (WHERE status = 'incomplete') AS incomplete,
             count(*) FILTER (WHERE status = 'failed') AS failed,
             count(*) FILTER (WHERE reason = 'no such branch') AS handler,
             count(*) FILTER (WHERE reason LIKE 'owner lost:%') AS owner_lost,
             count(*) FILTER (WHERE reason LIKE 'enqueue failed:%') AS enqueue_failed,
             (SELECT count(*) FROM refusals r WHERE {by} IN (r.workflow_name, 'all')) AS refused,
             count(*) AS queued, count(*) FILTER (WHERE NOT ended) AS active,
             percentile_disc(0.5) WITHIN GROUP (ORDER BY took) FILTER (WHERE ended) AS p50,
             percentile_disc(0.95) WITHIN GROUP (ORDER BY took) FILTER (WHERE ended) AS p95,
             percentile_disc(0.99) WITHIN GROUP (ORDER BY took) FILTER (WHERE ended) AS p99,
             (SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY seconds) FROM waits r
                  WHERE {by} IN (r.workflow_name, 'all')) AS wait_p50,
             (SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY seconds) FROM waits r
                  WHERE {by} IN (r.workflow_name, 'all')) AS wait_p95
         FROM (SELECT *, status NOT IN ('queued', 'running') AS ended,
                      CASE status WHEN 'failed' THEN state ->> 'failedReason' END AS reason,
                      extract(epoch FROM updated_at - created_at)::float8 AS took FROM workflow_runs) w
         GROUP BY 1"
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboards_say_what_sql_says() {
    let way = Way::open().await;
    let relay = way.relay();
    for _ in 0..8 {
        way.write(150);
        std::thread::sleep(Duration::from_millis(400));
    }
    let at = way.counted();

    let all = truth(&way.database, "'all'").remove(0);
    let each: BTreeMap<String, Truth> = truth(&way.database, "w.workflow_name")
        .into_iter()
        .map(|it| (it.workflow_name.clone(), it))
        .collect();
    assert_eq!(each.len(), 5);
    let (mut asked, mut compared) = (0, 0);
    for (panel, expr) in panels("1h") {
        let Some((value, within_a_bucket)) = meaning(&panel) else { continue };
        asked += 1;
        let before = compared;
        for (labels, found) in way.prometheus.query(&expr, Some(at)) {
            let truth = labels.get("workflowName").map_or(&all, |name| &each[name]);
            let expected = value(truth, &labels);
            let right = if within_a_bucket { same_bucket(found, expected) } else { close(found, expected) };
            assert!(right, "{panel}: {labels:?} is {found}, SQL says {expected}\n{truth:?}\n{expr}");
            compared += 1;
        }
        assert!(compared > before, "{panel}: nothing to compare");
    }
    assert_eq!(asked, 31, "a panel of another name would be compared with nothing");
    // Sixteen numbers over all, and of five workflows (one of which has no end yet) twelve each.
    assert!(compared >= 16 + 5 * 5 + 4 * 7, "only {compared} numbers were compared");
    recordings_say_what_sql_says(&way, &each, at);
    // What always fails is at 0 %, not absent.
    let never = "Each workflow B";
    let (_, success) = panels("1h").into_iter().find(|(panel, _)| panel == never).unwrap();
    let rates = way.prometheus.query(&success, Some(at));
    assert!(
        rates.iter().any(|(labels, rate)| labels["workflowName"] == "never well" && *rate == 0.0),
        "{rates:?}"
    );

    everything_has_an_answer(&way);
    exemplars_lead_to_runs(&way);
    the_first_run_and_a_gap_are_seen(&way, relay);
}

/// The PromQL of the dashboards, by panel.
fn panels(range: &str) -> Vec<(String, String)> {
    let values = [
        ("job", ".*"),
        ("database", ".*"),
        ("workflow", ".*"),
        ("__range", range),
        ("__interval", "5m"),
        ("__rate_interval", "5m"),
    ];
    // Aligned to whole minutes, of which the test has none.
    let soon = |expr: String| expr.replace(":1m]", ":1s]");
    dashboards::promql(&values).into_iter().map(|query| (query.panel, soon(query.expr))).collect()
}

/// What is recorded of one moment (what is recorded of that takes hours) says what SQL says.
fn recordings_say_what_sql_says(way: &Way, each: &BTreeMap<String, Truth>, at: f64) {
    let mut compared = 0;
    for (name, expr) in rules::expressions().iter().filter(|(_, expr)| !expr.contains(':')) {
        let level = name.split(':').next().unwrap();
        if !level.starts_with("job_workflowName_") {
            continue;
        }
        for (labels, found) in way.prometheus.query(expr, Some(at)) {
            let truth = &each[&labels["workflowName"]];
            let expected = match level {
                "job_workflowName_outcome" => truth.ended_as(&labels["outcome"]),
                "job_workflowName_event" => truth.events(&labels["event"]).unwrap_or(found),
                _ if labels["le"] == "+Inf" => truth.runs,
                _ => continue,
            };
            assert!(close(found, expected), "{name}: {labels:?} is {found}, SQL says {expected}\n{truth:?}");
            compared += 1;
        }
    }
    assert!(compared > 5 * (6 * 4 + 1), "only {compared} recorded numbers were compared");
}

/// What SQL says to a series of a panel.
type Meaning = fn(&Truth, &BTreeMap<String, String>) -> f64;

/// What a panel ought to say, and whether that is a quantile, which a histogram knows to within a bucket only.
fn meaning(panel: &str) -> Option<(Meaning, bool)> {
    let quantile = |seconds: Meaning| Some((seconds, true));
    let value: Meaning = match panel {
        "Duration A" => return quantile(|it, _| it.p50.unwrap_or(f64::NAN)),
        "p95 duration A" | "Each workflow D" | "Duration B" | "p95 duration, the ten slowest A" => {
            return quantile(|it, _| it.p95.unwrap_or(f64::NAN));
        }
        "Each workflow E" | "Duration C" => return quantile(|it, _| it.p99.unwrap_or(f64::NAN)),
        "Queue wait A" => return quantile(|it, _| it.wait_p50.unwrap_or(f64::NAN)),
        "Queue wait p95 A" | "Each workflow F" | "Queue wait B" => {
            return quantile(|it, _| it.wait_p95.unwrap_or(f64::NAN));
        }
        "Runs A" | "Each workflow A" => |it, _| it.runs,
        "Success rate A" | "Each workflow B" | "Success rate, the ten worst A" => {
            |it, _| it.succeeded / it.runs
        }
        "Incomplete rate A" | "Each workflow C" | "Incomplete rate, the ten worst A" => {
            |it, _| it.incomplete / it.runs
        }
        "Refusal rate A" | "Each workflow H" | "Refusal rate, the ten highest A" => {
            |it, _| it.refused / (it.refused + it.queued)
        }
        "Each workflow G" => |it, _| it.refused,
        // Nothing that is in flight here runs.
        "In flight A" | "Each workflow I" | "What is in flight A" => |it, _| it.active,
        "What is in flight B" | "Recovered and unusual A" => |_, _| 0.0,
        "Runs by outcome A" => |it, labels| it.ended_as(&labels["outcome"]),
        "Failures by error type A" => |it, labels| it.failed_by(&labels["error_type"]),
        "Refusals by reason A" => {
            |it, labels| if labels["error_type"] == "context-mismatch" { it.refused } else { 0.0 }
        }
        _ => return None,
    };
    Some((value, false))
}

fn close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= 1e-6 * expected.abs().max(1.0)
}

fn same_bucket(found: f64, expected: f64) -> bool {
    let bounds = Buckets::default().seconds();
    let bucket = |seconds: f64| bounds.partition_point(|bound| *bound < seconds);
    bucket(found).abs_diff(bucket(expected)) <= 1
}

/// These tell of what never happens here (or takes hours to), and Prometheus knows no series of it.
const NEVER: [&str; 5] = [
    "otelcol_exporter_send_failed",
    "otelcol_exporter_enqueue_failed",
    "otelcol_receiver_refused",
    "error_type!=\"\"",
    // Aligned to whole hours.
    "1w",
];

/// Every query of dashboards and rules parses, and finds data where there is any.
fn everything_has_an_answer(way: &Way) {
    let rules = rules::expressions();
    assert!(rules.len() > 20, "{}", rules.len());
    let is_alert = |name: &str| name.starts_with(char::is_uppercase);
    let recording = rules.iter().filter(|(name, _)| !is_alert(name)).cloned();
    // A quiet alert has no answer; what it asks for must be there all the same.
    let names = regex::Regex::new(r"\b(?:workflow_run|runspan|tempo|otelcol|job)_[\w:]+").unwrap();
    let asked = rules.iter().filter(|(name, _)| is_alert(name)).flat_map(|(alert, expr)| {
        // It parses.
        way.prometheus.query(expr, None);
        names.find_iter(expr).map(move |found| (alert.clone(), found.as_str().to_owned()))
    });
    let mut silent: Vec<(String, String)> = panels("1h").into_iter().chain(recording).chain(asked).collect();
    // What is fetched, and what is recorded of that, comes a little later.
    let began = Instant::now();
    while !silent.is_empty() {
        silent.retain(|(_, expr)| {
            !NEVER.iter().any(|never| expr.contains(never)) && way.prometheus.query(expr, None).is_empty()
        });
        assert!(began.elapsed() < DEADLINE, "no data: {silent:#?}");
        std::thread::sleep(LOOK);
    }
}

/// The exemplars are runs, and tell how long they took.
fn exemplars_lead_to_runs(way: &Way) {
    #[derive(Deserialize)]
    struct Run {
        trace_id: String,
        took: f64,
    }
    let runs: Vec<Run> = way.database.rows(
        "SELECT replace(id::text, '-', '') AS trace_id, extract(epoch FROM updated_at - created_at)::float8 AS took
         FROM workflow_runs",
    );
    let runs: BTreeMap<String, f64> = runs.into_iter().map(|run| (run.trace_id, run.took)).collect();
    let exemplars = way.prometheus.exemplars("workflow_run_duration_seconds_bucket");
    assert!(exemplars.len() > 10, "{} exemplars", exemplars.len());
    for exemplar in exemplars {
        let [trace, span] = ["trace_id", "span_id"].map(|id| exemplar["labels"][id].as_str().unwrap());
        let value: f64 = exemplar["value"].as_str().unwrap().parse().unwrap();
        assert_eq!(span, &trace[16..], "a run that is its own root");
        let took = runs.get(trace).unwrap_or_else(|| panic!("{trace} is no run"));
        assert!((took - value).abs() < 1.0, "{trace} took {took} s, not {value} s");
    }
}

fn the_first_run_and_a_gap_are_seen(way: &Way, relay: Process) {
    let debut = "workflow_run_duration_seconds_count{workflowName=\"debut\"}";
    let succeed = |runs: u32| {
        way.database.sql(&format!(
            "INSERT INTO workflow_runs (workflow_name, target_type, target_owner, target_repo, target_number)
                 SELECT 'debut', 'issue', 'acme', 'widgets', nextval('numbers') FROM generate_series(1, {runs})"
        ));
        way.database.sql(
            "UPDATE workflow_runs SET status = 'running' WHERE workflow_name = 'debut' AND status = 'queued'",
        );
        way.database.sql("UPDATE workflow_runs SET status = 'succeeded' WHERE workflow_name = 'debut' AND status = 'running'");
    };
    let seen = |count: f64| {
        let sum = format!("sum({debut})");
        wait_for("the run in Prometheus", || {
            (way.prometheus.number(&sum, None) == Some(count)).then_some(())
        });
        way.prometheus.number(&format!("max(timestamp({debut}))"), None).unwrap()
    };
    succeed(1);
    let at = seen(1.0);
    let increase =
        |range: &str, at: f64| way.prometheus.number(&format!("sum(increase({debut}[{range}]))"), Some(at));
    assert_eq!(increase("1m", at), Some(1.0));

    // No export for longer than the window, and runs meanwhile.
    let stopped = relay.terminate();
    assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
    succeed(7);
    let window = Duration::from_secs(4);
    let gone = Instant::now();
    wait_within(window * 3, "a gap", || (gone.elapsed() > window).then_some(()));
    let relay = way.relay();
    seen(8.0);
    // The first sample that has them follows one that has not, close enough for a window shorter than the gap.
    let samples = way
        .prometheus
        .samples("workflow_run_duration_seconds_count{workflowName=\"debut\",outcome=\"succeeded\"}[5m]");
    let first = samples.iter().position(|(_, value)| close(*value, 8.0)).unwrap();
    let [(before, _), (at, _)] = samples[first - 1..=first] else { panic!("{samples:?}") };
    assert!(at - before < window.as_secs_f64() - 1.0, "{samples:?}");
    let rose = increase(&format!("{:.0}ms", (at - before) * 1_000.0 + 50.0), at).unwrap();
    assert!((rose - 7.0).abs() < 0.5, "{rose}");
    assert_eq!(relay.terminate().code, Some(0));
}

/// How long the gateway is away.
const OUTAGE: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn relays_that_die_and_a_gateway_that_is_away_change_no_total() {
    let mut way = Way::open().await;
    // Two, of which one works: what kills it moves the work to the other.
    let mut relays = [way.relay(), way.relay()];
    for kill in 0..20 {
        way.write(40);
        if kill == 10 {
            way.gateway.stop();
            let gone = Instant::now();
            while gone.elapsed() < OUTAGE {
                way.write(5);
                std::thread::sleep(Duration::from_secs(2));
            }
            way.gateway.come_back();
        }
        let before = way.database.holder();
        let [first, second] = relays;
        let (holder, standby) =
            if before.starts_with(&format!("{}-", first.id())) { (first, second) } else { (second, first) };
        holder.kill();
        way.database.free_the_lease();
        relays = [standby, way.relay()];
        wait_for("another holder", || {
            let now = way.database.holder();
            (!now.is_empty() && now != before).then_some(())
        });
        std::thread::sleep(LOOK * (kill % 5) * 10);
    }
    let at = way.counted();
    let each = truth(&way.database, "w.workflow_name");
    for outcome in ["succeeded", "failed", "incomplete"] {
        let selector = format!("workflow_run_duration_seconds_count{{outcome=\"{outcome}\"}}");
        for expr in [
            format!("sum by (workflowName) ({selector})"),
            format!("sum by (workflowName) (increase({selector}[1h]))"),
        ] {
            let found: BTreeMap<String, f64> = way
                .prometheus
                .query(&expr, Some(at))
                .into_iter()
                .map(|(mut labels, value)| (labels.remove("workflowName").unwrap(), value))
                .collect();
            for truth in &each {
                let found = found.get(&truth.workflow_name).copied().unwrap_or_default();
                let count = truth.ended_as(outcome);
                assert!(close(found, count), "{expr}: {} is {found}\n{truth:?}", truth.workflow_name);
            }
        }
    }
    // Nothing ever went back.
    for metric in [
        "workflow_run_duration_seconds_count",
        "workflow_run_duration_seconds_bucket",
        "workflow_run_events_total",
    ] {
        assert_eq!(
            way.prometheus.number(&format!("sum(resets({metric}[1h]))"), Some(at)),
            Some(0.0),
            "{metric}"
        );
    }
    for relay in relays {
        assert_eq!(relay.terminate().code, Some(0));
    }
}
