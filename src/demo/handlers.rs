//! The handlers of the demo's workflows: small tasks on the delivery's content.
//!
//! Only the waits are made up: each stands for a call to another service.

use std::collections::HashMap;
use std::future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::sleep;
use tracing::instrument;
use url::Url;

use runspan::runtime::{BoxError, Context, Outcome, Workflow};

/// How long plan may take: a host that it reads from may never answer. (It waits for nothing else that can take long,
/// such as a busy database.)
const TIMEOUT: Duration = Duration::from_millis(1_300);

/// Words that are often misspelt, and their spelling.
const SPELLING: [(&str, &str); 3] =
    [("accidently", "accidentally"), ("recieve", "receive"), ("seperate", "separate")];

/// The workflow of that name.
pub(super) fn workflow(name: &'static str, remarks: &Remarks) -> Workflow {
    let remarks = remarks.clone();
    match name {
        "triage" => Workflow::new(name, triage),
        "plan" => Workflow::new(name, plan).timeout(TIMEOUT),
        "implement" => Workflow::new(name, implement),
        "review" => Workflow::new(name, move |context| review(context, remarks.clone())),
        _ => Workflow::new(name, move |context| resolve(context, remarks.clone())),
    }
}

/// What kind of issue it is. A request is planned at once.
async fn triage(context: Context) -> Result<Outcome, BoxError> {
    let text = read_issue(&context).await;
    let kind = classify(&text).await;
    context.set_state(keep("kind", kind)).await?;
    if kind == "request" {
        let child = context.hand_off("plan").await?;
        return Ok(Outcome::HandedOff { child });
    }
    Ok(Outcome::Succeeded)
}

/// A checklist of the issue's sentences; its questions are for somebody else.
async fn plan(context: Context) -> Result<Outcome, BoxError> {
    let body = said(&context, "body");
    if let Err(reason) = read_links(body).await {
        return Ok(Outcome::Failed { reason });
    }
    let (questions, steps) = list_steps(body).await;
    let checklist: Vec<String> = steps.iter().map(|step| format!("- [ ] {step}")).collect();
    post_plan(&checklist).await;
    Ok(match questions.len() {
        0 => Outcome::Succeeded,
        1 => Outcome::Incomplete { reason: "1 question has no answer".to_owned() },
        more => Outcome::Incomplete { reason: format!("{more} questions have no answer") },
    })
}

/// A branch, with a note of what is to change.
async fn implement(context: Context) -> Result<Outcome, BoxError> {
    let title = said(&context, "title");
    let words = title.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
    let slug = words.map(str::to_lowercase).collect::<Vec<_>>().join("-");
    let branch = format!("issue-{}-{slug}", context.run().target.number);
    let note = write_note(&branch, title, said(&context, "body")).await;
    let lines = note.lines().count();
    let diffstat = format!("CHANGES.md | {lines} {}", "+".repeat(lines));
    context
        .set_state(Map::from_iter([
            ("branch".to_owned(), branch.into()),
            ("diffstat".to_owned(), diffstat.into()),
        ]))
        .await?;
    Ok(Outcome::Succeeded)
}

/// Remarks on spelling, and on titles that do not say what kind of change it is.
async fn review(context: Context, remarks: Remarks) -> Result<Outcome, BoxError> {
    let body = said(&context, "body");
    if let Err(reason) = read_links(body).await {
        return Ok(Outcome::Failed { reason });
    }
    let found = find_remarks(said(&context, "title"), body).await;
    context.set_state(keep("remarks", found.clone())).await?;
    post_remarks(&context, found, &remarks).await;
    Ok(Outcome::Succeeded)
}

/// An answer to one remark; the rest is for another round.
async fn resolve(context: Context, remarks: Remarks) -> Result<Outcome, BoxError> {
    let comment = said(&context, "comment");
    if let Err(reason) = read_links(comment).await {
        return Ok(Outcome::Failed { reason });
    }
    if let Some(number) = line_number(comment) {
        let lines: Vec<&str> = said(&context, "body").lines().collect();
        // The bug: nobody has looked whether there is such a line.
        context.set_state(keep("quoted", lines[number - 1])).await?;
    }
    let (open, all) = answer(&context, &remarks).await;
    context.set_state(keep("openRemarks", open)).await?;
    Ok(match open {
        0 => Outcome::Succeeded,
        _ => Outcome::Incomplete { reason: format!("{open} of {all} remarks is open") },
    })
}

