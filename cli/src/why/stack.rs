//! A build of the stack: CodeBuild says what it was given and where its log is, the registry what lines hold and held.

use std::collections::BTreeMap;
use std::sync::Arc;

use cache_misses::Relation;
use jiff::{SignedDuration, Timestamp};
use stoker_aws_setup::{SdkConfig, Setup};
use stoker_core::build_inputs::{GivenInputs, variable};
use stoker_core::mounts::input::read_not_given;
use stoker_core::names::{Digest, Line, LineKey, ProjectName, Revision, Tag};
use stoker_core::onboard::PastBuild;
use stoker_core::ports::ReadBuilds as _;
use stoker_core::provenance::Provenance;

use super::sources::{LARGEST_LOG, Place, Sources};
use crate::lines;
use crate::problem::Problem;
use crate::reference::{Reference, Version};
use crate::remote::{self, Remotes};
use crate::retain::{Account, call_problem};
use crate::text::plain;

/// Caches that one line left, and other lines, that are looked into at most, the nearest first.
const EARLIER: usize = 5;
const OTHERS: usize = 8;
/// How far back the newest build of a line or a commit is looked for.
const DAYS: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Fewer digits name too many commits.
const FEWEST_DIGITS: usize = 7;
/// Builds whose logs are read at most for the base images that they had.
const LOGS: usize = 2;

/// The id of the newest build of a line, or of a commit, that has ended.
pub(super) async fn newest(config: &SdkConfig, project: &ProjectName, of: &str) -> Result<String, Problem> {
    let since = Timestamp::now() - DAYS;
    let builds = Account::new(config.clone()).recent(project, Some(since)).await;
    let builds = builds.map_err(|error| call_problem(&error))?;
    let commit = Revision::new(of.to_ascii_lowercase()).ok().filter(|_| of.len() >= FEWEST_DIGITS);
    let is_it = |build: &&Arc<stoker_core::ports::Build>| {
        let is_of = |inputs: &GivenInputs| {
            let of_commit =
                inputs.commit.as_ref().zip(commit.as_ref()).is_some_and(|(own, it)| it.names(own));
            of_commit || inputs.line.to_string() == of
        };
        build.ended_at.is_some() && build.inputs.as_ref().is_some_and(is_of)
    };
    let newest = builds.iter().filter(is_it).max_by_key(|build| build.started_at);
    newest.map(|build| build.id.clone()).ok_or_else(|| {
        Problem::no(
            format!("{project} has no build of {} that ended in two weeks", plain(of)),
            "name a line, such as main or branch/feature-a, or 7 digits of a commit; `stoker trace` lists builds",
        )
    })
}

/// Finds what is known of a build.
pub(super) async fn find(config: &SdkConfig, remotes: &Remotes, id: &str) -> Result<Sources, Problem> {
    let setup = Setup::new(config);
    let builds = setup.builds_of(vec![id.to_owned()]).await.map_err(|error| call_problem(&error))?;
    let Some(PastBuild { variables, resolved, log, started_at, .. }) = builds.into_iter().next() else {
        return Err(Problem::usage(
            format!("CodeBuild knows no build {}", plain(id)),
            "name it as CodeBuild does, PROJECT:UUID; `stoker trace COMMIT` lists those of a commit",
        ));
    };
    let log = log.ok_or_else(|| {
        Problem::failed(
            "the build has no log in CloudWatch Logs".to_owned(),
            "name a file with --log; a project whose logs go elsewhere, or nowhere, has none here",
        )
    })?;
    // Of several targets each has variables of its own, with a suffix.
    let references = |name: &str| -> Vec<Reference> {
        let of = variables.iter().filter(|(known, _)| known.starts_with(name));
        of.flat_map(|(_, text)| text.split_whitespace()).filter_map(|text| text.parse().ok()).collect()
    };
    let from = references(variable::REFS);
    let mut exports = references(variable::EXPORT_REF);
    let commit = variables.get(variable::COMMIT).cloned().or(resolved);
    let commit = commit.ok_or_else(|| {
        Problem::failed(
            format!("nothing says which commit {} built", plain(id)),
            "name it with --commit and --log",
        )
    })?;
    let mounts = read_not_given(variables.get(variable::MOUNTS).map_or("", String::as_str));
    let mut sources = Sources {
        log: setup.log(&log, LARGEST_LOG.into()).await.map_err(|error| call_problem(&error))?,
        from,
        export: exports.pop(),
        elsewhere: Vec::new(),
        commit,
        mounts: mounts.into_iter().map(|(id, why)| (id.to_string(), why)).collect(),
        setup: None,
        missing: Vec::new(),
    };
    if !exports.is_empty() {
        sources
            .missing
            .push("the build has several targets: --log, --from and --export tell of one".to_owned());
    }
    let line = variables.get(variable::LINE).and_then(|line| Line::parse(line).ok());
    match around(remotes, &sources, line.as_ref(), started_at).await {
        Ok(places) => sources.elsewhere = places,
        Err(problem) => sources.missing.push(problem.text().to_owned()),
    }
    sources.setup = Some(setup);
    Ok(sources)
}

