//! What a Dockerfile costs by how it is written. Each advice is checked by replaying the history with it followed.

use std::collections::BTreeSet;
use std::rc::Rc;

use dockerfile_keys::{Dockerfile, Id, Instruction, TreeError};
use serde::Serialize;

use super::edit::Edit;
use super::figures::Range;
use super::git::Repository;
use super::replay::Setup;
use super::times::is_install_alone;

/// A change that saves time.
#[derive(Debug, Serialize)]
pub(super) struct Advice {
    pub(super) kind: Kind,
    /// The line of the newest commit's Dockerfile that it is about.
    pub(super) line: Option<usize>,
    /// What to do, and why.
    pub(super) text: String,
    /// Steps that all builds run less under Stoker; negative where the advice adds more than it saves.
    pub(super) steps: i64,
    /// How often the step that it is about ran, and how often it would have; null where it is about several.
    pub(super) runs: Option<[usize; 2]>,
    /// Hours a month that all builds take less under Stoker.
    pub(super) hours_per_month: Range,
}

/// What an advice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// `.git` in the build context.
    GitDirectory,
    /// An argument that changes with every commit is named too early.
    ArgumentTooEarly,
    /// An argument that may change with every commit is named too early.
    ArgumentPerCommit,
    /// A version that was changed in the Dockerfile stands before what does not need it.
    StampTooEarly,
    /// An install rests on a copy of more than it reads.
    CopyTooWide,
    /// An install rests on a copy of which it reads nothing.
    OrderOfInstructions,
    /// Files in the build context that builds seldom read.
    NotIgnored,
}

/// An advice that has not been checked.
pub(super) struct Candidate {
    pub(super) kind: Kind,
    pub(super) line: Option<usize>,
    pub(super) text: String,
    /// The one step that it is about.
    pub(super) step: Option<String>,
    /// The build with the advice followed.
    pub(super) setup: Setup,
    /// The build that it is compared with, if that is not the usual one.
    pub(super) supposed: Option<Setup>,
}

/// Parts of the names of arguments that people pass a commit's hash, a date or a number of the build in.
const PER_COMMIT: &[&str] = &[
    "SHA",
    "COMMIT",
    "REVISION",
    "VCS_REF",
    "GIT_REF",
    "BUILD_DATE",
    "BUILD_TIME",
    "BUILD_NUMBER",
    "BUILD_ID",
];
/// What builds seldom read, and people often change.
const SELDOM_READ: &[&str] = &[".github", ".gitlab-ci.yml", ".circleci", ".vscode", ".devcontainer", "docs"];
/// Installs that read nothing of a build context.
const OF_THE_SYSTEM: &[&str] = &["apt-get install", "apt install", "apk add", "dnf install", "yum install"];

/// What might save time, by the newest commit.
pub(super) fn candidates(
    repository: &Repository,
    setup: &Setup,
    files: &[(Rc<Dockerfile>, Id)],
    restamped: &BTreeSet<String>,
) -> Result<Vec<Candidate>, TreeError> {
    let mut all = Vec::new();
    if setup.git_directory {
        all.push(Candidate {
            kind: Kind::GitDirectory,
            line: None,
            step: None,
            text: "add `.git` to .dockerignore: no two clones have the same, so what copies or mounts it runs in every \
                   build, and so does what rests on it (if nothing in the build reads it)"
                .to_owned(),
            setup: Setup { git_directory: false, ..setup.clone() },
            supposed: None,
        });
    }
    all.extend(not_ignored(repository, setup, files)?);
    for name in &setup.per_commit {
        let is_it = |i: &&Instruction| i.name == "ARG" && i.rest.split('=').next() == Some(name);
        let mut arguments = files.iter().filter_map(|(file, _)| file.instructions.iter().rfind(is_it));
        let Some(argument) = arguments.next() else { continue };
        all.push(Candidate {
            kind: Kind::ArgumentTooEarly,
            line: Some(argument.line),
            step: None,
            text: format!(
                "name `ARG {name}` right before what needs it: every RUN after it runs again with each commit (if no \
                 command before that reads it from its environment)"
            ),
            setup: setup.edited(Edit::ArgumentsLate { names: vec![name.clone()] }),
            supposed: None,
        });
    }
    all.extend(files.iter().flat_map(|(file, _)| stamps(setup, file, restamped)));
    for (context, (run, copy, source)) in
        files.iter().flat_map(|(file, context)| held_up(file).into_iter().map(move |held| (context, held)))
    {
        let mut manifests = Vec::new();
        for name in manifests_of(&run.rest) {
            let path = if source == "." { (*name).to_owned() } else { format!("{source}/{name}") };
            if repository.file(context, &path)?.is_some() {
                manifests.push(path);
            }
        }
        let reads_nothing =
            OF_THE_SYSTEM.iter().any(|words| run.rest.contains(words)) && manifests_of(&run.rest).is_empty();
        if manifests.is_empty() && !reads_nothing {
            continue;
        }
        let shown: String =
            run.rest.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(60).collect();
        let first = if manifests.is_empty() {
            format!("run `{shown}`")
        } else {
            format!("copy {} and run `{shown}`", manifests.join(", "))
        };
        all.push(Candidate {
            kind: if manifests.is_empty() { Kind::OrderOfInstructions } else { Kind::CopyTooWide },
            line: Some(run.line),
            step: Some(run.text()),
            text: format!(
                "{first} before `COPY {}` on line {}: it runs again with every change there (if it reads nothing else \
                 of it)",
                copy.rest, copy.line
            ),
            setup: setup.edited(Edit::InstallFirst {
                run: run.rest.clone(),
                copy: copy.rest.clone(),
                manifests,
            }),
            supposed: None,
        });
    }
    Ok(all)
}

