//! The bundled webhook payloads, as deliveries: what happened, and on which issue or pull request.

use serde::Deserialize;
use uuid::Uuid;

use crate::run::{Target, TargetKind};

/// Each payload under the name of its event and action.
const BUNDLED: [(&str, &str); 9] = [
    ("issues.opened", include_str!("payloads/issues.opened.json")),
    ("issues.labeled", include_str!("payloads/issues.labeled.json")),
    ("issue_comment.created", include_str!("payloads/issue_comment.created.json")),
    ("pull_request.opened", include_str!("payloads/pull_request.opened.json")),
    ("pull_request.synchronize", include_str!("payloads/pull_request.synchronize.json")),
    ("pull_request_review.submitted", include_str!("payloads/pull_request_review.submitted.json")),
    ("check_suite.completed", include_str!("payloads/check_suite.completed.json")),
    ("release.published", include_str!("payloads/release.published.json")),
    ("workflow_dispatch", include_str!("payloads/workflow_dispatch.json")),
];

/// A payload, as far as a dispatcher needs it.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    /// The event, and its action if it has one.
    pub(super) name: &'static str,
    /// The repository's owner.
    pub(super) owner: String,
    /// The repository's name.
    pub(super) repo: String,
    /// What it is about; a release, say, is about no issue and no pull request.
    pub(super) target: Option<Target>,
}

/// A payload that was delivered. Redelivered, it is another delivery.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    /// GitHub's `X-GitHub-Delivery`.
    pub(super) id: String,
    /// What was delivered.
    pub(super) payload: Payload,
}

impl Payload {
    /// Delivers it.
    pub(super) fn deliver(&self) -> Delivery {
        Delivery { id: Uuid::new_v4().to_string(), payload: self.clone() }
    }

    /// The same, for another issue or pull request of that repository.
    pub(super) fn about(&self, number: i64) -> Self {
        let target = self.target.clone().map(|target| Target { number, ..target });
        Self { target, ..self.clone() }
    }
}

/// All bundled payloads.
pub(super) fn bundled() -> Result<Vec<Payload>, serde_json::Error> {
    BUNDLED.into_iter().map(|(name, text)| parse(name, text)).collect()
}

#[derive(Deserialize)]
struct Wire {
    repository: Repository,
    issue: Option<Issue>,
    pull_request: Option<Numbered>,
    check_suite: Option<CheckSuite>,
}

#[derive(Deserialize)]
struct Repository {
    name: String,
    owner: Owner,
}

#[derive(Deserialize)]
struct Owner {
    login: String,
}

#[derive(Deserialize)]
struct Issue {
    number: i64,
    /// GitHub calls a pull request an issue in events about comments, and says so here.
    pull_request: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Numbered {
    number: i64,
}

#[derive(Deserialize)]
struct CheckSuite {
    pull_requests: Vec<Numbered>,
}

fn parse(name: &'static str, text: &str) -> Result<Payload, serde_json::Error> {
    let Wire { repository, issue, pull_request, check_suite } = serde_json::from_str(text)?;
    let (owner, repo) = (repository.owner.login, repository.name);
    let of_issue = issue.map(|issue| {
        let kind = if issue.pull_request.is_some() { TargetKind::Pr } else { TargetKind::Issue };
        (kind, issue.number)
    });
    let of_suite = check_suite.and_then(|suite| suite.pull_requests.into_iter().next());
    let of_pull_request = pull_request.or(of_suite).map(|pr| (TargetKind::Pr, pr.number));
    let target = of_issue.or(of_pull_request).map(|(kind, number)| Target {
        kind,
        owner: owner.clone(),
        repo: repo.clone(),
        number,
    });
    Ok(Payload { name, owner, repo, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_says_what_it_is_about() {
        let line = |payload: Payload| {
            let target = payload.target.map_or("-".to_owned(), |it| format!("{} {it}", it.kind.as_str()));
            format!("{:<30} {target}\n", payload.name)
        };
        let lines: String = bundled().unwrap().into_iter().map(line).collect();
        insta::assert_snapshot!(lines, @r"
        issues.opened                  issue Codertocat/Hello-World#1
        issues.labeled                 issue Codertocat/Hello-World#1
        issue_comment.created          issue Codertocat/Hello-World#1
        pull_request.opened            pr Codertocat/Hello-World#2
        pull_request.synchronize       pr Codertocat/Hello-World#2
        pull_request_review.submitted  pr Codertocat/Hello-World#2
        check_suite.completed          pr Codertocat/Hello-World#2
        release.published              -
        workflow_dispatch              -
        ");
    }
}
