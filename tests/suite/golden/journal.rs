//! A journal in which everything happens that can.

use runspan::journal::Row;
use uuid::Uuid;

/// The moment that it begins at.
pub(super) const START: i64 = 1_800_000_000_000_000;

/// Two halves, so that no scanner takes this file for a leak.
const SECRET: &str = concat!("gh", "p_Zk2XwB9vLr4TnJ8sGd3HfP6mCy5RtE1aNu7q");

/// Runs are numbered. The ids look like version 7.
fn id(number: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number)
}

/// A transition of `run`, `-` standing for no row, at a time in milliseconds from the beginning.
fn row(millis: i64, run: u128, workflow: &str, change: &str) -> Row {
    let (from, to) = change.split_once(" → ").unwrap();
    let status = |name: &str| (name != "-").then(|| name.to_owned());
    Row {
        at: START + millis * 1_000,
        created_at: Some(START + i64::try_from(run).unwrap() * 1_000),
        run_id: Some(id(run)),
        workflow_name: Some(workflow.to_owned()),
        from_status: status(from),
        to_status: status(to),
        target_type: Some("issue".to_owned()),
        target_owner: Some("acme".to_owned()),
        target_repo: Some("widgets".to_owned()),
        target_number: Some(42),
        delivery_id: Some(format!("delivery-{run}")),
        ..Row::default()
    }
}

fn because(reason: &str, row: Row) -> Row {
    Row { reason: Some(reason.to_owned()), ..row }
}

fn reconciled(row: Row) -> Row {
    Row { reconciled: true, ..row }
}

fn under(parent: u128, root: u128, root_workflow: Option<&str>, row: Row) -> Row {
    Row {
        parent_run_id: Some(id(parent)),
        root_run_id: Some(id(root)),
        root_workflow_name: root_workflow.map(str::to_owned),
        delivery_id: None,
        ..row
    }
}

fn refused(millis: i64, reason: Option<&str>, inflight: Option<(u128, Option<u128>)>) -> Row {
    Row {
        at: START + millis * 1_000,
        workflow_name: Some("triage".to_owned()),
        target_type: Some("pr".to_owned()),
        target_owner: Some("acme".to_owned()),
        target_repo: Some("widgets".to_owned()),
        target_number: Some(7),
        delivery_id: Some("delivery-refused".to_owned()),
        reason: reason.map(str::to_owned),
        inflight_run_id: inflight.map(|(run, _)| id(run)),
        root_run_id: inflight.and_then(|(_, root)| root).map(id),
        ..Row::default()
    }
}

/// A whole run in three rows.
fn life(millis: i64, run: u128, workflow: &str, status: &str, reason: Option<&str>) -> [Row; 3] {
    let end = row(millis + 900, run, workflow, &format!("running → {status}"));
    [
        row(millis, run, workflow, "- → queued"),
        row(millis + 250, run, workflow, "queued → running"),
        Row { reason: reason.map(str::to_owned), ..end },
    ]
}

/// What is read at once, batch by batch.
pub(super) fn batches() -> Vec<Vec<Row>> {
    let mut many = many_events();
    let rest = many.split_off(12);
    vec![begins_and_ends(), failures(), trees(), refusals(), gaps(), conflicts(), odd_values(), many, rest]
}

fn begins_and_ends() -> Vec<Row> {
    let mut rows = Vec::from(life(1, 1, "triage", "succeeded", None));
    rows.extend(life(2, 2, "plan", "incomplete", Some("2 of 5 threads are open")));
    rows.extend(life(3, 3, "plan", "incomplete", None));
    rows.extend([
        Row {
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
            ..row(4, 4, "review", "- → queued")
        },
        Row { traceparent: Some("not one".to_owned()), ..row(5, 5, "review", "- → running") },
        row(6, 6, "triage", "- → queued"),
        row(4_000, 4, "review", "queued → running"),
        // Back to the queue and on again: only the first wait has a span.
        row(5_000, 4, "review", "running → queued"),
        row(6_000, 4, "review", "queued → running"),
        row(7_000, 6, "triage", "queued → -"),
        row(8_000, 5, "review", "running → -"),
        // Earlier than what came before it.
        row(3_500, 4, "review", "running → succeeded"),
        // A restore.
        row(9_000, 7, "triage", "- → succeeded"),
        // Still there when the batch ends.
        Row {
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".to_owned()),
            ..row(9_500, 8, "ship", "- → queued")
        },
        row(9_600, 9, "ship", "- → running"),
    ]);
    rows
}

