//! The bundled webhook payloads, and deliveries of them.

use serde_json::Value;
use uuid::Uuid;

use runspan::runtime::{Delivery, InvalidDelivery};

/// Each payload under the name of its event and action.
pub(super) const BUNDLED: [(&str, &str); 9] = [
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

/// Delivers a payload, under an id of its own, as GitHub does.
pub(super) fn deliver(name: &str) -> Result<Delivery, InvalidDelivery> {
    let (_, body) =
        BUNDLED.iter().find(|(bundled, _)| *bundled == name).expect("the story names bundled payloads only");
    Delivery::from_github(&Uuid::new_v4().to_string(), body.as_bytes())
}

/// The same, about another issue or pull request of that repository.
pub(super) fn about(number: i64, mut delivery: Delivery) -> Delivery {
    if let Some(target) = &mut delivery.target {
        target.number = number;
    }
    delivery
}

/// The same, with other words in its `title`, `body` or `comment`.
pub(super) fn saying(what: &str, words: impl Into<Value>, mut delivery: Delivery) -> Delivery {
    delivery.input.insert(what.to_owned(), words.into());
    delivery
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_says_what_it_is_about() {
        let line = |(name, _): (&str, &str)| {
            let target = deliver(name).unwrap().target;
            let target = target.map_or("-".to_owned(), |it| format!("{} {it}", it.kind.as_str()));
            format!("{name:<30} {target}\n")
        };
        let lines: String = BUNDLED.into_iter().map(line).collect();
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
