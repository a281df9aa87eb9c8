//! The files of collector/: what must stay true of them, whoever edits them.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use regex::Regex;
use serde_json::Value;

use super::{file, otelcol};

const OVERLAYS: [&str; 2] = ["span-metrics.yaml", "sampling.yaml"];

#[test]
fn every_configuration_is_valid() {
    let environment = yaml("compose.yaml")["services"]["collector"]["environment"].clone();
    let sets: [&[&str]; 4] = [&[], &OVERLAYS[..1], &OVERLAYS[1..], &OVERLAYS];
    for overlays in sets {
        let mut command = otelcol(overlays);
        for (name, value) in environment.as_object().into_iter().flatten() {
            command.env(name, value.as_str().unwrap());
        }
        let output = command.arg("validate").stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{overlays:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_pipeline_refuses_before_it_runs_out_of_memory() {
    for name in ["gateway.yaml"].iter().chain(&OVERLAYS) {
        for (pipeline, parts) in entries(&yaml(name)["service"]["pipelines"]) {
            assert_eq!(parts["processors"][0], "memory_limiter", "{name}: {pipeline}");
            if pipeline.starts_with("metrics") {
                assert_eq!(parts["processors"].as_array().unwrap().len(), 1, "{name}: {pipeline}");
            }
        }
    }
}

#[test]
fn every_exporter_keeps_what_it_has_until_it_is_taken() {
    let gateway = yaml("gateway.yaml");
    for (name, exporter) in entries(&gateway["exporters"]) {
        let queue = &exporter["sending_queue"];
        assert_eq!(queue["storage"], "file_storage", "{name}");
        assert_eq!(queue["sizer"], "bytes", "{name}");
        assert_eq!(queue["block_on_overflow"], false, "{name}");
        assert!(queue["batch"]["max_size"].as_u64().unwrap() < 4 << 20, "{name}");
        assert_eq!(exporter["retry_on_failure"]["max_elapsed_time"], 0, "{name}");
        let in_order = name != "otlp_http/tempo";
        assert_eq!(queue["num_consumers"] == 1, in_order, "{name}");
    }
    assert_eq!(gateway["extensions"]["file_storage"]["fsync"], true);
    assert!(gateway["service"]["extensions"].as_array().unwrap().contains(&"file_storage".into()));
}

/// docs/operate/collector.md has each in its table.
#[test]
fn every_variable_is_explained() {
    let used = Regex::new(r"\$\{env:([A-Z_]+)").unwrap();
    let page = fs::read_to_string(file("../docs/operate/collector.md")).unwrap();
    let explained = Regex::new(r"(?m)`([A-Z][A-Z_]+)`").unwrap();
    let names = |pattern: &Regex, text: &str| -> BTreeSet<String> {
        pattern.captures_iter(text).map(|found| found[1].to_owned()).collect()
    };
    let text: String = ["gateway.yaml"].iter().chain(&OVERLAYS).map(|name| read(name)).collect();
    let table: String = page.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(names(&used, &text), names(&explained, &table));
}

#[test]
fn the_tour_is_pinned_and_stays_on_this_machine() {
    let exact = Regex::new(r"^[a-z0-9./-]+:v?\d+(\.\d+)+(-[a-z]+)?$").unwrap();
    let compose = yaml("compose.yaml");
    for (name, service) in entries(&compose["services"]) {
        let image = service["image"].as_str().unwrap();
        assert!(exact.is_match(image), "{name}: {image}");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port}");
        }
    }
    for line in read("Dockerfile").lines().filter_map(|line| line.strip_prefix("FROM ")) {
        assert!(exact.is_match(line.split(' ').next().unwrap()), "{line}");
    }
    let image = compose["services"]["collector"]["image"].as_str().unwrap();
    let version = image.rsplit(':').next().unwrap();
    let build = read("builder.yaml");
    assert!(
        build.contains(&format!("otlpreceiver v{version}")),
        "the tests run another Collector than {image}"
    );
}

#[test]
fn the_tour_waits_only_for_what_tells_and_mounts_only_what_is_there() {
    let compose = yaml("compose.yaml");
    let services = &compose["services"];
    for (name, service) in entries(services) {
        for (other, on) in service["depends_on"].as_object().into_iter().flatten() {
            let other = &services[other];
            assert!(other.is_object(), "{name}");
            assert!(on["condition"] != "service_healthy" || other["healthcheck"].is_object(), "{name}");
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            match source.strip_prefix("./") {
                Some(here) => assert!(file(here).exists(), "{name}: {source}"),
                None if source.starts_with("../dashboards") => {}
                None => assert!(compose["volumes"].get(source).is_some(), "{name}: {source}"),
            }
        }
    }
}

/// Their defaults drop one, or answer that it is too old.
#[test]
fn the_stores_of_the_tour_take_a_backlog() {
    let tempo = &yaml("tempo.yaml")["overrides"]["defaults"];
    assert!(tempo["ingestion"]["max_traces_per_user"].as_u64().unwrap() > 100_000);
    assert!(tempo["metrics_generator"].is_null());
    let loki = &yaml("loki.yaml")["limits_config"];
    assert_eq!(loki["allow_structured_metadata"], true);
    assert_eq!(loki["reject_old_samples"], false);
    assert_eq!(yaml("prometheus.yaml")["storage"]["tsdb"]["out_of_order_time_window"], "1d");
    let compose = yaml("compose.yaml");
    let flags = compose["services"]["prometheus"]["command"].as_array().unwrap();
    for flag in ["--web.enable-otlp-receiver", "--enable-feature=exemplar-storage"] {
        assert!(flags.contains(&flag.into()), "{flag}");
    }
}

fn read(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap()
}

fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn entries(map: &Value) -> impl Iterator<Item = (&String, &Value)> {
    map.as_object().unwrap().iter()
}

#[test]
fn grafana_finds_what_its_data_sources_ask_for() {
    let grafana = yaml("compose.yaml")["services"]["grafana"].clone();
    let sources =
        fs::read_to_string(file("../dashboards/grafana/provisioning/datasources/runspan.yaml")).unwrap();
    let asked = Regex::new(r"(?m)^ [^#\n]*[^$]\$([A-Z_]+)").unwrap();
    let asked: BTreeSet<&str> =
        asked.captures_iter(&sources).map(|found| found.extract::<1>().1[0]).collect();
    assert!(asked.len() > 5, "{asked:?}");
    for name in asked {
        assert!(grafana["environment"][name].is_string(), "{name} is not set");
    }
    for service in ["grafana", "prometheus"] {
        let volumes = yaml("compose.yaml")["services"][service]["volumes"].clone();
        for volume in volumes.as_array().unwrap().iter().map(|volume| volume.as_str().unwrap()) {
            let from = volume.split(':').next().unwrap();
            assert!(!from.starts_with('.') || file(from).exists(), "{service}: {volume}");
        }
    }
}
