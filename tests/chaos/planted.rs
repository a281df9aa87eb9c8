//! Whether the oracle sees what is wrong: it is shown arrivals that something was done to.

use std::time::Instant;

use prost::Message as _;
use runspan::otlp::Signal;

use crate::oracle::{Arrived, Oracle};
use crate::received;
use crate::receiver::Received;

type Requests = Vec<(Instant, Received)>;

/// Something that must not pass.
type Plant = fn(&mut Requests);

/// What it did not see, of arrivals in which nothing is wrong.
pub(crate) fn unseen(oracle: &Oracle<'_>, requests: &Requests) -> Vec<String> {
    let planted: [(&str, Plant); 4] = [
        ("a lost request of spans", |requests| lose(requests, Signal::Traces)),
        ("a lost request of records", |requests| lose(requests, Signal::Logs)),
        ("a copy that differs", double),
        ("a metric that went back", go_back),
    ];
    let mut unseen = Vec::new();
    for (what, plant) in planted {
        let mut requests = requests.clone();
        plant(&mut requests);
        if oracle.judge(Arrived::Requests(requests)).wrong.is_empty() {
            unseen.push(format!("the oracle does not see {what}"));
        }
    }
    unseen
}

fn of(requests: &Requests, signal: Signal) -> Vec<usize> {
    (0..requests.len()).filter(|place| requests[*place].1.signal == signal).collect()
}

/// The largest, with its copies: a small one may hold only runs of which little is known, since they lay in a gap.
fn lose(requests: &mut Requests, signal: Signal) {
    let bodies = of(requests, signal).into_iter().map(|place| &requests[place].1.body);
    let lost = bodies.max_by_key(|body| body.len()).expect("there were runs").clone();
    requests.retain(|(_, request)| request.body != lost);
}

/// The first request of spans again, but not to the byte.
fn double(requests: &mut Requests) {
    let (at, mut copy) = requests[of(requests, Signal::Traces)[0]].clone();
    let mut traces = copy.traces();
    "planted".clone_into(&mut traces.resource_spans[0].schema_url);
    copy.body = traces.encode_to_vec().into();
    requests.push((at, copy));
}

/// The last export that tells of runs is followed by one that counts none.
fn go_back(requests: &mut Requests) {
    let tells = |request: &Received| {
        received::points(request).iter().any(|(series, ..)| series.starts_with("workflow.run.events"))
    };
    let mut places = of(requests, Signal::Metrics).into_iter().rev();
    let last = places.find(|place| tells(&requests[*place].1)).expect("there were runs");
    let (at, mut copy) = requests[last].clone();
    let mut metrics = copy.metrics();
    let all = metrics.resource_metrics.iter_mut().flat_map(|resource| &mut resource.scope_metrics);
    for metric in all.flat_map(|scope| &mut scope.metrics) {
        use opentelemetry_proto::tonic::metrics::v1::metric::Data;
        use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
        if let Some(Data::Sum(sum)) = &mut metric.data
            && metric.name == "workflow.run.events"
        {
            for point in &mut sum.data_points {
                point.time_unix_nano += 1_000_000;
                point.value = Some(Value::AsInt(0));
            }
        }
    }
    copy.body = metrics.encode_to_vec().into();
    requests.push((at, copy));
}
