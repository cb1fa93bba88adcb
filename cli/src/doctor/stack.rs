//! The stack that Stoker was deployed as.

use stoker_aws_setup::Resource;
use stoker_core::onboard;

use super::finding::{Fact, Finding};
use crate::text::{count, plain};

const FUNCTION: &str = "AWS::Lambda::Function";
const FUNCTIONS: [&str; 7] = [
    "EnforceRetention",
    "PromoteCache",
    "ReceiveCodecommit",
    "ReceiveWebhook",
    "ResolveCache",
    "StartBuild",
    "WarmMain",
];
const DEAD_LETTERS: [&str; 2] = ["DeadLetters", "PromotionDeadLetters"];
/// A queue in which more wait does not keep up.
const MOST_WAITING: u64 = 1000;

/// A stack as AWS describes it.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) described: onboard::Stack,
    pub(super) resources: Fact<Vec<Resource>>,
    /// Messages in the queues, by their logical names.
    pub(super) queues: Vec<(String, Fact<u64>)>,
}

impl Stack {
    /// One of which nothing is known but a parameter.
    #[cfg(test)]
    pub(super) fn with(parameter: &str, value: &str) -> Self {
        Self {
            described: onboard::Stack {
                parameters: [(parameter.to_owned(), value.to_owned())].into(),
                ..onboard::Stack::default()
            },
            resources: Ok(Vec::new()),
            queues: Vec::new(),
        }
    }

    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.described.parameters.get(name).map(String::as_str)
    }

    /// What a resource of the template is in AWS: a name, an ARN or an address.
    pub(super) fn resource(&self, name: &str) -> Option<&str> {
        let resources = self.resources.as_ref().ok()?;
        resources.iter().find(|resource| resource.name == name).map(|resource| resource.id.as_str())
    }
}

pub(super) fn check(name: &str, stack: &Fact<Option<Stack>>) -> Vec<Finding> {
    match stack {
        Ok(Some(stack)) => {
            let mut findings = vec![status(name, stack), functions(name, stack)];
            findings
                .extend(stack.queues.iter().map(|(queue_name, messages)| queue(name, queue_name, messages)));
            findings
        }
        Ok(None) => vec![Finding::wrong(
            "deployed",
            format!("there is no stack {} here: nothing promotes, warms or deletes", plain(name)),
            "name it with --stack, set AWS_REGION to where it is, or deploy it: sam build && sam deploy --guided",
        )],
        Err(missing) => vec![Finding::missing("deployed", missing)],
    }
}

fn status(name: &str, stack: &Stack) -> Finding {
    const CHECK: &str = "deployed";
    let events = format!("aws cloudformation describe-stack-events --stack-name {name}");
    match stack.described.status.as_str() {
        "CREATE_COMPLETE" | "UPDATE_COMPLETE" | "IMPORT_COMPLETE" => {
            Finding::ok(CHECK, stack.described.status.clone())
        }
        "UPDATE_ROLLBACK_COMPLETE" => Finding::warn(
            CHECK,
            "UPDATE_ROLLBACK_COMPLETE: the last deployment failed, and the one before runs",
            format!("see why, and deploy again: {events}"),
        ),
        status if status.ends_with("_IN_PROGRESS") => Finding::warn(
            CHECK,
            format!("{}: it is being changed", plain(status)),
            "run this again when that is done",
        ),
        status => Finding::wrong(CHECK, plain(status), format!("see why: {events}")),
    }
}

fn functions(name: &str, stack: &Stack) -> Finding {
    const CHECK: &str = "functions";
    let resources = match &stack.resources {
        Ok(resources) => resources,
        Err(missing) => return Finding::missing(CHECK, missing),
    };
    let is_there =
        |function: &&&str| resources.iter().any(|there| there.kind == FUNCTION && there.name == **function);
    let absent: Vec<&str> = FUNCTIONS.iter().filter(|function| !is_there(function)).copied().collect();
    if !absent.is_empty() {
        return Finding::wrong(
            CHECK,
            format!("the stack has no {}: is it Stoker's, and of this version?", absent.join(", ")),
            format!(
                "name Stoker's stack with --stack, or deploy this version: sam build && sam deploy --stack-name {name}"
            ),
        );
    }
    let failed = resources.iter().filter(|there| there.status.ends_with("_FAILED"));
    let failed: Vec<String> =
        failed.map(|there| format!("{} is {}", plain(&there.name), plain(&there.status))).collect();
    if !failed.is_empty() {
        let repair = format!("see why: aws cloudformation describe-stack-events --stack-name {name}");
        return Finding::wrong(CHECK, failed.join(", "), repair);
    }
    Finding::ok(CHECK, format!("all {}", FUNCTIONS.len()))
}