fn failures() -> Vec<Row> {
    let reasons = [
        "uncaught: panicked at\n  line 3",
        "enqueue failed: no queue",
        "owner lost: executor-3",
        "timeout: 5 min",
        "no such branch",
        "",
    ];
    let mut rows = Vec::new();
    for (run, reason) in (10..).zip(reasons) {
        rows.extend(life(20_000, run, "triage", "failed", Some(reason)));
    }
    rows.extend(life(21_000, 16, "triage", "failed", None));
    let leak = format!("clone of https://bot:{SECRET}@github.com/acme/widgets.git failed");
    rows.extend(life(22_000, 17, "triage", "failed", Some(&leak)));
    rows.extend(life(23_000, 18, "triage", "failed", Some(&"long ".repeat(1_000))));
    rows.extend([
        row(24_000, 19, "plan", "- → queued"),
        because("enqueue failed: connection refused", row(24_500, 19, "plan", "queued → failed")),
        row(24_000, 20, "plan", "- → queued"),
        because("cancelled", row(25_000, 20, "plan", "queued → failed")),
        // Of the batch before.
        because("timeout: 20 s", row(26_000, 8, "ship", "queued → failed")),
        because("left over", row(27_000, 9, "ship", "running → incomplete")),
    ]);
    rows
}

fn trees() -> Vec<Row> {
    let child = |millis, run, change| under(30, 30, Some("ship"), row(millis, run, "plan", change));
    let mut rows = vec![
        row(30_000, 30, "ship", "- → queued"),
        row(30_100, 30, "ship", "queued → running"),
        child(30_200, 31, "- → queued"),
        child(30_300, 31, "queued → running"),
        under(31, 30, Some("ship"), row(30_400, 32, "review", "- → running")),
        under(31, 30, Some("ship"), row(30_500, 32, "review", "running → succeeded")),
        child(30_600, 31, "running → succeeded"),
        row(30_700, 30, "ship", "running → succeeded"),
        // Children of parents that ended, the root and another.
        child(30_800, 33, "- → queued"),
        under(31, 30, Some("ship"), row(30_900, 34, "review", "- → queued")),
        reconciled(under(31, 30, None, row(31_000, 35, "review", "- → queued"))),
        // Its root's row is gone.
        under(36, 37, None, row(31_100, 38, "review", "- → queued")),
    ];
    rows.extend(
        [33, 34, 35, 38].map(|run| row(31_500, run, if run == 33 { "plan" } else { "review" }, "queued → -")),
    );
    rows
}

fn refusals() -> Vec<Row> {
    vec![
        row(40_000, 40, "triage", "- → queued"),
        refused(40_100, Some("workflow-dispatch-inflight"), Some((40, None))),
        refused(40_200, Some("workflow-dispatch-inflight"), Some((31, Some(30)))),
        refused(40_300, Some("context-mismatch"), None),
        refused(40_400, Some("missing-prior-output"), None),
        refused(40_500, Some("another\treason"), None),
        refused(40_600, None, None),
        Row {
            target_type: None,
            target_owner: None,
            target_number: None,
            delivery_id: None,
            ..refused(40_700, Some("context-mismatch"), None)
        },
    ]
}

fn gaps() -> Vec<Row> {
    vec![
        // Begun before anybody looked.
        row(50_000, 50, "plan", "queued → running"),
        row(50_100, 51, "plan", "running → succeeded"),
        row(50_200, 52, "plan", "paused → running"),
        row(50_300, 53, "plan", "paused → failed"),
        row(50_400, 52, "plan", "paused → incomplete"),
        reconciled(row(50_500, 54, "plan", "- → queued")),
        reconciled(row(50_600, 55, "plan", "- → running")),
        // No news: the journal has said so.
        reconciled(row(50_700, 40, "triage", "- → queued")),
        reconciled(row(50_800, 54, "plan", "queued → running")),
        reconciled(row(50_900, 54, "plan", "queued → running")),
        because("owner lost: executor-1", reconciled(row(51_000, 54, "plan", "running → failed"))),
        reconciled(row(51_100, 55, "plan", "running → -")),
        // Its running was missed.
        row(51_200, 40, "triage", "running → succeeded"),
        row(51_300, 50, "plan", "running → succeeded"),
        // Inserted again: the deletion was missed.
        row(51_400, 56, "plan", "- → queued"),
        row(51_500, 56, "plan", "queued → running"),
        row(51_600, 56, "plan", "- → queued"),
    ]
}