/// What has been remarked on each issue and pull request. (It stands for GitHub, which keeps what runs come to.)
#[derive(Clone, Default)]
pub(super) struct Remarks(Arc<Mutex<HashMap<String, Thread>>>);

/// The remarks on one.
#[derive(Default)]
struct Thread {
    open: Vec<String>,
    answered: Vec<String>,
}

impl Remarks {
    /// What `see` has to say of the thread of this run's target.
    fn thread<T>(&self, context: &Context, see: impl FnOnce(&mut Thread) -> T) -> T {
        // Sound whoever panicked: nothing is ever half done.
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        see(threads.entry(context.run().target.to_string()).or_default())
    }
}

#[instrument(skip_all)]
async fn read_issue(context: &Context) -> String {
    service(50).await;
    format!("{}\n{}", said(context, "title"), said(context, "body")).to_lowercase()
}

#[instrument(skip_all)]
async fn classify(text: &str) -> &'static str {
    service(40).await;
    [("please", "request"), ("spelling", "documentation"), ("?", "question")]
        .into_iter()
        .find(|(sign, _)| text.contains(sign))
        .map_or("bug", |(_, kind)| kind)
}

/// The questions and the other sentences.
#[instrument(skip_all)]
async fn list_steps(body: &str) -> (Vec<&str>, Vec<&str>) {
    service(60).await;
    let sentences = body.split_inclusive(['.', '?', '!']).map(str::trim);
    sentences.filter(|sentence| sentence.len() > 1).partition(|sentence| sentence.ends_with('?'))
}

#[instrument(skip_all, fields(steps = checklist.len()))]
async fn post_plan(checklist: &[String]) {
    service(40).await;
}

#[instrument(skip(title, body))]
async fn write_note(branch: &str, title: &str, body: &str) -> String {
    service(70).await;
    let note = format!("{title}\n{body}");
    run_tests().await;
    note
}

#[instrument]
async fn run_tests() {
    service(120).await;
}

#[instrument(skip_all)]
async fn find_remarks(title: &str, body: &str) -> Vec<String> {
    service(50).await;
    let misspelt = SPELLING.into_iter().filter(|(wrong, _)| body.contains(wrong));
    let mut remarks: Vec<String> = misspelt.map(|(wrong, right)| format!("{wrong}: {right}")).collect();
    if !title.contains(": ") {
        remarks.push("the title does not say what kind of change it is".to_owned());
    }
    remarks
}

/// Posts what has not been remarked before.
#[instrument(skip_all, fields(remarks = found.len()))]
async fn post_remarks(context: &Context, mut found: Vec<String>, remarks: &Remarks) {
    service(40).await;
    remarks.thread(context, |thread| {
        found.retain(|remark| !thread.open.contains(remark) && !thread.answered.contains(remark));
        thread.open.append(&mut found);
    });
}

/// Answers a remark, if one is open; how many are open then, of how many.
#[instrument(skip_all)]
async fn answer(context: &Context, remarks: &Remarks) -> (usize, usize) {
    service(80).await;
    remarks.thread(context, |thread| {
        thread.answered.extend(thread.open.pop());
        (thread.open.len(), thread.open.len() + thread.answered.len())
    })
}

/// Reads what a text links to, or says what cannot be read.
async fn read_links(text: &str) -> Result<(), String> {
    for link in text.split_whitespace().filter_map(|word| Url::parse(word).ok()).filter(Url::has_host) {
        read_link(&link, link.host_str().unwrap_or_default()).await?;
    }
    Ok(())
}

#[instrument(skip(link))]
async fn read_link(link: &Url, host: &str) -> Result<(), String> {
    service(20).await;
    if link.password().is_some() {
        return Err(format!("403 at {link}"));
    }
    // No host is named so (RFC 2606): here one that takes calls, and never answers.
    if host.ends_with(".invalid") {
        future::pending::<()>().await;
    }
    Ok(())
}

/// A call to another service: what it takes.
async fn service(millis: u64) {
    sleep(Duration::from_millis(rand::random_range(millis..2 * millis))).await;
}

/// The text under a key of what the delivery said.
fn said<'a>(context: &'a Context, key: &str) -> &'a str {
    context.input()[key].as_str().unwrap_or_default()
}

/// The number in `line 3`.
fn line_number(comment: &str) -> Option<usize> {
    let (_, after) = comment.split_once("line ")?;
    let digits = after.split(|letter: char| !letter.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|number| *number > 0)
}

fn keep(key: &str, value: impl Into<Value>) -> Map<String, Value> {
    Map::from_iter([(key.to_owned(), value.into())])
}
