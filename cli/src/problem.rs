//! What the tool says when it cannot do what it was asked, and the code it exits with.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use stoker_aws::registry::Status;
use stoker_core::error::{CallError, Failure, chain};
use stoker_core::partition::registry_region;

use crate::reference::Reference;

/// The answer is "no": not sound, not the same, not a cache.
pub(crate) const NO: u8 = 1;
/// The command line asks for something that does not exist or makes no sense.
pub(crate) const USAGE: u8 = 2;
/// A registry or a network call failed.
pub(crate) const CALL_FAILED: u8 = 3;

/// One sentence, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    code: u8,
    text: String,
    next: String,
}

impl Problem {
    pub(crate) fn no(text: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code: NO, text: text.into(), next: next.into() }
    }

    pub(crate) fn usage(text: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code: USAGE, text: text.into(), next: next.into() }
    }

    pub(crate) fn failed(text: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code: CALL_FAILED, text: text.into(), next: next.into() }
    }

    /// A failed call, in the words of somebody who typed a reference.
    pub(crate) fn call(doing: &str, reference: &Reference, error: &CallError) -> Self {
        Self::call_to(&format!("{doing} {reference}"), reference, error)
    }

    /// A failed call at a reference's registry, in the words of `doing` alone.
    pub(crate) fn call_to(doing: &str, reference: &Reference, error: &CallError) -> Self {
        let status = error.source().and_then(|cause| cause.downcast_ref::<Status>());
        let host = reference.host();
        let cause = error.source().map_or_else(|| error.to_string(), cause_of);
        let (why, next) = match (error.failure, status.map(|status| status.code)) {
            (_, Some(401 | 403)) => (format!("{host} does not allow it ({cause})"), log_in(reference)),
            (Failure::NotFound, _) => (
                format!("{host} finds nothing there ({cause})"),
                "check the spelling of repository and tag; some registries say so too to who may not read"
                    .to_owned(),
            ),
            (Failure::Throttled, _) => {
                (format!("{host} asks for patience ({cause})"), "try again in some minutes".to_owned())
            }
            (Failure::Unavailable, None) => (
                format!("no usable answer from {host} ({cause})"),
                "check the host's name, the network, and HTTPS_PROXY if you need a proxy; then try again"
                    .to_owned(),
            ),
            (Failure::Unavailable, Some(_)) => {
                (format!("{host} has a fault of its own ({cause})"), "try again later".to_owned())
            }
            (Failure::Refused, None) if error.operation.starts_with("ecr:") => {
                (format!("AWS gives no password for {host} ({cause})"), log_in(reference))
            }
            (Failure::Refused, _) => (
                format!("{} of {}: {cause}", error.operation, error.subject),
                "this is the registry's decision or its mistake: ask whoever runs it".to_owned(),
            ),
        };
        Self::failed(format!("cannot {doing}: {why}"), next)
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn next(&self) -> &str {
        &self.next
    }

    pub(crate) fn is_no(&self) -> bool {
        self.code == NO
    }
}

fn log_in(reference: &Reference) -> String {
    if registry_region(reference.host()).is_some() {
        "check `aws sts get-caller-identity`, and that this identity may pull from (and, to write, push to) the \
         repository"
            .to_owned()
    } else {
        format!("log in with `docker login {}`, as somebody who may", reference.login())
    }
}

fn cause_of(cause: &(dyn Error + 'static)) -> String {
    // Registries answer JSON; their message is all that a person wants of it.
    let Some(status) = cause.downcast_ref::<Status>() else { return chain(cause) };
    let answer: Option<serde_json::Value> = serde_json::from_str(&status.words).ok();
    let message = answer.as_ref().and_then(|answer| {
        let message = answer.pointer("/errors/0/message").or_else(|| answer.get("details"));
        message.and_then(serde_json::Value::as_str).filter(|message| !message.is_empty())
    });
    match message {
        Some(message) => format!("status {}: {message}", status.code),
        None => status.to_string(),
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n next: {}", self.text, self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(reference: &str, failure: Failure, code: u16, words: &str) -> String {
        let cause = Status { code, words: words.to_owned() };
        let error = CallError::new("registry:GetManifest", "app at main", failure, cause);
        Problem::call("read", &reference.parse().unwrap(), &error).to_string()
    }

    #[test]
    fn failures_are_reported_in_a_sentence_with_what_to_do() {
        let json = r#"{"errors":[{"code":"DENIED","message":"not you"}]}"#;
        assert_eq!(
            reported("registry.example/app:main", Failure::Refused, 403, json),
            "error: cannot read registry.example/app:main: registry.example does not allow it (status 403: not you)\n \
             next: log in with `docker login registry.example`, as somebody who may"
        );
        let ecr = reported("123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:a", Failure::Refused, 401, "");
        assert!(ecr.contains("aws sts get-caller-identity"), "{ecr}");
        let missing = reported("registry.example/app:main", Failure::NotFound, 404, "<html>");
        assert!(missing.contains("finds nothing there (status 404: <html>)"), "{missing}");
    }
}
