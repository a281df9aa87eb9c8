//! What runspan costs, how fast it is and how it grows: every figure that the documentation claims.
//!
//! `make bench` takes every part, `make bench ARGS='writer drain'` some. Alternatives are measured side by side, in
//! turn within each round; what counts are the ratios of one run. Tables go to standard output, and with every
//! round's figures as JSON to `target/bench/`.

mod backlog;
mod bare;
mod child;
mod drain;
mod growth;
mod lateness;
mod receiver;
mod report;
mod rest;
mod runtime;
mod series;
mod shown;
mod writer;

type Failure = Box<dyn std::error::Error>;

/// Each part and what it tells.
const PARTS: [(&str, &str); 7] = [
    ("writer", "what the journal costs whoever writes the runs, beside an outbox written by hand"),
    ("drain", "how fast a backlog is drained, beside what sends the same spans from memory"),
    ("lateness", "how long a transition is under way until its span and its record have arrived"),
    ("growth", "what becomes of the drain as backlog, table, runs in flight and workflow names grow"),
    ("rest", "what a relay costs while nothing happens"),
    ("runtime", "what the bundled runtime costs beside the statements that it stands for"),
    ("series", "what the durable metrics cost the drain, an export of them, and the database"),
];

/// The argument of a child whose memory is measured, before its number of names.
const PEAK: &str = "--peak";

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // cargo adds one of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [PEAK, names] => return series::peak(names.parse()?),
        [child::RELAY, task] => return child::run(task).await,
        _ => {}
    }
    if let Some(unknown) = arguments.iter().find(|argument| PARTS.iter().all(|(part, _)| part != argument)) {
        let parts = PARTS.map(|(part, tells)| format!("  {part:9} {tells}")).join("\n");
        eprintln!("there is no part {unknown:?}; the parts are\n{parts}");
        std::process::exit(2);
    }
    for (part, tells) in PARTS {
        if arguments.is_empty() || arguments.iter().any(|argument| argument == part) {
            println!("## {part}: {tells}\n");
            match part {
                "writer" => writer::run().await?,
                "drain" => drain::run().await?,
                "lateness" => lateness::run().await?,
                "growth" => growth::run().await?,
                "rest" => rest::run().await?,
                "runtime" => runtime::run().await?,
                "series" => series::run().await?,
                _ => unreachable!("a part of PARTS"),
            }
        }
    }
    Ok(())
}