/// What lies in the contexts, is not built from, and changes.
fn not_ignored(
    repository: &Repository,
    setup: &Setup,
    files: &[(Rc<Dockerfile>, Id)],
) -> Result<Option<Candidate>, TreeError> {
    let mut found = Vec::new();
    for name in SELDOM_READ {
        let is_there = |context: &Id| dockerfile_keys::find(repository, context, name);
        let there = files.iter().map(|(_, context)| is_there(context)).collect::<Result<Vec<_>, _>>()?;
        if there.iter().any(Option::is_some) {
            found.push((*name).to_owned());
        }
    }
    if found.is_empty() {
        return Ok(None);
    }
    Ok(Some(Candidate {
        kind: Kind::NotIgnored,
        line: None,
        step: None,
        text: format!(
            "add {} to .dockerignore: what copies or mounts the whole context runs again with every change there (if \
             nothing in the build reads them)",
            found.join(", ")
        ),
        setup: Setup { ignored: found, ..setup.clone() },
        supposed: None,
    }))
}

/// Arguments and variables that stand before commands that do not name them: those that may change with every
/// commit, and those that the history changed.
fn stamps(setup: &Setup, file: &Dockerfile, restamped: &BTreeSet<String>) -> Vec<Candidate> {
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    let from = file.instructions.iter().position(|i| i.name == "FROM").unwrap_or_default();
    for instruction in file.instructions.iter().skip(from) {
        let name = instruction.rest.split('=').next().unwrap_or_default();
        let is_known = setup.per_commit.iter().any(|known| known == name)
            || setup.images.iter().any(|image| image.options.arguments.contains_key(name));
        if !["ARG", "ENV"].contains(&&*instruction.name) || is_known || !seen.insert(name) {
            continue;
        }
        let late = Edit::ArgumentsLate { names: vec![name.to_owned()] };
        let upper = name.to_ascii_uppercase();
        if instruction.name == "ARG" && PER_COMMIT.iter().any(|part| upper.contains(part)) {
            let mut supposed = setup.clone();
            supposed.per_commit.push(name.to_owned());
            all.push(Candidate {
                kind: Kind::ArgumentPerCommit,
                line: Some(instruction.line),
                step: None,
                text: format!(
                    "if builds pass {name} another value with each commit (--build-arg-per-commit {name} shows \
                     the cost), \
                     name `ARG {name}` right before what needs it: every RUN after it runs again each time"
                ),
                setup: supposed.edited(late),
                supposed: Some(supposed),
            });
        } else if restamped.contains(name) {
            all.push(Candidate {
                kind: Kind::StampTooEarly,
                line: Some(instruction.line),
                step: None,
                text: format!(
                    "put `{} {name}` right before what needs it: each new value runs every RUN after it again (if no \
                     command before that reads it from its environment)",
                    instruction.name
                ),
                setup: setup.edited(late),
                supposed: None,
            });
        }
    }
    all
}

