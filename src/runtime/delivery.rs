//! A webhook delivery, reduced to what the dispatcher and the handlers need.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::run::{Target, TargetKind};

/// A delivery: an event on an issue or pull request.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// The delivery's id: GitHub's `X-GitHub-Delivery`. A redelivery has the same id.
    pub id: String,
    /// The repository's owner.
    pub owner: String,
    /// The repository's name.
    pub repo: String,
    /// The issue or pull request; `None` for other events, such as releases.
    pub target: Option<Target>,
    /// Its content, for the handlers.
    pub input: Map<String, Value>,
    /// The W3C `traceparent` of the request that brought it: the run's span links to it.
    pub traceparent: Option<String>,
}

/// Why a payload is invalid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidDelivery {
    /// It is not a GitHub payload.
    #[error("delivery {id}: not a GitHub webhook payload: {cause}")]
    Malformed {
        /// The delivery.
        id: String,
        /// The position, and what was expected.
        cause: serde_json::Error,
    },
    /// The number of its issue or pull request is invalid.
    #[error("delivery {id}: {number} is not an issue or pull request number: numbers start at 1")]
    Number {
        /// The delivery.
        id: String,
        /// The number.
        number: i64,
    },
}

#[derive(Deserialize)]
struct Payload {
    repository: Repository,
    issue: Option<Subject>,
    pull_request: Option<Subject>,
    check_suite: Option<CheckSuite>,
    comment: Option<Text>,
    review: Option<Text>,
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
struct Subject {
    number: i64,
    title: Option<String>,
    body: Option<String>,
    additions: Option<u64>,
    deletions: Option<u64>,
    changed_files: Option<u64>,
    /// Present if GitHub describes a pull request as an issue, as in events about comments.
    pull_request: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct CheckSuite {
    pull_requests: Vec<Subject>,
}

#[derive(Deserialize)]
struct Text {
    body: Option<String>,
}

impl Delivery {
    /// From the body of a GitHub webhook request.
    ///
    /// ```
    /// use runspan::runtime::Delivery;
    ///
    /// let body = r#"{"repository": {"name": "widgets", "owner": {"login": "acme"}}, "issue": {"number": 42}}"#;
    /// let delivery = Delivery::from_github("72d3162e", body.as_bytes())?;
    /// assert_eq!(delivery.target.unwrap().to_string(), "acme/widgets#42");
    /// # Ok::<(), runspan::runtime::InvalidDelivery>(())
    /// ```
    pub fn from_github(id: &str, body: &[u8]) -> Result<Self, InvalidDelivery> {
        let malformed = |cause| InvalidDelivery::Malformed { id: id.to_owned(), cause };
        let payload: Payload = serde_json::from_slice(body).map_err(malformed)?;
        let (owner, repo) = (payload.repository.owner.login, payload.repository.name);
        let issue = payload.issue.map(|issue| {
            let kind = if issue.pull_request.is_some() { TargetKind::Pr } else { TargetKind::Issue };
            (kind, issue)
        });
        let suite = payload.check_suite.and_then(|suite| suite.pull_requests.into_iter().next());
        let pull_request = payload.pull_request.or(suite).map(|subject| (TargetKind::Pr, subject));
        let subject = issue.or(pull_request);
        if let Some((_, Subject { number, .. })) = &subject
            && *number < 1
        {
            return Err(InvalidDelivery::Number { id: id.to_owned(), number: *number });
        }
        let mut input = Map::new();
        let mut insert = |key: &str, value: Option<Value>| {
            input.extend(value.map(|value| (key.to_owned(), value)));
        };
        if let Some((_, subject)) = &subject {
            insert("title", subject.title.as_ref().map(|title| json!(title)));
            insert("body", subject.body.as_ref().map(|body| json!(body)));
            insert("additions", subject.additions.map(|lines| json!(lines)));
            insert("deletions", subject.deletions.map(|lines| json!(lines)));
            insert("changedFiles", subject.changed_files.map(|files| json!(files)));
        }
        let comment = payload.comment.or(payload.review).and_then(|comment| comment.body);
        insert("comment", comment.map(|comment| json!(comment)));
        let target = subject.map(|(kind, subject)| Target {
            kind,
            owner: owner.clone(),
            repo: repo.clone(),
            number: subject.number,
        });
        Ok(Self { id: id.to_owned(), owner, repo, target, input, traceparent: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(body: &str) -> String {
        Delivery::from_github("d-1", body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_delivery_and_the_position() {
        assert_eq!(
            error("{\"repository\": "),
            "delivery d-1: not a GitHub webhook payload: EOF while parsing a value at line 1 column 15"
        );
        assert_eq!(
            error("{}"),
            "delivery d-1: not a GitHub webhook payload: missing field `repository` at line 1 column 2"
        );
        let repository = r#""repository": {"name": "widgets", "owner": {"login": "acme"}}"#;
        assert_eq!(
            error(&format!("{{{repository}, \"issue\": {{\"number\": 0}}}}")),
            "delivery d-1: 0 is not an issue or pull request number: numbers start at 1"
        );
        assert!(error(&format!("{{{repository}, \"issue\": {{\"number\": \"1\"}}}}")).contains("column"));
    }
}
