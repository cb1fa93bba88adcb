//! `stoker rollback`: a line is put back to a cache that it was.

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::Timestamp;
use serde::Serialize;
use stoker_core::error::chain;
use stoker_core::line_update::LineUpdate;
use stoker_core::mounts::{MountManifest, mount_of};
use stoker_core::names::{CacheRepository, Digest, Line, ProjectName, Tag};
use stoker_core::ports::Image;
use stoker_core::provenance::Provenance;

use crate::cache::{to_json, verify};
use crate::lines::{Place, annotations, places_of, project_name};
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::reference::Repository;
use crate::remote::{self, Found, Remotes};

/// Puts a line back to a cache of its history
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker history registry.example/app/cache main
  stoker rollback registry.example/app/cache main --dry-run
  stoker rollback registry.example/app/cache main --to 1f2e3d4c

Without --to the line is put back to what it left last; done twice, that is the way back. What the line is now \
goes to its \
history first. Nothing is written unless BuildKit imports the cache and all its blobs are there.

It lasts: the line notes when it was rolled back, and promotion brings it nothing of builds that started \
before. Builds \
that start later add to it as always. Such a build may bring back a step that it reads elsewhere: if a branch's \
line has it \
too, roll that back as well. The write is not locked against a promotion that runs at this moment: look at the line \
afterwards with `stoker lines`.")]
pub(crate) struct Args {
    /// The repository, such as registry.example/app/cache
    repository: Repository,
    /// The line: main, branch/<name> or pr/<number>
    #[arg(value_parser = Line::parse)]
    line: Line,
    /// The cache of its history: a digest, at least 8 hexadecimal digits of one, or a history tag
    #[arg(long, value_name = "DIGEST-OR-TAG")]
    to: Option<Target>,
    /// The line's project, where the repository has lines of several
    #[arg(long, value_name = "NAME", value_parser = project_name)]
    project: Option<ProjectName>,
    /// Check everything and say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// What somebody calls a cache of a line's history.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Tag(Tag),
    /// The first hexadecimal digits of its digest, 8 at least.
    Digits(String),
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
        if (8..=64).contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Ok(Self::Digits(digits));
        }
        let history = Place::read(text).filter(|place| place.left_at.is_some());
        history.map(|place| Self::Tag(place.tag)).ok_or(
            "expected a digest, at least 8 hexadecimal digits of one, or a tag such as \
             app.history.main.20261121T090000Z-1f2e3d4c",
        )
    }
}

impl Target {
    fn means(&self, place: &Place) -> bool {
        match self {
            Self::Tag(tag) => place.tag == *tag,
            Self::Digits(digits) => digits.starts_with(place.digits()),
        }
    }

    /// Whether a cache under a tag that is meant is meant itself: the tag has only 8 digits.
    fn fits(&self, digest: &Digest) -> bool {
        match self {
            Self::Tag(_) => true,
            Self::Digits(digits) => digest.hex().starts_with(digits),
        }
    }
}

/// A rollback that is known to be sound.
struct Plan {
    at: Timestamp,
    update: LineUpdate,
    /// The cache of the line's history that it is put back to.
    target: Place,
    target_digest: Digest,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    repository: String,
    line: String,
    dry_run: bool,
    rolled_back_at: Timestamp,
    /// What the line was, and the history tag that keeps it.
    from: Written,
    /// The cache of its history.
    to: Written,
    /// What the line is now.
    is: Written,
}

/// A cache and a tag that holds it.
#[derive(Serialize)]
struct Written {
    tag: String,
    digest: Digest,
}

impl Written {
    fn new(tag: &Tag, digest: &Digest) -> Self {
        Self { tag: tag.to_string(), digest: digest.clone() }
    }
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let Args { repository, line, dry_run, json, .. } = args;
    let lines_of = CacheRepository::new(repository.path())
        .map_err(|error| Problem::usage(chain(&error), "name the repository of Stoker's policy"))?;
    let remotes = Remotes::default();
    let Plan { at, update, target, target_digest } = plan(&remotes, args).await?;
    let (Some((kept, current)), Some((tag, manifest))) = (&update.history, &update.line) else {
        return Err(Problem::failed(
            "a rollback without a history or a line",
            "report it: it is Stoker's mistake",
        ));
    };
    let report = Report {
        repository: repository.to_string(),
        line: line.to_string(),
        dry_run: *dry_run,
        rolled_back_at: at,
        from: Written::new(kept, &current.digest),
        to: Written::new(&target.tag, &target_digest),
        is: Written::new(tag, &Digest::of(manifest)),
    };
    if !dry_run {
        let doing = format!("roll {line} of {repository} back");
        let failed = |error| Problem::call_to(&doing, repository.any(), &error);
        update.apply(&*remotes.of(repository.any()), &lines_of).await.map_err(failed)?;
    }
    Ok(CommandOutcome::yes(if *json { to_json(&report) } else { reported(&report) }))
}

