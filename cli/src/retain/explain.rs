//! `stoker explain`: all that is known of one image.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::future::try_join_all;
use jiff::Timestamp;
use serde::Serialize;
use stoker_core::build_inputs::GivenInputs;
use stoker_core::names::{CacheRepository, Digest, ProjectName, Tag, TagKind};
use stoker_core::partition::registry_region;
use stoker_core::policy::Project;
use stoker_core::ports::{Build, BuildStatus, ListedImage, ReadBuilds as _};
use stoker_core::retain::forecast;
use stoker_core::retain::inventory::{Inventory, ManifestInfo, Shape};
use stoker_core::retain::plan::{Use, last_use};

use super::account::{self, Account};
use super::report::Judged;
use super::{Planned, planned, project_name, repositories};
use crate::cache::to_json;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::text::{ago, count, plain, plain_whole, size};

/// Explains one image: who made it, where it is or was, who reads it, and when it goes
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker explain stoker/app:app.main
  stoker explain stoker/app@sha256:1f2e3d4c...
  stoker explain --project app app.branch.feature-a
  stoker explain --project app 1f2e3d4c --json | jq .goes

IMAGE is repository:tag or repository@digest, as the policy names the repository, or with ECR's host before it; \
with --project \
a tag or a digest alone will do. 8 hexadecimal digits of a digest are enough.

When it goes is what the planner answers about the time to come if nothing changes: nothing is pushed, built or \
given out, and \
the policy stays.")]
pub(crate) struct Args {
    /// The image
    image: Asked,
    /// The policy
    #[arg(long, value_name = "PATH", default_value = "policy/stoker.yaml")]
    policy: PathBuf,
    /// The project whose repositories are searched, for a tag or a digest alone
    #[arg(long, value_name = "NAME", value_parser = project_name)]
    project: Option<ProjectName>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Which image somebody means.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    /// Where the host tells it.
    region: Option<String>,
    repository: Option<CacheRepository>,
    /// A tag, or the start of a digest.
    name: String,
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_alone = !text.contains(['@', '/']) && (text.starts_with("sha256:") || !text.contains(':'));
        let (place, name) = if is_alone {
            (None, text)
        } else {
            let split = text.rsplit_once('@').or_else(|| text.rsplit_once(':'));
            let (place, name) = split.ok_or("expected repository:tag or repository@sha256:...")?;
            (Some(place), name)
        };
        let host =
            place.and_then(|place| place.split_once('/')).filter(|(host, _)| registry_region(host).is_some());
        let region = host.and_then(|(host, _)| registry_region(host)).map(str::to_owned);
        let repository = host.map(|(_, repository)| repository).or(place);
        let repository =
            repository.map(CacheRepository::new).transpose().map_err(|error| error.to_string())?;
        if name.is_empty() || name.contains('/') {
            return Err("expected repository:tag or repository@sha256:...".to_owned());
        }
        Ok(Self { region, repository, name: name.to_owned() })
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&plain(&self.name))
    }
}

impl Asked {
    /// The images that it may mean: of a tag the one, of digits all that begin so.
    fn of<'i>(&self, inventory: &'i Inventory) -> Vec<&'i ListedImage> {
        let tagged = inventory.images.iter().find(|image| image.tags.contains(&self.name));
        if let Some(image) = tagged {
            return vec![image];
        }
        let digits = self.name.strip_prefix("sha256:").unwrap_or(&self.name).to_ascii_lowercase();
        if digits.len() < 8 {
            return Vec::new();
        }
        let begins = |image: &&ListedImage| image.digest.hex().starts_with(&digits);
        inventory.images.iter().map(|image| &**image).filter(begins).collect()
    }
}

/// All that is known of an image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Life {
    repository: String,
    projects: Vec<ProjectName>,
    mode: String,
    /// `cache`, `index`, `other`, `archived` or `unread`.
    kind: &'static str,
    #[serde(flatten)]
    verdict: Judged,
    #[serde(skip_serializing_if = "Option::is_none")]
    made_by: Option<Made>,
    lines: Vec<OnLine>,
    /// Running builds that were given it.
    read_by: Vec<Reader>,
    last_use: LastUse,
    /// When it goes if nothing changes; absent where it stays, and where it goes or waits now.
    #[serde(skip_serializing_if = "Option::is_none")]
    goes: Option<Goes>,
    shares: Shares,
    /// What its deletion alone would free.
    frees_alone: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    build: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
    started_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    reused_percent: Option<u8>,
    /// `manifest`, as Stoker wrote it, or `codebuild`, which was told to export to its tag.
    known_by: &'static str,
}

/// A line that it is on, or was.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OnLine {
    line: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    is_now: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_at: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reader {
    build: String,
    started_at: Timestamp,
}

