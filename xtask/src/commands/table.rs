//! How each command of the documentation is tried.

/// How a command is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Run as it stands in its document's shell, against the local AWS; it has to succeed.
    Run,
    /// The same, with what is here in place of the document's examples.
    With(&'static [(&'static str, &'static str)]),
    /// The same as the last, and it has to end with this code here.
    Ends(u8, &'static [(&'static str, &'static str)]),
    /// The local AWS refuses to know it, so the AWS CLI checks it by AWS's model and does not send it.
    Modelled(&'static [(&'static str, &'static str)]),
    /// The name of a command: its help knows it, and its options.
    Named,
    /// A part of the stack's lifecycle ([`STACK`]), in an AWS of its own.
    Stack,
    /// A task, which the tests are made of: its words are understood.
    Task,
    /// A test or benchmark of cargo's that takes minutes: the target is there.
    Target,
    /// Run elsewhere: in this file, by these words.
    Elsewhere(&'static str, &'static str),
}

use Way::{Elsewhere, Ends, Modelled, Named, Run, Stack, Target, Task, With};

/// Which document's command is tried in which way. `*` is any document, and at the end of a command whatever
/// follows. The first row that matches counts, and a row that matches nothing is a mistake.
pub(super) const ROWS: &[(&str, &str, Way)] = &[
    ("docs/mounts.md", "test -z *", Elsewhere("cli/src/doctor/buildspec.rs", "docs/mounts.md")),
    ("docs/ci.md", "printf %s *", Elsewhere("tests/scenarios/snippets.rs", "\"docker buildx bake\"")),
    (
        "docs/ci.md",
        "docker buildx create --use ${*",
        Elsewhere("tests/scenarios/snippets.rs", "\"The builder\""),
    ),
    (
        "docs/ci.md",
        "docker buildx build $*",
        Elsewhere("tests/scenarios/snippets.rs", "\"Several platforms\""),
    ),
    (
        "docs/deploy.md",
        "pip install *",
        Elsewhere("xtask/requirements.txt", "aws-sam-cli== cargo-lambda== ziglang=="),
    ),
    ("CONTRIBUTING.md", "cargo deny", Elsewhere("xtask/src/check.rs", "\"cargo-deny\"")),
    ("CONTRIBUTING.md", "cargo audit", Elsewhere("xtask/src/check.rs", "\"cargo-audit\"")),
    ("cli/README.md", "cargo install --path cli", Elsewhere("cli/Cargo.toml", "name = \"stoker\"")),
    ("*", "docker *", Named),
    ("*", "cargo xtask *", Task),
    ("*", "STOKER_CHAOS=10000 cargo test *", Target),
    ("*", "STOKER_*", Task),
    ("CONTRIBUTING.md", "git log --stat", Elsewhere("cli/benches/forecast.rs", "\"--stat\"")),
    ("*", "cargo bench *", Target),
    ("*", "git push -o ci.skip", Run),
    ("*", "git pull", Run),
    ("*", "sam *", Stack),
    // What only a real account has.
    ("docs/deploy.md", "aws ecr put-account-setting *", Modelled(&[])),
    (
        "cli/README.md",
        "aws ecr register-pull-time-update-exclusion *",
        Modelled(&[("ROLE", "arn:aws:iam::000000000000:role/deploys")]),
    ),
    // The local setup is no account that is set up as the README says.
    ("README.md", "stoker doctor", Ends(1, &[])),
    (
        "cli/README.md",
        "stoker doctor --repository stoker/app --stack ci-stoker",
        Ends(1, &[("ci-stoker", "stoker")]),
    ),
    ("cli/README.md", "stoker doctor*", Ends(1, &[])),
    ("cli/README.md", "stoker cache inspect REF...*", With(&[("REF...", "$R:app.main $R:main")])),
    ("cli/README.md", "stoker cache verify REF...*", With(&[("REF...", "$R:app.main $R:main")])),
    // They differ, and that is what it says.
    (
        "cli/README.md",
        "stoker cache diff A B*",
        With(&[("A B", "$R:feature-a $R:main && exit 1 || [ $? = 1 ]")]),
    ),
    ("cli/README.md", "stoker cache merge A B*", With(&[("A B", "$R:main $R:feature-a"), (" C ", " $R:c ")])),
    ("cli/README.md", "stoker cache prune REF*", With(&[("REF", "$R:c")])),
    ("cli/README.md", "C=registry.example/app/cache", With(&[("registry.example/app/cache", "$R")])),
    ("cli/README.md", "R=*", With(&[("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "$REGISTRY")])),
    ("cli/README.md", "stoker rollback $R main --to 1f2e3d4c", With(&[("1f2e3d4c", "$(left)")])),
    (
        "cli/README.md",
        "stoker simulate --registry *",
        With(&[("123456789012.dkr.ecr.eu-central-1.amazonaws.com", "$REGISTRY")]),
    ),
    ("cli/README.md", "stoker explain stoker/app:app.branch.feature-a*", With(&[("feature-a", "feature-b")])),
    ("cli/README.md", "stoker trace 1f2e3d4*", With(&[("1f2e3d4", "$(git rev-parse HEAD | cut -c1-7)")])),
    ("cli/README.md", "stoker trace $(git rev-parse HEAD) *", With(&[("ci-stoker", "stoker")])),
    ("cli/README.md", "stoker redrive --stack ci-stoker *", With(&[("ci-stoker", "stoker")])),
    ("cli/README.md", "stoker completions SHELL", With(&[("SHELL", "bash")])),
    ("cli/README.md", "stoker forecast*", Named),
    ("cli/README.md", "stoker why*", Named),
    ("cli/README.md", "stoker *", Run),
    ("docs/metrics.md", "stoker trace COMMIT", With(&[("COMMIT", "$(git rev-parse HEAD)")])),
    (
        "docs/operate.md",
        "aws lambda update-event-source-mapping --enabled --uuid ...",
        With(&[("...", "$(mapping)")]),
    ),
    ("docs/deploy.md", "aws ecr delete-repository *", With(&[("stoker/app", "$(scrap)")])),
    ("docs/operate.md", "stack=stoker*", Run),
    ("docs/operate.md", "insights *", Run),
    ("docs/operate.md", "aws *", Run),
    ("docs/deploy.md", "stoker doctor", Ends(1, &[])),
    ("docs/deploy.md", "stoker simulate", Named),
    ("docs/operate.md", "stoker *", Run),
    ("*", "stoker report", Run),
    ("*", "stoker plan", Run),
    ("*", "stoker policy check", Run),
    ("*", "stoker redrive", Run),
    ("*", "stoker *", Named),
];

/// The stack's lifecycle in an account where nothing is yet, in the order in which it is told: what is run, and
/// what then holds, in shell.
pub(super) const STACK: &[(&str, &str)] = &[
    ("sam build && sam deploy --guided", "stands stoker"),
    ("sam build", "stands stoker"),
    (
        "sam build --config-env dev && sam deploy --config-env dev",
        "stands stoker-dev && keeps stoker-dev/app",
    ),
    // "and the same with `prod`"
    ("sam build --config-env prod && sam deploy --config-env prod", "stands stoker"),
    ("sam build && sam deploy", "stands stoker"),
    ("sam delete --stack-name stoker", "gone stoker && stands stoker-dev"),
    // "Every repository stays, also those that the stack made"
    ("sam delete --stack-name stoker-dev", "gone stoker-dev && keeps stoker-dev/app"),
];

impl Way {
    /// Whether its command is run in its document's shell.
    pub(super) fn is_in_session(self) -> bool {
        matches!(self, Self::Run | Self::With(_) | Self::Ends(..) | Self::Modelled(_))
    }
}

/// The way of a document's command, and the number of its row.
pub(super) fn way(document: &str, command: &str) -> Option<(usize, Way)> {
    let matches = |pattern: &str, text: &str| {
        pattern.strip_suffix('*').map_or(pattern == text, |start| text.starts_with(start))
    };
    let is_of = |(of, pattern, _): &&(&str, &str, Way)| matches(of, document) && matches(pattern, command);
    let (nth, (_, _, way)) = ROWS.iter().enumerate().find(|(_, row)| is_of(row))?;
    Some((nth, *way))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::commands::read;

    #[test]
    fn every_command_of_the_documents_has_its_way_and_every_row_a_command() {
        let mut used = BTreeSet::new();
        for reported in read::all().unwrap() {
            let (row, way) = way(&reported.document, &reported.text).unwrap_or_else(|| {
                panic!("{}:{}: who runs {:?}?", reported.document, reported.line, reported.text)
            });
            used.insert(row);
            if way == Stack {
                assert!(STACK.iter().any(|(command, _)| *command == reported.text), "{}", reported.text);
            }
        }
        let unused: Vec<_> = (0..ROWS.len()).filter(|row| !used.contains(row)).map(|row| ROWS[row]).collect();
        assert!(unused.is_empty(), "nothing is told of {unused:?}");
    }
}
