//! The Prometheus of one test: collector/prometheus.yaml with other targets, and the rules.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::collector::free_ports;
use super::process::Process;
use super::{service, wait_for};

pub(super) struct Prometheus {
    process: Process,
    port: u16,
    _data: TempDir,
}

/// Labels and value of one series of an answer.
pub(super) type Sample = (BTreeMap<String, String>, f64);

impl Prometheus {
    /// One that fetches every second, also what the Collector at this port and Tempo tell of themselves.
    pub(super) fn start(collector: u16) -> Self {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
        let data = tempfile::tempdir().unwrap();
        let [port] = free_ports();
        let text = fs::read_to_string(tree.join("collector/prometheus.yaml")).unwrap();
        let mut config: Value = serde_saphyr::from_str(&text).unwrap();
        config["global"] = json!({"scrape_interval": "1s", "evaluation_interval": "1s"});
        config["rule_files"] = json!([data.path().join("*.rules")]);
        let target = |name: &str, port: u16| json!({"job_name": name, "static_configs": [{"targets": [format!("127.0.0.1:{port}")]}]});
        config["scrape_configs"] = json!([target("collector", collector), target("tempo", tempo())]);
        // JSON is YAML.
        fs::write(data.path().join("prometheus.yaml"), config.to_string()).unwrap();
        for rules in ["recording", "alerts"] {
            let text = fs::read_to_string(tree.join(format!("dashboards/rules/{rules}.yaml"))).unwrap();
            let soon = text.replace("interval: 3m", "interval: 1s");
            fs::write(data.path().join(format!("{rules}.rules")), soon).unwrap();
        }
        let mut command = Command::new(service("RUNSPAN_TEST_PROMETHEUS"));
        command
            .arg(format!("--config.file={}", data.path().join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", data.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            // As compose.yaml starts it.
            .args(["--web.enable-otlp-receiver", "--enable-feature=exemplar-storage"]);
        let mut prometheus = Self { process: Process::start(&mut command), port, _data: data };
        wait_for("Prometheus", || {
            assert!(prometheus.process.is_running(), "{}", prometheus.process.stderr());
            prometheus.get("/-/ready")
        });
        prometheus
    }

    /// Where it takes OTLP.
    pub(super) fn otlp(&self) -> String {
        format!("http://127.0.0.1:{}/api/v1/otlp", self.port)
    }

    /// What `expr` comes to, now or at a moment.
    pub(super) fn query(&self, expr: &str, time: Option<f64>) -> Vec<Sample> {
        self.result(expr, time).iter().map(sample).collect()
    }

    /// The samples of the only series in a range like `metric[5m]`: time and value.
    pub(super) fn samples(&self, range: &str) -> Vec<(f64, f64)> {
        let series = self.result(range, None);
        let values = series.first().map(|series| series["values"].as_array().unwrap().clone());
        values.unwrap_or_default().iter().map(pair).collect()
    }

    fn result(&self, expr: &str, time: Option<f64>) -> Vec<Value> {
        let mut path = format!("/api/v1/query?query={}", encoded(expr));
        if let Some(time) = time {
            path += &format!("&time={time}");
        }
        let answer = self.api(&path).unwrap_or_else(|| panic!("no answer to {expr}"));
        assert_eq!(answer["status"], "success", "{expr}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// The only value of `expr`.
    pub(super) fn number(&self, expr: &str, time: Option<f64>) -> Option<f64> {
        self.query(expr, time).first().map(|(_, value)| *value)
    }

    /// The exemplars of a metric.
    pub(super) fn exemplars(&self, metric: &str) -> Vec<Value> {
        let path = format!("/api/v1/query_exemplars?query={}&start=0&end=9999999999", encoded(metric));
        let answer = self.api(&path).unwrap();
        let series = answer["data"].as_array().unwrap();
        series.iter().flat_map(|series| series["exemplars"].as_array().unwrap().clone()).collect()
    }

    fn api(&self, path: &str) -> Option<Value> {
        Some(serde_json::from_str(&self.get(path)?).expect("an answer is JSON"))
    }

    /// The body of any answer.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        (!head.contains(" 503 ")).then(|| body.to_owned())
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn sample(series: &Value) -> Sample {
    let labels = series["metric"].as_object().unwrap().iter();
    let labels = labels.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    (labels, pair(&series["value"]).1)
}

/// Time and value.
fn pair(pair: &Value) -> (f64, f64) {
    (pair[0].as_f64().unwrap(), pair[1].as_str().unwrap().parse().unwrap())
}

/// What Tempo, which cannot be built here, would tell of itself: only that it discards nothing.
fn tempo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4_096]);
            let metric =
                "tempo_discarded_spans_total{reason=\"live_traces_exceeded\",tenant=\"single-tenant\"} 0\n";
            let _ = write!(
                stream,
                "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n# TYPE tempo_discarded_spans_total counter\n{metric}"
            );
        }
    });
    port
}