fn conflicts() -> Vec<Row> {
    vec![
        row(60_000, 56, "plan", "queued → succeeded"),
        because("owner lost: too late", row(60_100, 56, "plan", "succeeded → failed")),
        // Alive again, and ended again: no second span.
        row(60_200, 1, "triage", "succeeded → queued"),
        row(60_300, 1, "triage", "queued → running"),
        row(60_400, 1, "triage", "running → succeeded"),
        row(60_500, 2, "plan", "incomplete → running"),
        // The end itself was missed.
        row(60_600, 60, "plan", "- → running"),
        row(60_700, 60, "plan", "failed → queued"),
        row(60_800, 60, "plan", "queued → -"),
        row(60_900, 61, "plan", "failed → -"),
        // A child of a run that came back to life.
        under(2, 2, Some("plan"), row(61_000, 62, "review", "- → queued")),
    ]
}

fn odd_values() -> Vec<Row> {
    let named = |run, workflow: &str| row(70_000, run, workflow, "- → queued");
    let odd = Row {
        target_type: Some("branch".to_owned()),
        target_owner: Some("ac\"me".to_owned()),
        target_repo: Some("wid\u{1b}[31mgets".to_owned()),
        target_number: Some(-1),
        delivery_id: Some("\u{7f}{\\}".to_owned()),
        ..named(70, "line\nbreak\tand “quotes” 🦀")
    };
    let mut rows = vec![
        odd.clone(),
        Row { at: odd.at + 5_000, from_status: odd.to_status.clone(), to_status: None, ..odd },
        Row { target_repo: None, ..named(71, &"long".repeat(50)) },
        named(72, ""),
        // Of before the epoch, and ids of zeros.
        Row { at: -1, created_at: Some(i64::MIN), ..named(73, "plan") },
        Row { run_id: Some(Uuid::nil()), created_at: None, ..named(0, "plan") },
        // Not random: version 1.
        Row { run_id: Some(Uuid::from_u128(0x2c1d_43b8_e6d7_11ee_a951_0242_ac12_0002)), ..named(74, "plan") },
        // Its own parent.
        under(75, 75, Some("plan"), named(75, "plan")),
        Row { at: i64::MAX, ..row(0, 71, "long", "queued → running") },
        row(71_000, 73, "plan", "queued → running"),
        row(72_000, 73, "plan", "running → succeeded"),
        row(71_000, 75, "plan", "queued → succeeded"),
        row(71_000, 72, "", "queued → running"),
    ];
    rows.extend([
        Row { run_id: Some(Uuid::nil()), ..row(71_000, 0, "plan", "queued → running") },
        Row { run_id: Some(Uuid::nil()), ..row(72_000, 0, "plan", "running → failed") },
        Row {
            run_id: Some(Uuid::from_u128(0x2c1d_43b8_e6d7_11ee_a951_0242_ac12_0002)),
            ..row(71_000, 74, "plan", "queued → incomplete")
        },
    ]);
    rows
}

/// More events than a span carries: of children, and of the runs' own.
fn many_events() -> Vec<Row> {
    let mut rows = vec![row(80_000, 80, "ship", "- → running"), row(80_000, 81, "plan", "- → queued")];
    for step in 0..140_u16 {
        let (millis, run) = (80_001 + i64::from(step), 1_000 + u128::from(step));
        rows.push(under(80, 80, Some("ship"), row(millis, run, "plan", "- → queued")));
        rows.push(under(80, 80, Some("ship"), row(millis, run, "plan", "queued → -")));
        let change = if step % 2 == 0 { "queued → running" } else { "running → queued" };
        rows.push(row(millis, 81, "plan", change));
    }
    rows.push(row(81_000, 80, "ship", "running → queued"));
    rows.push(row(81_500, 80, "ship", "queued → running"));
    rows.push(because("enqueue failed: full", row(82_000, 81, "plan", "queued → failed")));
    rows.push(row(83_000, 80, "ship", "running → succeeded"));
    rows
}

/// One run of each of more workflows than have series of their own.
pub(super) fn many_workflows() -> Vec<Row> {
    (1..=205).flat_map(|run| life(0, run, &format!("workflow-{run:03}"), "succeeded", None)).collect()
}