/// The caches that the build's line and main held when it started and before, and those of other lines.
async fn around(
    remotes: &Remotes,
    sources: &Sources,
    line: Option<&Line>,
    started: Timestamp,
) -> Result<Vec<Place>, Problem> {
    let Some(given) = sources.from.first().or(sources.export.as_ref()) else { return Ok(Vec::new()) };
    let repository = given.whole_repository();
    let tags = remote::tags(remotes, &repository).await?;
    let scope = sources.export.as_ref().and_then(Reference::tag).and_then(Tag::known);
    let scope = scope.as_ref().and_then(|tag| Tag::parse(tag.as_str())).map(|(scope, _)| scope);
    let own = line.map(Line::key);
    let (mut held, mut earlier, mut others) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut counts: BTreeMap<LineKey, usize> = BTreeMap::new();
    for place in lines::sorted(&tags, None) {
        if scope.as_ref().is_some_and(|scope| place.scope != *scope) {
            continue;
        }
        let reference = repository.at(&place.tag);
        let is_near = own.as_ref() == Some(&place.line) || place.line.is_main();
        let count = counts.entry(place.line.clone()).or_default();
        match place.left_at {
            // The newest come first: the last of these is what the line held then.
            Some(at) if is_near && at > started => {
                let note = format!("it was {}'s when the build started", place.line);
                held.insert(place.line, Place { reference, relation: Relation::Other, note });
            }
            Some(at) if is_near && *count < EARLIER => {
                *count += 1;
                let note = format!("{} left it at {at:.0}", place.line);
                earlier.push(Place { reference, relation: Relation::Before, note });
            }
            None if is_near || others.len() < OTHERS => {
                let note = format!("it is {}'s", place.line);
                others.push(Place { reference, relation: Relation::Other, note });
            }
            _ => {}
        }
    }
    let given: Vec<&Digest> = sources.from.iter().filter_map(digest).collect();
    let mut places: Vec<Place> = held.into_values().chain(earlier).chain(others).collect();
    places.retain(|place| !digest(&place.reference).is_some_and(|digest| given.contains(&digest)));
    Ok(places)
}

/// The logs of the builds that the first of some caches are of; with them what could not be read.
pub(super) async fn logs(setup: &Setup, caches: &[Provenance]) -> (Vec<String>, Vec<String>) {
    let mut ids: Vec<String> = Vec::new();
    for built in caches.iter().filter_map(|cache| cache.built.as_ref()) {
        if ids.len() < LOGS && !ids.contains(&built.build) {
            ids.push(built.build.clone());
        }
    }
    let (mut logs, mut missing) = (Vec::new(), Vec::new());
    if ids.is_empty() {
        return (logs, missing);
    }
    let builds = setup.builds_of(ids).await.unwrap_or_else(|error| {
        missing.push(call_problem(&error).text().to_owned());
        Vec::new()
    });
    for log in builds.iter().filter_map(|build| build.log.as_ref()) {
        match setup.log(log, LARGEST_LOG.into()).await {
            Ok(log) => logs.push(log),
            Err(error) => missing.push(call_problem(&error).text().to_owned()),
        }
    }
    (logs, missing)
}

fn digest(reference: &Reference) -> Option<&Digest> {
    match &reference.version {
        Version::Digest(digest) => Some(digest),
        Version::Tag(_) => None,
    }
}