/// Whether a copy goes to the same place from every working directory, whatever variables hold.
fn is_absolute(copy: &Instruction) -> bool {
    copy.rest.split_whitespace().last().is_some_and(|to| to.starts_with('/'))
}

/// Installs that come after a copy of a directory without another command between, with the copy and the directory.
fn held_up(file: &Dockerfile) -> Vec<(&Instruction, &Instruction, &str)> {
    let mut all = Vec::new();
    let mut last_copy: Option<(&Instruction, &str)> = None;
    for instruction in &file.instructions {
        match instruction.name.as_str() {
            "COPY" => {
                let words: Vec<&str> = instruction.rest.split_whitespace().collect();
                last_copy = match words.as_slice() {
                    [source, _]
                        if instruction.flags.is_empty()
                            && instruction.here_documents.is_empty()
                            && !instruction.rest.contains('$') =>
                    {
                        Some((instruction, source.trim_start_matches("./").trim_end_matches('/')))
                            .map(|(copy, source)| (copy, if source.is_empty() { "." } else { source }))
                    }
                    _ => None,
                };
            }
            "RUN" => {
                if let Some((copy, source)) = last_copy.filter(|_| is_install_alone(&instruction.rest)) {
                    all.push((instruction, copy, source));
                }
                // What comes between may be needed.
                last_copy = None;
            }
            // A copy to a place that it does not depend on can come after them as well.
            "WORKDIR" => last_copy = last_copy.filter(|(copy, _)| is_absolute(copy)),
            "FROM" | "ADD" => last_copy = None,
            _ => {}
        }
    }
    all
}

/// The files that an install reads, whichever there are.
fn manifests_of(command: &str) -> &'static [&'static str] {
    const ALL: &[(&[&str], &[&str])] = &[
        (
            &["npm ", "yarn", "pnpm", "bun install"],
            &[
                "package.json",
                "package-lock.json",
                "npm-shrinkwrap.json",
                "yarn.lock",
                "pnpm-lock.yaml",
                "pnpm-workspace.yaml",
                "bun.lock",
                "bun.lockb",
                ".npmrc",
                ".yarnrc",
                ".yarnrc.yml",
            ],
        ),
        (&["go mod"], &["go.mod", "go.sum"]),
        (&["bundle install"], &["Gemfile", "Gemfile.lock", ".ruby-version"]),
        (&["composer install"], &["composer.json", "composer.lock"]),
        (&["uv sync"], &["pyproject.toml", "uv.lock"]),
        (&["poetry install"], &["pyproject.toml", "poetry.lock"]),
        (&["pipenv install"], &["Pipfile", "Pipfile.lock"]),
        (&["-r requirements.txt"], &["requirements.txt"]),
        (&["mix deps.get"], &["mix.exs", "mix.lock"]),
    ];
    let found = ALL.iter().find(|(words, _)| words.iter().any(|word| command.contains(word)));
    found.map_or(&[], |(_, manifests)| manifests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_install_is_held_up_by_the_copy_before_it() {
        let held = |text: &str| {
            let file = dockerfile_keys::parse(text).unwrap();
            held_up(&file)
                .into_iter()
                .map(|(run, _, source)| format!("{} {source}", run.rest))
                .collect::<Vec<_>>()
        };
        assert_eq!(held("FROM a\nCOPY ./ /app\nEXPOSE 80\nRUN npm ci\n"), ["npm ci ."]);
        assert_eq!(held("FROM a\nCOPY . /app\nWORKDIR /app\nENV CI=1\nRUN npm ci\n"), ["npm ci ."]);
        assert_eq!(held("FROM a\nCOPY web/ web\nRUN yarn install\nRUN npm ci\n"), ["yarn install web"]);
        for free in [
            "FROM a\nCOPY . .\nRUN npm ci && npm run build\n",
            "FROM a\nCOPY . .\nWORKDIR /x\nRUN npm ci\n",
            "FROM a\nCOPY $A .\nRUN npm ci\n",
            "FROM a\nCOPY . .\nRUN x\nRUN npm ci\n",
            "FROM a\nCOPY --from=b /x .\nRUN npm ci\n",
            "FROM a\nRUN npm ci\n",
            "FROM a\nCOPY . .\nFROM b\nRUN npm ci\n",
        ] {
            assert_eq!(held(free), [""; 0], "{free}");
        }
    }
}
