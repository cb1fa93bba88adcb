//! What is believed of AWS (docs/assumptions.md), as far as an account shows it without being changed.

use std::collections::BTreeMap;

use stoker_core::names::{CacheRepository, Commit, Tag, TagKind};
use stoker_core::onboard::PastBuild;

use super::finding::Finding;
use super::project::Facts as ProjectFacts;
use super::repository::{Facts as RepositoryFacts, LineImage};
use crate::text::{count, plain};

const LATER: &str = "push something, wait for its build and its promotion, and run this again";
/// The ends of the names of the functions that start builds.
const STARTERS: [&str; 2] = ["-start-build", "-warm-main"];
const TELL: &str = "docs/assumptions.md says what follows; please report it";

pub(super) fn check(
    repositories: &BTreeMap<CacheRepository, RepositoryFacts>,
    projects: &[ProjectFacts<'_>],
) -> Vec<Finding> {
    vec![
        annotated(repositories),
        tags_stay(repositories),
        layers_are_reported(repositories),
        overrides_are_reported(projects),
        initiators_are_roles(projects),
        variables_are_merged(projects),
        commits_are_whole(projects),
    ]
}

fn annotated(repositories: &BTreeMap<CacheRepository, RepositoryFacts>) -> Finding {
    const CHECK: &str = "annotated caches";
    let lines = repositories.values().filter_map(|facts| facts.seen.lines.as_ref().ok()).flatten();
    let annotated =
        lines.filter_map(LineImage::provenance).filter(|provenance| provenance.project.is_some()).count();
    match annotated {
        0 => Finding::unknown(CHECK, "no line with Stoker's annotations yet", LATER),
        lines => Finding::ok(CHECK, format!("ECR has taken {}", count(lines, "line"))),
    }
}

/// A commit's cache and its line's are one image until the line moves on: its tags are still on it.
fn tags_stay(repositories: &BTreeMap<CacheRepository, RepositoryFacts>) -> Finding {
    const CHECK: &str = "tags of one image";
    let images = repositories.values().filter_map(|facts| facts.seen.images.as_ref().ok()).flatten();
    let several = images.filter(|image| {
        let ours = image.tags.iter().filter_map(|tag| Tag::parse(tag));
        ours.filter(|(_, kind)| !matches!(kind, TagKind::Export(_))).count() > 1
    });
    match several.count() {
        0 => Finding::unknown(CHECK, "no image has got a second tag yet", LATER),
        images => {
            Finding::ok(CHECK, format!("{} kept the first tag when they got another", count(images, "image")))
        }
    }
}

fn layers_are_reported(repositories: &BTreeMap<CacheRepository, RepositoryFacts>) -> Finding {
    const CHECK: &str = "layer availability";
    let with_lines =
        repositories.values().filter(|facts| facts.seen.lines.as_ref().is_ok_and(|lines| !lines.is_empty()));
    let mut asked = 0;
    for facts in with_lines {
        match &facts.seen.unavailable {
            Ok(unavailable) if unavailable.is_empty() => asked += 1,
            Ok(_) => {
                return Finding::unknown(
                    CHECK,
                    "some layers of lines cannot be had: see the repository's `layers`",
                    LATER,
                );
            }
            Err(missing) => return Finding::missing(CHECK, missing),
        }
    }
    match asked {
        0 => Finding::unknown(CHECK, "no lines whose layers could be asked for", LATER),
        _ => Finding::ok(CHECK, "every layer of every line is AVAILABLE"),
    }
}

/// The builds that Stoker's roles started, each with the project's own variables where the project was not
/// changed since.
fn by_stoker<'f>(
    projects: &'f [ProjectFacts<'_>],
) -> impl Iterator<Item = (&'f ProjectFacts<'f>, &'f PastBuild)> {
    projects.iter().flat_map(|facts| {
        let builds = facts.seen.builds.as_ref().map(Vec::as_slice).unwrap_or_default();
        builds.iter().map(move |build| (facts, build))
    })
}