#[derive(Debug, Serialize)]
struct LastUse {
    at: Timestamp,
    /// `pushed`, `built` or `given`.
    by: &'static str,
}

#[derive(Debug, Serialize)]
struct Goes {
    at: Timestamp,
    rule: &'static str,
    why: String,
}

/// What it has in common with other images of its repository.
#[derive(Debug, Default, Serialize)]
struct Shares {
    blobs: usize,
    bytes: u64,
    images: usize,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let policy = super::load(&args.policy)?;
    if args.image.repository.is_none() && args.project.is_none() {
        return Err(Problem::usage(
            format!("whose image is {}?", args.image),
            "write repository:tag or repository@sha256:..., or name its project with --project",
        ));
    }
    let account = Account::find(args.image.region.as_deref()).await?;
    let now = Timestamp::now();
    let mut places = repositories(&account, &policy, args.project.as_slice()).await?;
    if let Some(named) = &args.image.repository {
        let known: Vec<String> = places.iter().map(|(repository, _)| repository.to_string()).collect();
        places.retain(|(repository, _)| repository == named);
        if places.is_empty() {
            return Err(Problem::usage(
                format!("no project of the policy has caches in {named}"),
                format!("they are in these: {}", known.join(", ")),
            ));
        }
    }
    let mut searched = Vec::new();
    for (repository, projects) in places {
        let planned = planned(&account, &repository, projects, now).await?;
        if let Some(image) = one(&args.image, &planned.inventory)? {
            let image = image.clone();
            let life = life(&account, &planned, &image, now).await?;
            return Ok(CommandOutcome::yes(if args.json { to_json(&life) } else { reported(&life, now) }));
        }
        searched.push(repository.to_string());
    }
    Err(Problem::usage(
        format!("{} has no image {}", searched.join(" and "), args.image),
        "it may have been deleted; `stoker plan --all` lists what is there",
    ))
}

fn one<'i>(asked: &Asked, inventory: &'i Inventory) -> Result<Option<&'i ListedImage>, Problem> {
    match asked.of(inventory).as_slice() {
        [] => Ok(None),
        [image] => Ok(Some(image)),
        several => {
            let digests: Vec<String> = several.iter().take(5).map(|image| image.digest.to_string()).collect();
            Err(Problem::usage(
                format!("{} begin with {asked}", count(several.len(), "digest")),
                format!("give more digits: {}", digests.join(", ")),
            ))
        }
    }
}

async fn life(
    account: &Account,
    planned: &Planned,
    image: &ListedImage,
    now: Timestamp,
) -> Result<Life, Problem> {
    let Planned { projects, inventory, plan_inputs, plan } = planned;
    let verdict = plan.verdicts.iter().find(|verdict| verdict.image.digest == image.digest);
    let verdict =
        verdict.ok_or_else(|| Problem::failed("the plan lacks the image", "report this as a mistake"))?;
    let facts = inventory.known.of(&image.digest);
    let builds = builds(account, projects).await?;
    let inputs = builds.iter().filter_map(|build| Some((&**build, build.inputs.as_ref()?)));
    let inputs: Vec<(&Build, &GivenInputs)> = inputs.collect();
    let running = inputs.iter().filter(|(build, inputs)| {
        build.status == BuildStatus::InProgress && inputs.caches().any(|digest| *digest == image.digest)
    });
    let read_by =
        running.map(|(build, _)| Reader { build: build.id.clone(), started_at: build.started_at }).collect();
    let (used_at, by) = last_use(image, facts, plan_inputs);
    let goes = forecast::goes_at(inventory, projects, plan_inputs, now, &image.digest);
    let (shares, frees_alone) = shares(inventory, &image.digest);
    Ok(Life {
        repository: plan.repository.to_string(),
        projects: projects.iter().map(|project| project.name.clone()).collect(),
        mode: planned.mode().to_string(),
        kind: match facts.map(ManifestInfo::shape) {
            Some(Shape::Cache) => "cache",
            Some(Shape::Mount) => "mount",
            Some(Shape::Index) => "index",
            Some(Shape::Other) => "other",
            None if image.is_archived => "archived",
            Some(Shape::TooLarge) | None => "unread",
        },
        verdict: Judged::new(planned, verdict),
        made_by: made_by(inventory, image, &inputs),
        lines: lines(inventory, image),
        read_by,
        last_use: LastUse { at: used_at, by: name_of(by) },
        goes: goes.map(|(at, verdict)| Goes { at, rule: verdict.rule.name(), why: verdict.why() }),
        shares,
        frees_alone,
        refused: plan.refused.clone(),
    })
}