fn queue(stack: &str, name: &str, messages: &Fact<u64>) -> Finding {
    let is_dead = DEAD_LETTERS.contains(&name);
    let check = if is_dead { "dead letters" } else { "queue" };
    let messages = match messages {
        Ok(messages) => *messages,
        Err(missing) => return Finding::missing(check, missing),
    };
    let found =
        format!("{} in {}", count(usize::try_from(messages).unwrap_or(usize::MAX), "message"), plain(name));
    match (is_dead, messages) {
        (_, 0) | (false, ..=MOST_WAITING) => Finding::ok(check, found),
        (true, _) => Finding::wrong(
            check,
            format!("{found}: something could not be delivered or handled"),
            format!(
                "see what it is: stoker redrive --stack {stack} --queue {name}; repair the cause, then the same \
                 with --yes"
            ),
        ),
        (false, _) => Finding::warn(
            check,
            format!("{found}: it does not keep up"),
            "see the function's log; pushes wait where CodeBuild's limits let no more builds start",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use crate::deployed::Missing;

    fn resource(name: &str, status: &str) -> Resource {
        Resource {
            name: name.to_owned(),
            kind: FUNCTION.to_owned(),
            id: String::new(),
            status: status.to_owned(),
        }
    }

    fn sound() -> Stack {
        Stack {
            described: onboard::Stack { status: "UPDATE_COMPLETE".to_owned(), ..onboard::Stack::default() },
            resources: Ok(FUNCTIONS.map(|name| resource(name, "CREATE_COMPLETE")).to_vec()),
            queues: vec![("DeadLetters".to_owned(), Ok(0)), ("StartQueue".to_owned(), Ok(3))],
        }
    }

    fn states(change: impl FnOnce(&mut Stack)) -> Vec<(&'static str, State)> {
        let mut stack = sound();
        change(&mut stack);
        check("stoker", &Ok(Some(stack))).iter().map(|f| (f.check, f.state)).collect()
    }

    #[test]
    fn each_defect_is_its_own() {
        use State::{Ok as Fine, Unknown, Warn, Wrong};
        let of = |deployed, functions, dead, queue| {
            vec![("deployed", deployed), ("functions", functions), ("dead letters", dead), ("queue", queue)]
        };
        let missing = || Missing { action: "sqs:GetQueueAttributes", is_denied: true, why: String::new() };
        assert_eq!(states(|_| ()), of(Fine, Fine, Fine, Fine));
        assert_eq!(states(|s| s.described.status = "ROLLBACK_COMPLETE".into()), of(Wrong, Fine, Fine, Fine));
        assert_eq!(
            states(|s| s.described.status = "UPDATE_ROLLBACK_COMPLETE".into()),
            of(Warn, Fine, Fine, Fine)
        );
        assert_eq!(states(|s| s.described.status = "UPDATE_IN_PROGRESS".into()), of(Warn, Fine, Fine, Fine));
        assert_eq!(states(|s| s.resources = Ok(Vec::new())), of(Fine, Wrong, Fine, Fine));
        assert_eq!(
            states(|s| s.resources.as_mut().unwrap()[1].status = "UPDATE_FAILED".into()),
            of(Fine, Wrong, Fine, Fine)
        );
        assert_eq!(states(|s| s.resources = Err(missing())), of(Fine, Unknown, Fine, Fine));
        assert_eq!(states(|s| s.queues[0].1 = Ok(1)), of(Fine, Fine, Wrong, Fine));
        assert_eq!(states(|s| s.queues[0].1 = Err(missing())), of(Fine, Fine, Unknown, Fine));
        assert_eq!(states(|s| s.queues[1].1 = Ok(5000)), of(Fine, Fine, Fine, Warn));
        assert_eq!(check("x", &Ok(None))[0].state, Wrong);
        assert_eq!(check("x", &Err(missing()))[0].state, Unknown);
    }
}