fn overrides_are_reported(projects: &[ProjectFacts<'_>]) -> Finding {
    const CHECK: &str = "overrides in answers";
    let (mut reported, mut silent) = (0, 0);
    for (_, build) in by_stoker(projects) {
        if build.is_stokers() {
            reported += 1;
        } else if STARTERS.iter().any(|function| build.initiator.ends_with(function)) {
            silent += 1;
        }
    }
    match (reported, silent) {
        (0, 0) => Finding::unknown(CHECK, "Stoker has started no build yet", LATER),
        (_, 0) => {
            Finding::ok(CHECK, format!("{} with the variables that Stoker gave", count(reported, "build")))
        }
        _ => Finding::wrong(
            CHECK,
            format!("{} that Stoker started, without its variables", count(silent, "build")),
            TELL,
        ),
    }
}

/// Promotion takes a build for Stoker's only by the role that started it.
fn initiators_are_roles(projects: &[ProjectFacts<'_>]) -> Finding {
    const CHECK: &str = "initiators";
    let builds = by_stoker(projects).map(|(_, build)| build).filter(|build| build.is_stokers());
    let (named, others): (Vec<_>, Vec<_>) = builds.partition(|build| {
        let session = build.initiator.split_once('/').map(|(_, session)| session);
        session.is_some_and(|session| STARTERS.iter().any(|function| session.ends_with(function)))
    });
    match (named.len(), others.first()) {
        (0, None) => Finding::unknown(CHECK, "Stoker has started no build yet", LATER),
        (0, Some(build)) => Finding::wrong(
            CHECK,
            format!("CodeBuild says that `{}` started what Stoker seems to have", plain(&build.initiator)),
            TELL,
        ),
        (builds, _) => Finding::ok(CHECK, format!("{} by a role's session", count(builds, "build"))),
    }
}

fn variables_are_merged(projects: &[ProjectFacts<'_>]) -> Finding {
    const CHECK: &str = "merged variables";
    let mut seen = 0;
    for (facts, build) in by_stoker(projects).filter(|(_, build)| build.is_stokers()) {
        let Ok(Some(described)) = &facts.seen.described else { continue };
        if build.started_at <= described.changed_at {
            continue;
        }
        if let Some(lost) = described.variables.iter().find(|name| !build.variables.contains_key(*name)) {
            return Finding::wrong(
                CHECK,
                format!("a build of {} lacks the project's own {}", facts.name, plain(lost)),
                TELL,
            );
        }
        seen += usize::from(!described.variables.is_empty());
    }
    match seen {
        0 => Finding::unknown(
            CHECK,
            "no build by Stoker of a project that has variables of its own, as it is now",
            LATER,
        ),
        builds => {
            Finding::ok(CHECK, format!("{} with the project's own variables, too", count(builds, "build")))
        }
    }
}

fn commits_are_whole(projects: &[ProjectFacts<'_>]) -> Finding {
    const CHECK: &str = "resolved commits";
    let (mut seen, mut silent) = (0, 0);
    for (facts, build) in by_stoker(projects).filter(|(_, build)| build.is_git && build.has_succeeded) {
        let Some(resolved) = build.resolved.as_deref() else {
            silent += 1;
            continue;
        };
        if Commit::new(resolved).is_err() {
            let found = format!("a build of {} says that it built `{}`", facts.name, plain(resolved));
            return Finding::wrong(CHECK, found, TELL);
        }
        seen += 1;
    }
    match seen {
        0 if silent > 0 => Finding::unknown(
            CHECK,
            format!("{} from git, without a commit", count(silent, "build")),
            "builds of pushes fill their lines all the same, builds of main's head (`warm` in the policy) do not",
        ),
        0 => Finding::unknown(CHECK, "no build from git has ended well yet", LATER),
        builds => Finding::ok(CHECK, format!("{} with the whole hash", count(builds, "build"))),
    }
}