/// The newest builds of the projects, and of those that build their forks.
async fn builds(account: &Account, projects: &[Project]) -> Result<Vec<Arc<Build>>, Problem> {
    let built_by =
        projects.iter().flat_map(|project| [Some(&project.name), project.builds.forks.project.as_ref()]);
    let builds = try_join_all(built_by.flatten().map(|project| account.recent(project, None))).await;
    Ok(builds.map_err(|error| account::problem(&error))?.concat())
}

fn made_by(inventory: &Inventory, image: &ListedImage, inputs: &[(&Build, &GivenInputs)]) -> Option<Made> {
    let facts = inventory.known.of(&image.digest);
    let by_manifest = facts.and_then(|facts| {
        Some(Made {
            build: facts.build()?.to_owned(),
            commit: facts.commit().map(|commit| commit.to_string()),
            started_at: facts.built_at()?,
            reused_percent: facts.reused_percent(),
            known_by: "manifest",
        })
    });
    by_manifest.or_else(|| {
        let exported =
            |(_, inputs): &&(&Build, &GivenInputs)| inputs.exports.iter().any(|tag| image.tags.contains(tag));
        inputs.iter().find(exported).map(|(build, inputs)| Made {
            build: build.id.clone(),
            commit: inputs.commit.as_ref().map(ToString::to_string),
            started_at: build.started_at,
            reused_percent: None,
            known_by: "codebuild",
        })
    })
}

/// The lines that hold it or have left it, as its tags tell; that of its manifest where no tag tells any.
fn lines(inventory: &Inventory, image: &ListedImage) -> Vec<OnLine> {
    let named = inventory.known.of(&image.digest).and_then(ManifestInfo::line);
    let tagged = image.tags.iter().filter_map(|tag| {
        let (scope, kind) = Tag::parse(tag)?;
        let (key, left_at) = match kind {
            TagKind::Line(key) => (key, None),
            TagKind::History { line, left_at } => (line, Some(left_at)),
            TagKind::Commit(_) | TagKind::Fork(_) | TagKind::Export(_) | TagKind::Given(_) => {
                return None;
            }
        };
        let named = named.filter(|line| line.key() == key);
        Some(OnLine {
            line: named.map_or_else(|| key.to_string(), ToString::to_string),
            scope: Some(scope.to_string()),
            is_now: left_at.is_none(),
            left_at,
        })
    });
    let mut lines: Vec<OnLine> = tagged.collect();
    if lines.is_empty() {
        let was =
            named.map(|line| OnLine { line: line.to_string(), scope: None, is_now: false, left_at: None });
        lines.extend(was);
    }
    lines
}

fn name_of(by: Use) -> &'static str {
    match by {
        Use::Pushed => "pushed",
        Use::Built => "built",
        Use::Given => "given",
    }
}

/// What it shares with other images, and the bytes that nothing else has.
fn shares(inventory: &Inventory, digest: &Digest) -> (Shares, u64) {
    let own: BTreeSet<u32> =
        inventory.known.of(digest).into_iter().flat_map(ManifestInfo::blobs).copied().collect();
    let mut shares = Shares::default();
    let mut shared = BTreeSet::new();
    for other in inventory.images.iter().filter(|other| other.digest != *digest) {
        let blobs = inventory.known.of(&other.digest).into_iter().flat_map(ManifestInfo::blobs);
        let common: Vec<u32> = blobs.copied().filter(|blob| own.contains(blob)).collect();
        shares.images += usize::from(!common.is_empty());
        shared.extend(common);
    }
    shares.blobs = shared.len();
    shares.bytes = shared.iter().map(|blob| inventory.known.size(*blob)).sum();
    let alone = own.difference(&shared).map(|blob| inventory.known.size(*blob)).sum();
    (shares, alone)
}

fn reported(life: &Life, now: Timestamp) -> String {
    let Life { repository, verdict, .. } = life;
    let since = |at: Timestamp| format!("{} ({at})", ago(now, Some(at), "at an unknown time"));
    let mut rows = vec![
        (
            "kind",
            format!("{}, {}, pushed {}", kind(life.kind), size(verdict.bytes), since(verdict.pushed_at)),
        ),
        ("project", project(life)),
        ("tags", tags(&verdict.tags)),
    ];
    rows.push((
        "made by",
        life.made_by.as_ref().map_or_else(|| "not known".to_owned(), |made| made_text(made, now)),
    ));
    rows.extend(life.lines.iter().map(|line| ("line", line_text(line, now))));
    if life.read_by.is_empty() {
        rows.push(("read by", "no running build".to_owned()));
    }
    rows.extend(life.read_by.iter().map(|reader| {
        ("read by", format!("build {}, running since {}", plain(&reader.build), reader.started_at))
    }));
    rows.push(("last use", format!("{} {}", use_text(life.last_use.by), since(life.last_use.at))));
    let shares = &life.shares;
    rows.push((
        "shares",
        format!(
            "{} in {} with {}",
            size(shares.bytes),
            count(shares.blobs, "blob"),
            count(shares.images, "other image")
        ),
    ));
    rows.push(("frees", format!("{}, deleted alone", size(life.frees_alone))));
    rows.push((
        "verdict",
        format!("{}, rule {}: {}", verdict.action, verdict.rule, plain_whole(&verdict.why)),
    ));
    rows.push(("goes", goes_text(life, now)));
    let rows = rows.into_iter().map(|(name, value)| format!("  {name:8}  {value}\n"));
    format!("{repository}@{}\n{}", verdict.digest, rows.collect::<String>())
}

