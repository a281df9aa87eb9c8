//! Every path of a run, as snapshots.
//!
//! Each story is projected twice: as one batch, and entry by entry with the tracked runs stored in between. Both must
//! have the same result, so that batch boundaries do not matter.

mod story;

use std::collections::HashMap;

use self::story::{id, moment, story};
use super::*;
use crate::journal::Lineage;

#[test]
fn succeeded() {
    let story = story()
        .then(0, 1, "triage", "- → queued")
        .with(|row| {
            row.delivery_id = Some("delivery-1".to_owned());
            row.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
        })
        .then(40, 1, "triage", "queued → running")
        .then(1_540, 1, "triage", "running → succeeded");
    insta::assert_snapshot!(story.render());
}

#[test]
fn incomplete() {
    let story = story()
        .then(0, 1, "resolve", "- → queued")
        .then(10, 1, "resolve", "queued → running")
        .then(90, 1, "resolve", "running → incomplete")
        .because("2 of 5 threads are open");
    insta::assert_snapshot!(story.render());
}

#[test]
fn failed_by_its_handler() {
    let story = story()
        .then(0, 1, "implement", "- → queued")
        .then(10, 1, "implement", "queued → running")
        .then(90, 1, "implement", "running → failed")
        .because("git push https://bot:hunter2@example.com/acme/widgets was refused");
    insta::assert_snapshot!(story.render());
}

#[test]
fn uncaught() {
    let story = story()
        .then(0, 1, "implement", "- → queued")
        .then(10, 1, "implement", "queued → running")
        .then(90, 1, "implement", "running → failed")
        .because("uncaught: index out of bounds");
    insta::assert_snapshot!(story.render());
}

#[test]
fn enqueue_failed() {
    let story = story()
        .then(0, 1, "triage", "- → queued")
        .then(30, 1, "triage", "queued → failed")
        .because("enqueue failed: connection refused");
    insta::assert_snapshot!(story.render());
}

#[test]
fn an_enqueue_failure_reported_by_a_handler() {
    let story = story()
        .then(0, 1, "triage", "- → queued")
        .then(10, 1, "triage", "queued → running")
        .then(30, 1, "triage", "running → failed")
        .because("enqueue failed: the child's queue is full");
    insta::assert_snapshot!(story.render());
}

#[test]
fn refused() {
    let story = story()
        .refused(0, "triage", "context-mismatch", None)
        .refused(1, "plan", "missing-prior-output", None)
        .refused(2, "ship", "workflow-dispatch-inflight", Some(7))
        .refused(3, "ship", "the moon is full", None);
    insta::assert_snapshot!(story.render());
}

#[test]
fn a_chain_of_five_children() {
    let mut chain = story().then(0, 1, "ship", "- → queued").then(5, 1, "ship", "queued → running");
    for (number, workflow) in (2..).zip(["triage", "plan", "implement", "review", "resolve"]) {
        let begin = i64::try_from(number).unwrap() * 100;
        chain = chain
            .then(begin, number, workflow, "- → queued")
            .under(1, (1, "ship"))
            .then(begin + 20, number, workflow, "queued → running")
            .under(1, (1, "ship"))
            .then(begin + 90, number, workflow, "running → succeeded")
            .under(1, (1, "ship"));
    }
    insta::assert_snapshot!(chain.then(700, 1, "ship", "running → succeeded").render());
}

#[test]
fn reaped_while_queued() {
    let story = story()
        .then(0, 1, "plan", "- → queued")
        .then(60_000, 1, "plan", "queued → failed")
        .because("owner lost: dispatcher-2");
    insta::assert_snapshot!(story.render());
}

#[test]
fn attached_while_running() {
    let story = story().then(800, 1, "plan", "- → running").created(0).reconciled().then(
        1_000,
        1,
        "plan",
        "running → succeeded",
    );
    insta::assert_snapshot!(story.render());
}

#[test]
fn first_seen_at_its_end() {
    let story = story().then(1_000, 1, "plan", "running → succeeded").created(0);
    insta::assert_snapshot!(story.render());
}

#[test]
fn first_seen_as_it_begins_to_run() {
    let story = story().then(200, 1, "plan", "queued → running").created(0).then(
        1_000,
        1,
        "plan",
        "running → succeeded",
    );
    insta::assert_snapshot!(story.render());
}

#[test]
fn ended_twice() {
    let story = story()
        .then(0, 1, "plan", "- → queued")
        .then(10, 1, "plan", "queued → running")
        .then(90, 1, "plan", "running → failed")
        .because("owner lost: executor-3")
        .then(95, 1, "plan", "failed → succeeded");
    insta::assert_snapshot!(story.render());
}

