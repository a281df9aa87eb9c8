//! What holds for any input, looked for as long as there is time: `make fuzz SECONDS=300`.
//!
//! Each target draws inputs until its budget is over (`RUNSPAN_FUZZ_SECONDS`, by default two seconds), and shows the
//! smallest input that fails. What was found once is a test of its own beside the code that it was found in.

mod answers;
mod configuration;
mod projection;
mod redaction;

use std::cell::Cell;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{TestCaseResult, TestError, TestRunner};

const BUDGET: &str = "RUNSPAN_FUZZ_SECONDS";

/// Tests whatever `inputs` draws until the budget is over.
fn fuzz<S: Strategy>(target: &str, inputs: &S, test: impl Fn(S::Value) -> TestCaseResult) {
    let seconds = std::env::var(BUDGET).map_or(2, |text| {
        text.parse().unwrap_or_else(|_| panic!("{BUDGET} is {text:?}, not a whole number of seconds"))
    });
    let begun = Instant::now();
    let executions = Cell::new(0_u64);
    while executions.get() == 0 || begun.elapsed() < Duration::from_secs(seconds) {
        let config = ProptestConfig {
            cases: 16,
            failure_persistence: None,
            max_shrink_iters: 20_000,
            ..ProptestConfig::default()
        };
        let outcome = TestRunner::new(config).run(inputs, |input| {
            executions.set(executions.get() + 1);
            test(input)
        });
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(why, input)) => {
                panic!(
                    "{target}, after {} executions: {why}\nthe smallest input: {input:#?}",
                    executions.get()
                )
            }
            Err(TestError::Abort(why)) => panic!("{target}: {why}"),
        }
    }
    eprintln!("fuzz: {target}: {} executions in {} s", executions.get(), begun.elapsed().as_secs());
}

/// Text that somebody could have meant harm with.
fn text() -> impl Strategy<Value = String> {
    let hostile = [
        "",
        " ",
        "\0",
        "\r\n",
        "\u{1b}[31m",
        "\u{202e}",
        "\u{2028}",
        "\u{feff}",
        "\u{fffd}",
        "🦀",
        "e\u{301}",
        "'; DROP TABLE workflow_runs; --",
        "{\"a\":1}",
        "%00%ff",
        "#other#",
        "null",
    ];
    prop_oneof![
        4 => "[a-z]{1,8}",
        2 => prop::sample::select(hostile.to_vec()).prop_map(str::to_owned),
        2 => "\\PC{0,40}",
        1 => any::<String>(),
        1 => ("\\PC{1,3}", 1_usize..400).prop_map(|(text, times)| text.repeat(times)),
    ]
}
