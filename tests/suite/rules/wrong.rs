//! That what is wrong is named.

use super::{Sources, problems};

/// What [`problems`] says when `right` in one of the sources is `wrong`.
fn said(source: fn(&mut Sources) -> &mut String, right: &str, wrong: &str) -> String {
    let mut sources = Sources::of_tree();
    let text = source(&mut sources);
    assert!(text.contains(right), "{right}");
    *text = text.replacen(right, wrong, 1);
    let problems: String = problems(&sources).iter().map(|problem| format!("    {problem}\n")).collect();
    format!("{right:?} → {wrong:?}\n{problems}")
}

#[test]
fn what_is_wrong_is_named() {
    let alerts = |right, wrong| said(|sources| &mut sources.alerts, right, wrong);
    let recording = |right, wrong| said(|sources| &mut sources.recording, right, wrong);
    let tests = |right, wrong| said(|sources| &mut sources.tests[0], right, wrong);
    let page = |right, wrong| said(|sources| &mut sources.page, right, wrong);
    let all = [
        alerts("runspan_journal_set_aside)", "runspan_journal_aside)"),
        alerts("oldest_age_seconds{status=", "oldest_age_seconds{state="),
        alerts("max by (database) (runspan_journal_set", "max by (db) (runspan_journal_set"),
        alerts("increase20m", "increase21m"),
        alerts("for: 2m", "keep_firing_for: 2m"),
        alerts("severity: ticket", "severity: warning"),
        alerts("#workflowrunsfailing", "#failing"),
        alerts("window: 3d", "window: 4d"),
        alerts("alert: RunspanItemsDropped", "alert: RunspanItemsLost"),
        recording("seconds:p99_1w", "seconds:p98_1w"),
        alerts("run.enqueue_failed", "run.enqueue_fails"),
        tests("job=\"bot\", instance=\"db1\"", "app=\"bot\", instance=\"db1\""),
        page("### RunspanRelaySilent", "### RunspanRelayGone"),
    ];
    insta::assert_snapshot!(all.concat(), @r####"
    "runspan_journal_set_aside)" → "runspan_journal_aside)"
        RunspanEntriesSetAside: there is no metric runspan_journal_aside
        RunspanEntriesSetAside: nothing here has the label database
    "oldest_age_seconds{status=" → "oldest_age_seconds{state="
        WorkflowQueueStalled: workflow_run_oldest_age_seconds has no label state
    "max by (database) (runspan_journal_set" → "max by (db) (runspan_journal_set"
        RunspanEntriesSetAside: nothing here has the label db
    "increase20m" → "increase21m"
        WorkflowRunsFailing: there is no metric job_workflowName_outcome:workflow_run_duration_seconds_count:increase21m
    "for: 2m" → "keep_firing_for: 2m"
        WorkflowRunsFailing: no `for`
    "severity: ticket" → "severity: warning"
        WorkflowRunsFailing: its severity is neither page nor ticket
        WorkflowRunsFailing: no test has it fire as {"severity":"warning","window":"3d"}
    "#workflowrunsfailing" → "#failing"
        WorkflowRunsFailing: its runbook_url is not docs/operate/alerts.md#workflowrunsfailing
    "window: 3d" → "window: 4d"
        WorkflowRunsFailing: no test has it fire as {"severity":"ticket","window":"4d"}
    "alert: RunspanItemsDropped" → "alert: RunspanItemsLost"
        RunspanItemsLost: its runbook_url is not docs/operate/alerts.md#runspanitemslost
        RunspanItemsLost: no test has it fire as {"severity":"page"}
        RunspanItemsLost: no test has it quiet
        RunspanItemsLost: 0 sections, instead of one, in docs/operate/alerts.md
        docs/operate/alerts.md: there is no alert RunspanItemsDropped
    "seconds:p99_1w" → "seconds:p98_1w"
        WorkflowRunStuck: there is no metric job_workflowName:workflow_run_duration_seconds:p99_1w
        WorkflowRunStuck: there is no metric job_workflowName:workflow_run_duration_seconds:p99_1w
        job_workflowName:workflow_run_duration_seconds:p98_1w: nobody asks for it
    "run.enqueue_failed" → "run.enqueue_fails"
        WorkflowEnqueueFailing: event is never workflow.run.enqueue_fails
    "job=\"bot\", instance=\"db1\"" → "app=\"bot\", instance=\"db1\""
        test "a nightly run fails three nights in a row, and then is mended": workflow_run_duration_seconds_count has no label app
    "### RunspanRelaySilent" → "### RunspanRelayGone"
        RunspanRelaySilent: 0 sections, instead of one, in docs/operate/alerts.md
        docs/operate/alerts.md: there is no alert RunspanRelayGone
    "####);
}