#[test]
fn brought_back_to_life_after_its_end() {
    let story = story()
        .then(0, 1, "plan", "- → queued")
        .then(10, 1, "plan", "queued → running")
        .then(90, 1, "plan", "running → failed")
        .then(100, 1, "plan", "failed → queued")
        .then(110, 1, "plan", "queued → running")
        .then(120, 1, "plan", "running → succeeded")
        .then(0, 2, "plan", "- → queued")
        .then(10, 2, "plan", "queued → failed")
        .then(20, 2, "plan", "failed → running");
    insta::assert_snapshot!(story.render());
}

#[test]
fn its_end_was_missed() {
    let story = story()
        .then(0, 1, "plan", "- → queued")
        .then(10, 1, "plan", "queued → running")
        .then(90, 1, "plan", "succeeded → failed")
        .because("owner lost: executor-3");
    insta::assert_snapshot!(story.render());
}

#[test]
fn a_child_after_its_parents_end() {
    let story = story()
        .then(0, 1, "ship", "- → queued")
        .then(5, 1, "ship", "queued → running")
        .then(10, 1, "ship", "running → succeeded")
        .then(20, 2, "plan", "- → queued")
        .under(1, (1, "ship"))
        .then(30, 2, "plan", "queued → running")
        .under(1, (1, "ship"))
        .then(40, 3, "review", "- → queued")
        .under(2, (1, "ship"))
        .then(50, 2, "plan", "running → succeeded")
        .under(1, (1, "ship"))
        .then(60, 4, "late", "- → queued")
        .under(2, (1, "ship"));
    insta::assert_snapshot!(story.render());
}

#[test]
fn deleted_in_flight() {
    let story = story()
        .then(0, 1, "plan", "- → queued")
        .then(10, 1, "plan", "queued → running")
        .then(50, 1, "plan", "running → -")
        .then(60, 2, "plan", "- → queued")
        .then(70, 2, "plan", "queued → -");
    insta::assert_snapshot!(story.render());
}

#[test]
fn back_to_queued() {
    let story = story()
        .then(0, 1, "plan", "- → queued")
        .then(10, 1, "plan", "queued → running")
        .then(50, 1, "plan", "running → queued")
        .then(70, 1, "plan", "queued → running")
        .then(90, 1, "plan", "running → succeeded");
    insta::assert_snapshot!(story.render());
}

#[test]
fn inserted_as_running_or_as_ended() {
    let story = story()
        .then(5, 1, "plan", "- → running")
        .created(0)
        .then(90, 1, "plan", "running → succeeded")
        .then(100, 2, "restored", "- → succeeded");
    insta::assert_snapshot!(story.render());
}

#[test]
fn reconciled_entries_count_only_where_they_say_something_new() {
    let story = story()
        // Seen by trigger and reconciliation: told once.
        .then(0, 1, "plan", "- → queued")
        .then(0, 1, "plan", "- → queued")
        .reconciled()
        // The running was missed.
        .then(10, 1, "plan", "queued → running")
        .reconciled()
        .then(90, 1, "plan", "running → succeeded")
        // Too late: its end is told already.
        .then(50, 1, "plan", "queued → running")
        .reconciled()
        .then(90, 1, "plan", "running → succeeded")
        .reconciled();
    insta::assert_snapshot!(story.render());
}

#[test]
fn more_events_than_a_span_carries() {
    let mut story = story().then(0, 1, "loop", "- → queued").then(1, 1, "loop", "queued → running");
    for child in 2..=140 {
        let begin = i64::try_from(child).unwrap();
        story = story.then(begin, child, "turn", "- → queued").under(1, (1, "loop"));
    }
    let told = story
        .then(500, 1, "loop", "running → queued")
        .then(510, 1, "loop", "queued → running")
        .then(600, 1, "loop", "running → succeeded")
        .render();
    let span: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("  · ")).collect();
    let events = span.len() - 1;
    assert_eq!(
        events,
        MAX_EVENTS - 1,
        "room is kept for an end of two events; the last line counts the rest"
    );
    insta::assert_snapshot!([&span[..3], &["…"], &span[span.len() - 5..]].concat().join("\n"), @r#"
    0 workflow.run.queued
    1 workflow.run.running
    2 workflow.run.handed_off childRunId=run 2 childWorkflowName="turn"
    …
    123 workflow.run.handed_off childRunId=run 123 childWorkflowName="turn"
    500 workflow.run.queued
    510 workflow.run.running
    600 workflow.run.succeeded
    17 more
    "#);
}

