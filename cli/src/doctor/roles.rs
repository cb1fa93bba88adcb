//! What the roles of builds may do, as IAM simulates it.

use stoker_aws_setup::Decision;

use super::finding::{Fact, Finding};
use super::stack::Stack;
use crate::text::plain;

/// What it takes to read a cache.
pub(super) const READ: [&str; 3] =
    ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"];
/// What it takes to write one.
pub(super) const WRITE: [&str; 6] = [
    "ecr:BatchGetImage",
    "ecr:BatchCheckLayerAvailability",
    "ecr:InitiateLayerUpload",
    "ecr:UploadLayerPart",
    "ecr:CompleteLayerUpload",
    "ecr:PutImage",
];
/// What nobody but Stoker may do where lines are kept apart, and no fork's build anywhere.
pub(super) const TRUSTED: [&str; 2] = ["ecr:PutImage", "ecr:BatchDeleteImage"];
/// What would tell a build the tags of others.
pub(super) const SECRET: [&str; 3] = ["ecr:DescribeImages", "ecr:ListImages", "ecr:BatchDeleteImage"];

/// A project's role, and IAM's answers.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) reads: Fact<Vec<Decision>>,
    /// Empty for what must not write.
    pub(super) writes: Fact<Vec<Decision>>,
    /// What must not be allowed.
    pub(super) border: Fact<Vec<Decision>>,
}

pub(super) fn check(seen: &Seen, is_forks: bool, stack: Option<&Stack>) -> Vec<Finding> {
    let policy = if is_forks { "ForkBuildPolicy" } else { "BuildPolicy" };
    let attach = format!(
        "aws iam attach-role-policy --role-name {} --policy-arn {}",
        plain(&seen.name),
        stack
            .and_then(|stack| stack.resource(policy))
            .map_or(format!("ARN (the stack's output {policy})"), plain)
    );
    let needs = |check, answers: &Fact<Vec<Decision>>, otherwise: &str| match answers {
        Err(missing) => Finding::missing(check, missing),
        Ok(answers) => match named(answers, false) {
            None => Finding::ok(check, plain(&seen.name)),
            Some(denied) => Finding::wrong(
                check,
                format!("{} may not {denied}: {otherwise}", plain(&seen.name)),
                attach.clone(),
            ),
        },
    };
    let mut findings = vec![needs("role reads", &seen.reads, "its builds are cold")];
    if !is_forks {
        findings.push(needs("role writes", &seen.writes, "its builds fill no cache"));
    }
    let border = match &seen.border {
        Err(missing) => Some(Finding::missing("role's border", missing)),
        Ok(answers) if answers.is_empty() => None,
        Ok(answers) => Some(match named(answers, true) {
            None => Finding::ok(
                "role's border",
                if is_forks { "it writes no cache" } else { "it writes its own exports only" },
            ),
            Some(allowed) => Finding::wrong(
                "role's border",
                format!(
                    "{} may {allowed}: the code of any build decides what others contain",
                    plain(&seen.name)
                ),
                format!(
                    "take that from {}, and let it have {policy} alone for these repositories",
                    plain(&seen.name)
                ),
            ),
        }),
    };
    findings.extend(border);
    findings
}

/// The actions with this answer, by the repository.
fn named(answers: &[Decision], is_allowed: bool) -> Option<String> {
    let named: Vec<&Decision> = answers.iter().filter(|answer| answer.is_allowed == is_allowed).collect();
    let groups: Vec<String> = named
        .chunk_by(|a, b| a.on == b.on)
        .map(|of_one| {
            let actions: Vec<String> = of_one.iter().map(|answer| plain(&answer.action)).collect();
            let on = of_one.first().map(|answer| plain(&answer.on)).unwrap_or_default();
            format!("{} on {on}", actions.join(", "))
        })
        .collect();
    (!groups.is_empty()).then(|| groups.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use crate::deployed::Missing;

    fn decisions(actions: &[&str], is_allowed: bool) -> Vec<Decision> {
        let decision = |action: &&str| Decision {
            action: (*action).to_owned(),
            on: "stoker/app".to_owned(),
            is_allowed,
        };
        actions.iter().map(decision).collect()
    }

    fn seen() -> Seen {
        Seen {
            name: "builds".to_owned(),
            reads: Ok(decisions(&READ, true)),
            writes: Ok(decisions(&WRITE, true)),
            border: Ok(decisions(&TRUSTED, false)),
        }
    }

    fn states(seen: &Seen, is_forks: bool) -> Vec<(&'static str, State)> {
        check(seen, is_forks, None).iter().map(|finding| (finding.check, finding.state)).collect()
    }

    #[test]
    fn a_role_needs_all_and_may_do_nothing_else() {
        use State::{Ok as Fine, Unknown, Wrong};
        let of = |reads, writes, border| {
            vec![("role reads", reads), ("role writes", writes), ("role's border", border)]
        };
        assert_eq!(states(&seen(), false), of(Fine, Fine, Fine));
        let mut less = seen();
        less.reads.as_mut().unwrap()[1].is_allowed = false;
        assert_eq!(states(&less, false), of(Wrong, Fine, Fine));
        let found = &check(&less, false, None)[0];
        assert_eq!(
            found.found,
            "builds may not ecr:GetDownloadUrlForLayer on stoker/app: its builds are cold"
        );
        assert!(found.repair.as_ref().unwrap().starts_with("aws iam attach-role-policy --role-name builds "));
        let mut less = seen();
        less.writes.as_mut().unwrap()[5].is_allowed = false;
        assert_eq!(states(&less, false), of(Fine, Wrong, Fine));
        let mut more = seen();
        more.border.as_mut().unwrap()[0].is_allowed = true;
        assert_eq!(states(&more, false), of(Fine, Fine, Wrong));
        assert_eq!(states(&more, true), [("role reads", Fine), ("role's border", Wrong)]);
        let missing = Missing { action: "iam:SimulatePrincipalPolicy", is_denied: true, why: String::new() };
        let none = Seen {
            reads: Err(missing.clone()),
            writes: Err(missing.clone()),
            border: Err(missing),
            ..seen()
        };
        assert_eq!(states(&none, false), of(Unknown, Unknown, Unknown));
        let simple = Seen { border: Ok(Vec::new()), ..seen() };
        assert_eq!(states(&simple, false), [("role reads", Fine), ("role writes", Fine)]);
    }
}