fn kind(kind: &str) -> &'static str {
    match kind {
        "cache" => "a cache",
        "index" => "an index of other images",
        "archived" => "archived: nobody can read it",
        "unread" => "its manifest could not be read",
        _ => "no cache",
    }
}

fn project(life: &Life) -> String {
    match (&life.verdict.project, &life.verdict.scope) {
        (Some(project), Some(scope)) => format!("{project}, scope {scope}"),
        (None, Some(scope)) => format!("none of the policy has the scope {}", plain(scope)),
        (None | Some(_), None) => "no tag tells it".to_owned(),
    }
}

fn tags(tags: &[String]) -> String {
    if tags.is_empty() {
        return "none".to_owned();
    }
    tags.iter().map(|tag| plain(tag)).collect::<Vec<_>>().join(" ")
}

fn made_text(made: &Made, now: Timestamp) -> String {
    let of = made.commit.as_ref().map(|commit| format!(" of commit {}", plain(commit))).unwrap_or_default();
    let warm =
        made.reused_percent.map(|share| format!(", {share} % of its steps reused")).unwrap_or_default();
    let by = if made.known_by == "manifest" { "its manifest" } else { "CodeBuild" };
    let started = ago(now, Some(made.started_at), "at an unknown time");
    format!("build {}{of}, started {started} ({}){warm}, as {by} says", plain(&made.build), made.started_at)
}

fn line_text(line: &OnLine, now: Timestamp) -> String {
    let name = plain(&line.line);
    match line.left_at {
        None if line.is_now => format!("{name} is this cache"),
        None => format!("{name} was this cache or its commit's; no tag tells more"),
        Some(at) => format!("{name} left it {} ({at})", ago(now, Some(at), "at an unknown time")),
    }
}

fn use_text(by: &str) -> &'static str {
    match by {
        "built" => "the newest build in it started",
        "given" => "a build was given it",
        _ => "pushed",
    }
}

fn goes_text(life: &Life, now: Timestamp) -> String {
    let text = match (&life.goes, life.verdict.action.as_str()) {
        (Some(goes), _) => {
            format!("{}, {}, by {}: {}", goes.at, until(now, goes.at), goes.rule, plain_whole(&goes.why))
        }
        (None, "delete") if life.mode == "report" => "now, if the policy's mode were `apply`".to_owned(),
        (None, "delete") => "with the next run".to_owned(),
        (None, "wait") => "once no running build holds it".to_owned(),
        (None, _) => "never, if nothing changes".to_owned(),
    };
    match &life.refused {
        Some(why) => format!("{text}; but {}", plain_whole(why)),
        None => text,
    }
}

fn until(now: Timestamp, then: Timestamp) -> String {
    let seconds = then.as_second() - now.as_second();
    match seconds {
        ..7_200 => format!("in {} min", seconds.max(0) / 60),
        7_200..172_800 => format!("in {} h", seconds / 3600),
        _ => format!("in {} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_in_many_ways() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, region, repository, name) in [
            ("stoker/app:app.main", None, Some("stoker/app"), "app.main"),
            (&format!("stoker/app@{digest}"), None, Some("stoker/app"), digest.as_str()),
            ("app.main", None, None, "app.main"),
            ("1f2e3d4c", None, None, "1f2e3d4c"),
            (&digest, None, None, digest.as_str()),
            (
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com/stoker/app:x",
                Some("eu-west-1"),
                Some("stoker/app"),
                "x",
            ),
        ] {
            let asked: Asked = text.parse().unwrap();
            assert_eq!(asked.region.as_deref(), region, "{text}");
            assert_eq!(asked.repository.as_ref().map(CacheRepository::as_str), repository, "{text}");
            assert_eq!(asked.name, name, "{text}");
        }
        for text in ["", "stoker/app", "Stoker/App:x", "stoker/app:", "a:b/c"] {
            assert!(text.parse::<Asked>().is_err(), "{text}");
        }
    }
}