#[test]
fn a_run_stays_as_it_was_in_an_unknown_status() {
    let story = story()
        .then(0, 1, "plan", "- → queued")
        .then(10, 1, "plan", "queued → running")
        .then(20, 1, "plan", "running → paused")
        .then(60, 1, "plan", "paused → running")
        .then(70, 1, "plan", "running → blocked")
        .then(80, 1, "plan", "blocked → queued")
        .then(85, 1, "plan", "queued → running")
        .then(90, 1, "plan", "running → finishing")
        .then(100, 1, "plan", "finishing → succeeded");
    insta::assert_snapshot!(story.render());
}

#[test]
fn a_run_has_not_begun_before_its_first_known_status() {
    let story = story()
        .then(0, 1, "plan", "- → scheduled")
        .then(5_000, 1, "plan", "scheduled → queued")
        .then(5_040, 1, "plan", "queued → running")
        .then(6_000, 1, "plan", "running → succeeded")
        .then(0, 2, "plan", "- → scheduled")
        .then(5_000, 2, "plan", "scheduled → running")
        .then(6_000, 2, "plan", "running → succeeded")
        .then(0, 3, "plan", "- → scheduled")
        .then(10, 3, "plan", "scheduled → paused");
    insta::assert_snapshot!(story.render());
}

#[test]
fn an_end_after_an_unknown_status_is_never_lost() {
    let story = story().then(900, 1, "plan", "paused → failed").created(0).because("no such branch");
    insta::assert_snapshot!(story.render());
}

#[test]
fn a_child_takes_its_root_from_a_parent_in_flight() {
    // The database's walk ended early, as of a chain that is too long for it.
    let mut chain = story().then(0, 1, "ship", "- → queued").with(|row| row.delivery_id = Some("d-1".into()));
    for number in 2..=4 {
        let millis = i64::try_from(number).unwrap() * 10;
        chain = chain
            .then(millis, number, "plan", "- → queued")
            .under(number - 1, (number - 1, "cut"))
            .then(millis + 5, number, "plan", "queued → running")
            .under(number - 1, (number - 1, "cut"));
    }
    for number in (1..=4).rev() {
        chain = chain.then(100, number, "plan", "running → succeeded");
    }
    insta::assert_snapshot!(chain.render());
}

#[test]
fn cancelled() {
    let story = story()
        .then(0, 1, "plan", "- → queued")
        .then(10, 1, "plan", "queued → running")
        .then(20, 1, "plan", "running → cancelled")
        .then(30, 2, "plan", "- → queued")
        .then(40, 2, "plan", "queued → canceled");
    insta::assert_snapshot!(story.render());
}

#[test]
fn a_beginning_moves_back_within_a_week_and_never_forward() {
    const DAY: i64 = 86_400_000;
    let mut all = story();
    let created = [0, -5_000, 4_000, 300_000, -7 * DAY, -7 * DAY - 1, -20_000 * DAY];
    for (number, created) in (1..).zip(created) {
        all = all
            .then(1_000, number, "plan", "- → queued")
            .created(1_000 + created)
            .then(1_040, number, "plan", "queued → running")
            .then(1_900, number, "plan", "running → succeeded");
    }
    for (number, created_at) in (11..).zip([None, Some(i64::MIN), Some(i64::MAX), Some(0)]) {
        all = all
            .then(1_000, number, "plan", "- → queued")
            .with(|row| row.created_at = created_at)
            .then(1_900, number, "plan", "queued → failed")
            .created(1_000);
    }
    insta::assert_snapshot!(all.render());
}

#[test]
fn a_run_whose_insert_was_missed_may_be_a_year_old() {
    const YEAR: i64 = 365 * 86_400_000;
    let mut all = story();
    for (number, created) in (1..).zip([1_000 - YEAR, -YEAR, -60 * YEAR, 9_000]) {
        all = all.then(1_000, number, "plan", "- → running").created(created).reconciled().then(
            1_900,
            number,
            "plan",
            "running → succeeded",
        );
    }
    insta::assert_snapshot!(all.render());
}

#[test]
fn a_child_from_the_future_does_not_stretch_its_parent() {
    let story = story()
        .then(0, 1, "ship", "- → queued")
        .then(10, 1, "ship", "queued → running")
        .then(20, 2, "plan", "- → queued")
        .under(1, (1, "ship"))
        .created(3_600_000)
        .then(40, 1, "ship", "running → succeeded")
        .then(50, 2, "plan", "queued → failed")
        .under(1, (1, "ship"));
    insta::assert_snapshot!(story.render());
}

#[test]
fn an_unreadable_entry_is_set_aside() {
    let story = story()
        .then(0, 1, "plan", "- → queued")
        .then(5, 2, "plan", "- → queued")
        .with(|row| row.workflow_name = None)
        .then(10, 1, "plan", "queued → failed");
    insta::assert_snapshot!(story.render());
}