async fn plan(remotes: &Remotes, args: &Args) -> Result<Plan, Problem> {
    let Args { repository, line, .. } = args;
    let (place, past) = places_of(remotes, repository, line, args.project.as_ref()).await?;
    let current = now_at(remotes, repository, &place).await?;
    let (target, found) = target(remotes, args, &current, &past).await?;
    let target_digest = found.digest.clone();
    let cannot = |why: &str| {
        let next = format!("choose another with --to: see `stoker history {repository} {line}`");
        Problem::no(format!("{line} cannot be rolled back to {}: {why}", target.tag), next)
    };
    let mount =
        MountManifest::parse(&found.bytes).ok().filter(|mount| mount_of(&mount.annotations).is_some());
    // What builds restore fails no build, so a mount's layers are not asked for.
    let cache = if mount.is_some() {
        None
    } else {
        let manifest = remote::manifest_of(&found).map_err(|problem| cannot(problem.text()))?;
        if let Some(why) = verify::check_found(remotes, found).await?.against() {
            return Err(cannot(&why));
        }
        Some(manifest)
    };
    // After the checks: a build that starts while they run is given what the line still is.
    let now = Timestamp::now();
    let image =
        Image { digest: current.digest.clone(), media_type: current.media_type, manifest: current.bytes };
    let update = match (cache, mount) {
        (Some(cache), _) => LineUpdate::rollback(&place.scope, line, image, &cache, now),
        (None, Some(mount)) => Ok(LineUpdate::rollback_of_mount(&place.scope, line, image, &mount, now)),
        (None, None) => Err("it is no cache and no mount".to_owned()),
    };
    let update = update.map_err(|why| cannot(&why))?;
    // The checks take a while, in which a promotion may have moved the line.
    if now_at(remotes, repository, &place).await?.digest != current.digest {
        let why = format!("{line} has moved in the meantime, and was not rolled back");
        return Err(Problem::no(why, "try again"));
    }
    Ok(Plan { at: now, update, target, target_digest })
}

async fn now_at(remotes: &Remotes, repository: &Repository, place: &Place) -> Result<Found, Problem> {
    let reference = repository.at(&place.tag);
    remote::find(remotes, &reference).await?.ok_or_else(|| remote::nothing_at(&reference))
}

/// The cache to put the line back to.
async fn target(
    remotes: &Remotes,
    args: &Args,
    current: &Found,
    past: &[Place],
) -> Result<(Place, Found), Problem> {
    let Args { repository, line, to, .. } = args;
    let see = format!("see `stoker history {repository} {line}`");
    let is = |digest: &Digest, place: &Place| digest.short().starts_with(place.digits());
    let meant: Vec<&Place> = if let Some(to) = to {
        past.iter().filter(|place| to.means(place)).collect()
    } else {
        // What the line says that it followed; the times of history have whole seconds. Otherwise the newest,
        // but a move that failed halfway has kept what the line still is.
        let parent = Provenance::read(&annotations(current)).parent;
        let followed = past.iter().find(|place| parent.as_ref().is_some_and(|parent| is(parent, place)));
        let newest = || past.iter().find(|place| !is(&current.digest, place));
        followed.or_else(newest).into_iter().collect()
    };
    let mut found = BTreeMap::new();
    for place in meant {
        let Some(one) = remote::find(remotes, &repository.at(&place.tag)).await? else { continue };
        if !is(&one.digest, place) {
            let why = format!("{} does not hold what {line} left, but {}", place.tag, one.digest);
            return Err(Problem::no(why, format!("choose another with --to: {see}")));
        }
        if to.as_ref().is_none_or(|to| to.fits(&one.digest)) {
            found.entry(one.digest.clone()).or_insert_with(|| (place.clone(), one));
        }
    }
    let is_one = found.len() == 1;
    match (found.into_values().next(), to) {
        (Some((_, one)), _) if one.digest == current.digest => Err(Problem::no(
            format!("{line} is that cache already"),
            format!("choose another with --to: {see}"),
        )),
        (Some(one), _) if is_one => Ok(one),
        (Some(_), _) => Err(Problem::usage(
            format!("the history of {line} has several such caches"),
            format!("give --to more digits: {see}"),
        )),
        (None, Some(_)) => Err(Problem::usage(format!("the history of {line} has no such cache"), see)),
        (None, None) => Err(Problem::no(
            format!("{line} has no history to go back to"),
            "a line has one once it has moved, and for as long as the policy says (`retention.history`)",
        )),
    }
}

fn reported(report: &Report) -> String {
    let Report { repository, line, dry_run, rolled_back_at, from, to, is } = report;
    let (rolled, wrote) = if *dry_run { ("would roll", "would write") } else { ("rolled", "wrote") };
    format!(
        "{rolled} {line} in {repository} back to {}\n  it was {}\n  {wrote} {}: what it was\n  {wrote} {}: {}\n\
         Promotion brings it nothing of builds that started before {rolled_back_at:.0}.\n",
        to.tag, from.digest, from.tag, is.tag, is.digest
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_called_by_digest_or_tag() {
        let tag = "app.history.main.20261121T090000Z-1f2e3d4c";
        let place = Place::read(tag).unwrap();
        let digest = format!("sha256:1f2e3d4c{}", "0".repeat(56));
        for text in [tag, &digest, &digest[..20], "1f2e3d4c", "1F2E3D4C00"] {
            assert!(text.parse::<Target>().unwrap().means(&place), "{text}");
        }
        for text in ["1f2e3d4d", "app.history.main.20261121T090001Z-1f2e3d4c"] {
            assert!(!text.parse::<Target>().unwrap().means(&place), "{text}");
        }
        for text in ["", "1f2e3d4", "sha256:", "app.main", "latest", "1f2e3d4g", &format!("{digest}0")] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