#[test]
fn no_event_precedes_the_one_before_it() {
    let story = story().then(100, 1, "plan", "- → queued").then(90, 1, "plan", "queued → running").then(
        80,
        1,
        "plan",
        "running → succeeded",
    );
    insta::assert_snapshot!(story.render());
}

#[test]
fn ids_follow_from_run_and_root() {
    let entry =
        Entry::try_from(story().then(0, 2, "plan", "- → running").under(1, (1, "ship")).rows.remove(0))
            .unwrap();
    let end = Entry::try_from(
        story().then(9, 2, "plan", "running → succeeded").under(1, (1, "ship")).rows.remove(0),
    )
    .unwrap();
    assert_eq!(
        entry.context.lineage,
        Some(Lineage {
            parent: id(1).into(),
            root: id(1).into(),
            root_workflow_name: Some("ship".to_owned()),
            root_delivery_id: None
        })
    );
    let ids: Vec<String> = project(HashMap::new(), [entry, end], &Settings::default())
        .spans
        .iter()
        .map(|span| format!("{} {} under {}", span.span_context(), span.name(), span.parent().unwrap()))
        .collect();
    insta::assert_snapshot!(ids.join("\n"), @r"
    00-01900000000070008000000000000001-4000000000000002-03 plan queued under 8000000000000002
    00-01900000000070008000000000000001-8000000000000002-03 plan under 8000000000000001
    ");
}

#[test]
fn what_a_batch_adds_to_the_series() {
    let story = story()
        .then(0, 1, "ship", "- → queued")
        .then(400, 1, "ship", "queued → running")
        .then(450, 2, "plan", "- → queued")
        .under(1, (1, "ship"))
        .then(700, 2, "plan", "queued → failed")
        .under(1, (1, "ship"))
        .because("enqueue failed: no route")
        .then(90_000, 1, "ship", "running → incomplete")
        .then(90_001, 1, "ship", "incomplete → failed")
        .refused(90_100, "ship", "workflow-dispatch-inflight", Some(1));
    let entries = story.rows.into_iter().map(|row| Entry::try_from(row).unwrap());
    let totals = project(HashMap::new(), entries, &Settings::default()).totals;
    let line = |key: &Key, what: String| {
        let attributes: Vec<String> =
            key.attributes().iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("{} {{{}}} {what}\n", key.kind.metric().name, attributes.join(" "))
    };
    let counters: String = totals.counters().map(|(key, count)| line(key, count.to_string())).collect();
    insta::assert_snapshot!(counters, @r"
    workflow.run.events {workflowName=plan event=workflow.run.queued} 1
    workflow.run.events {workflowName=plan event=workflow.run.failed error.type=enqueue_failed} 1
    workflow.run.events {workflowName=plan event=workflow.run.enqueue_failed error.type=enqueue_failed} 1
    workflow.run.events {workflowName=plan event=workflow.run.completed} 1
    workflow.run.events {workflowName=ship event=workflow.run.queued} 1
    workflow.run.events {workflowName=ship event=workflow.run.running} 1
    workflow.run.events {workflowName=ship event=workflow.run.handed_off} 1
    workflow.run.events {workflowName=ship event=workflow.run.incomplete} 1
    workflow.run.events {workflowName=ship event=workflow.run.dispatch_refused error.type=workflow-dispatch-inflight} 1
    workflow.run.events {workflowName=ship event=workflow.run.completed} 1
    workflow.run.events {workflowName=ship event=workflow.run.conflict} 1
    ");
    let histograms: String = totals
        .histograms()
        .map(|(key, distribution)| {
            let exemplars: Vec<String> = distribution
                .exemplars()
                .map(|exemplar| {
                    format!("{} at {} by {}", exemplar.micros, moment(exemplar.at), exemplar.span_id)
                })
                .collect();
            let seconds = distribution.sum_seconds();
            line(key, format!("{} in {seconds} s: {}", distribution.count(), exemplars.join(", ")))
        })
        .collect();
    insta::assert_snapshot!(histograms, @r"
    workflow.run.duration {workflowName=plan outcome=failed error.type=enqueue_failed} 1 in 0.25 s: 250000 at 700 by 8000000000000002
    workflow.run.duration {workflowName=ship outcome=incomplete} 1 in 90 s: 90000000 at 90000 by 8000000000000001
    workflow.run.queue.duration {workflowName=plan} 1 in 0.25 s: 250000 at 700 by 8000000000000002
    workflow.run.queue.duration {workflowName=ship} 1 in 0.4 s: 400000 at 400 by 8000000000000001
    workflow.run.execution.duration {workflowName=ship outcome=incomplete} 1 in 89.6 s: 89600000 at 90000 by 8000000000000001
    ");
}
