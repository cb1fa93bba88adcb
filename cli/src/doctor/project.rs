//! CodeBuild projects: can they build with a cache, does their role fit, and were their builds warm?

use std::collections::BTreeMap;

use jiff::Timestamp;
use stoker_core::build_inputs::variable;
use stoker_core::names::{CacheRepository, ProjectName, Repository};
use stoker_core::onboard::{Found, PastBuild, Webhook};
use stoker_core::policy::{ForkBuilds, Project};

use super::checkout::Checkout;
use super::finding::{Fact, Finding};
use super::repository::{Facts as RepositoryFacts, LineImage};
use super::stack::Stack;
use super::{buildspec, lifecycle, roles};
use crate::text::{ago, count, plain};

/// Fewer builds say nothing.
const TELLING: usize = 3;
/// A build that was given caches and reused less was as good as cold.
const COLD_PERCENT: u8 = 10;

/// A project of CodeBuild's that runs builds of a project of the policy.
pub(super) struct Facts<'p> {
    pub(super) project: &'p Project,
    pub(super) name: ProjectName,
    /// Whether it builds forks' pull requests.
    pub(super) is_forks: bool,
    pub(super) seen: Seen,
    /// The source, where it is at hand.
    pub(super) checkout: Option<&'p Checkout>,
}

/// What AWS says of a project.
pub(super) struct Seen {
    /// `None` where there is none.
    pub(super) described: Fact<Option<Found>>,
    /// `None` where the project has no role that is known.
    pub(super) role: Option<roles::Seen>,
    /// Its newest builds, the newest first.
    pub(super) builds: Fact<Vec<PastBuild>>,
}

/// The projects of CodeBuild that build these, each once, with whether it builds forks.
pub(super) fn built_by(projects: &[Project]) -> Vec<(&Project, ProjectName, bool)> {
    let of = |project: &'_ Project| {
        project.builds.forks.project.clone().filter(|_| project.builds.forks.build != ForkBuilds::None)
    };
    let own = projects.iter().map(|project| (project, project.name.clone(), false));
    own.chain(projects.iter().filter_map(|project| Some((project, of(project)?, true)))).collect()
}

pub(super) fn check(
    facts: &Facts<'_>,
    all: &[Facts<'_>],
    repositories: &BTreeMap<CacheRepository, RepositoryFacts>,
    stack: Option<&Stack>,
    now: Timestamp,
) -> Vec<Finding> {
    let Facts { project, name, is_forks, seen, checkout } = facts;
    let described = match &seen.described {
        Ok(Some(described)) => described,
        Ok(None) => {
            let what = if *is_forks {
                "pull requests of forks are never built"
            } else {
                "nothing is built, and main stays cold"
            };
            return vec![Finding::wrong(
                "exists",
                format!("CodeBuild has no such project: {what}"),
                "make it, correct its name in the policy, or set AWS_REGION to where it is: aws codebuild \
                 list-projects",
            )];
        }
        Err(missing) => {
            let mut findings = vec![Finding::missing("settings", missing)];
            findings.push(builds(facts, now));
            return findings;
        }
    };
    let mut findings = vec![environment(name, described)];
    let spec = described.buildspec.as_deref();
    findings.extend(buildspec::check(project, spec, &described.image, *is_forks, *checkout));
    findings.extend(buildx(name, described));
    findings.extend(network(project, described));
    findings.extend(docker_server(name, described));
    findings.extend(batch(project, described));
    findings.push(source(project, described));
    findings.extend(version(project, described, *is_forks));
    findings.extend(secondary(described));
    findings.push(webhook(project, name, described, *is_forks));
    findings.push(local_cache(name, described));
    findings.push(variables(described));
    findings.push(lease(project, described));
    findings.push(concurrency(name, described));
    findings.extend(pattern(name, stack));
    if *is_forks {
        findings.extend(own_role(described, project, all));
    } else {
        findings.extend(base_images(project, stack));
    }
    match &seen.role {
        Some(role) => findings.extend(roles::check(role, *is_forks, stack)),
        None => findings.push(Finding::wrong(
            "role",
            "it has no service role",
            "give it one: aws codebuild update-project --service-role",
        )),
    }
    findings.push(builds(facts, now));
    if !is_forks {
        findings.extend(hit_rate(project, repositories));
    }
    findings
}

fn environment(name: &ProjectName, described: &Found) -> Finding {
    const CHECK: &str = "environment";
    let kind = plain(&described.environment);
    let update = format!("aws codebuild update-project --name {name} --environment");
    if kind.contains("LAMBDA") || kind.contains("WINDOWS") || kind.contains("MAC") {
        return Finding::wrong(
            CHECK,
            format!("{kind} runs no BuildKit for Linux images"),
            format!("{update} with type LINUX_CONTAINER or ARM_CONTAINER, and privilegedMode true"),
        );
    }
    if kind.ends_with("_EC2") {
        return Finding::unknown(
            CHECK,
            format!("{kind}: builds run on a machine of a fleet, and not in a container"),
            "see in a build's log that `docker buildx create` works there",
        );
    }
    if !described.is_privileged && !described.has_docker_server {
        return Finding::wrong(
            CHECK,
            "not privileged: Docker does not start in it",
            format!("{update} as it is, with privilegedMode true"),
        );
    }
    Finding::ok(CHECK, format!("{kind}, {}, privileged", plain(&described.image)))
}

/// CodeBuild's older images have a Docker without buildx.
fn buildx(name: &ProjectName, described: &Found) -> Option<Finding> {
    const NEWEST_WITHOUT: u32 = 6;
    let version = described.image.strip_prefix("aws/codebuild/standard:")?.split('.').next()?;
    let installs = described.buildspec.as_deref().is_some_and(|spec| spec.contains("cli-plugins"));
    (version.parse::<u32>().ok()? <= NEWEST_WITHOUT && !installs).then(|| {
        Finding::wrong(
            "buildx",
            format!("{} has no `docker buildx`", plain(&described.image)),
            format!(
                "aws codebuild update-project --name {name} --environment as it is, with image \
                 aws/codebuild/standard:7.0 or newer"
            ),
        )
    })
}

/// What a builder is made of is pulled, which a closed network may not let through.
fn network(project: &Project, described: &Found) -> Option<Finding> {
    let spec = described.buildspec.as_deref().unwrap_or_default();
    let image = spec
        .split("image=")
        .nth(1)
        .or_else(|| spec.contains(variable::BUILDER).then_some(project.builder_image.as_str()));
    let host = image.and_then(|image| image.split('/').next()).unwrap_or_default();
    let is_elsewhere = host.contains('.') && !host.contains(char::is_whitespace) && host != "docker.io";
    (described.has_vpc && !is_elsewhere).then(|| {
        Finding::unknown(
            "network",
            "builds run in a VPC, and `docker buildx create` pulls moby/buildkit from Docker Hub",
            "see that Docker Hub can be reached from there; else push the image to ECR and name it as \
             `builder.image` in the policy",
        )
    })
}

/// A Docker server has a builder of its own, past which `docker buildx create` goes.
fn docker_server(name: &ProjectName, described: &Found) -> Option<Finding> {
    described.has_docker_server.then(|| {
        Finding::warn(
            "docker server",
            "the project has a Docker server, and `docker buildx create --use` goes past it: its own layers are \
             not used",
            format!(
                "do without the server (aws codebuild update-project --name {name} --environment without \
                 dockerServer), as Stoker's \
                 caches do its work; with it, see in a build's log which builder runs and that it exports \
                 registry caches"
            ),
        )
    })
}

/// Stoker starts single builds: what a buildspec or a project has for batches is not heeded.
fn batch(project: &Project, described: &Found) -> Option<Finding> {
    const CHECK: &str = "batch";
    const REPAIR: &str = "name each image and platform as one of `targets` in the policy and build all in one \
         build, or make a project \
                        of each build of the batch; or start the batches yourself, with `builds.start: false`";
    if !project.builds.start {
        return None;
    }
    if described.buildspec.as_deref().is_some_and(buildspec::has_batch) {
        let found = "the buildspec has a `batch`, and Stoker starts single builds: its matrix, list or graph is \
             never run";
        return Some(Finding::wrong(CHECK, found, REPAIR));
    }
    let found = "the project is set up for batches, and Stoker starts single builds: a `batch` of the buildspec \
         is never run";
    described
        .has_batch
        .then(|| Finding::unknown(CHECK, found, format!("see that the buildspec has none; else {REPAIR}")))
}

/// Host and path of an address that git clones from, as the policy names repositories.
pub(crate) fn repository_of(location: &str) -> String {
    let rest = location.split_once("://").map_or(location, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let rest = if location.contains("://") { rest.to_owned() } else { rest.replacen(':', "/", 1) };
    let path = rest.trim_end_matches('/').trim_end_matches(".git");
    Repository::new(path).map_or_else(|_| path.to_owned(), String::from)
}

fn source(project: &Project, described: &Found) -> Finding {
    const CHECK: &str = "source";
    let kind = plain(&described.source);
    if kind.starts_with("GITLAB") && project.builds.forks.build != ForkBuilds::None {
        return Finding::wrong(
            CHECK,
            format!(
                "{kind}: CodeBuild fetches no merge request of a fork from GitLab, so that none is built"
            ),
            "set `builds.forks: none` for the project",
        );
    }
    if ["CODEPIPELINE", "S3", "NO_SOURCE"].contains(&kind.as_str()) {
        if !project.builds.start {
            return Finding::ok(CHECK, format!("{kind}: others start its builds"));
        }
        return Finding::wrong(
            CHECK,
            format!("{kind}: Stoker cannot have a commit built from it"),
            "give the project the git repository as its source, or set `builds.start: false` for it",
        );
    }
    let found = repository_of(&described.location);
    if found == project.repository.as_str() {
        return Finding::ok(CHECK, plain(&found));
    }
    if !found.contains('/') {
        return Finding::unknown(
            CHECK,
            format!("{}: no repository is named", plain(&found)),
            "see that it builds the policy's `repository`",
        );
    }
    Finding::wrong(
        CHECK,
        format!(
            "{}, and the policy says {}: its pushes start builds that cannot find their commit",
            plain(&found),
            project.repository
        ),
        "correct `repository` in the policy, or the project's source",
    )
}

/// The version that a project names is of its other builds: Stoker says of each what it is to build.
fn version(project: &Project, described: &Found, is_forks: bool) -> Option<Finding> {
    const CHECK: &str = "source version";
    let version = described.version.as_deref()?;
    let branch = version.strip_prefix("refs/heads/").unwrap_or(version);
    if is_forks || branch == project.default_branch().as_str() {
        return Some(Finding::ok(CHECK, plain(version)));
    }
    let found = match &project.named_default_branch {
        Some(named) => format!(
            "the project names {}; Stoker's builds of main are of {named} all the same, and builds that others \
             start are not",
            plain(version)
        ),
        None => format!(
            "the project names {}, and the policy no `default-branch`: at night main is warmed with builds of that",
            plain(version)
        ),
    };
    Some(Finding::warn(
        CHECK,
        found,
        "write the default branch as `default-branch` into the policy, or take sourceVersion from the project",
    ))
}

fn secondary(described: &Found) -> Option<Finding> {
    let names: Vec<String> = described.secondary.iter().map(|name| plain(name)).collect();
    (!names.is_empty()).then(|| {
        Finding::warn(
            "secondary sources",
            format!(
                "{} come in the versions that the project names, whatever commit is built",
                names.join(", ")
            ),
            "steps that copy them are warm only while they stay the same: pin their versions in the project",
        )
    })
}

/// Whether a webhook of CodeBuild's own starts builds of pushes or pull requests, by its filter groups.
fn starts_builds(webhook: &Webhook) -> bool {
    let starts = |group: &Vec<(String, String, bool)>| {
        let of =
            |kind: &str| group.iter().find(|(of, ..)| of == kind).map(|(_, pattern, _)| pattern.as_str());
        let is_of_tags =
            of("HEAD_REF").is_some_and(|pattern| pattern.trim_start_matches('^').starts_with("refs/tags/"));
        let meant = ["PUSH", "PULL_REQUEST_CREATED", "PULL_REQUEST_UPDATED", "PULL_REQUEST_REOPENED"];
        let is_push =
            of("EVENT").is_none_or(|events| events.split(',').any(|event| meant.contains(&event.trim())));
        is_push && !is_of_tags
    };
    webhook.groups.is_empty() || webhook.groups.iter().any(starts)
}

fn webhook(project: &Project, name: &ProjectName, described: &Found, is_forks: bool) -> Finding {
    const CHECK: &str = "webhook";
    let delete = format!("aws codebuild delete-webhook --project-name {name}");
    let starts = described.webhook.as_ref().is_some_and(starts_builds);
    match (starts, is_forks, project.builds.start) {
        (true, true, _) => Finding::warn(
            CHECK,
            "CodeBuild's own webhook starts builds of forks, which `builds.forks` does not ask for",
            delete,
        ),
        (true, false, true) => Finding::warn(
            CHECK,
            "CodeBuild's own webhook starts builds, and so does Stoker: pushes are built twice",
            format!(
                "see that `builds` keeps out what its filters do (docs/threat-model.md), then {delete}; or set \
                 `builds.start: false`"
            ),
        ),
        (true, false, false) => Finding::ok(CHECK, "CodeBuild's own starts the builds"),
        (false, ..) if described.webhook.is_some() => {
            Finding::ok(CHECK, "CodeBuild's own starts no build of a push")
        }
        (false, _, true) => Finding::ok(CHECK, "none of CodeBuild's own: Stoker starts the builds"),
        (false, _, false) => Finding::ok(CHECK, "none: others start the builds"),
    }
}

fn local_cache(name: &ProjectName, described: &Found) -> Finding {
    const CHECK: &str = "local cache";
    if described.caches_layers {
        return Finding::warn(
            CHECK,
            "LOCAL_DOCKER_LAYER_CACHE: it is of no use to a builder of its own, and lets builds of one host \
             share layers",
            format!("aws codebuild update-project --name {name} --cache type=NO_CACHE"),
        );
    }
    Finding::ok(CHECK, "none of Docker's layers")
}

fn variables(described: &Found) -> Finding {
    const CHECK: &str = "variables";
    let ours: Vec<String> = described
        .variables
        .iter()
        .filter(|name| name.starts_with("STOKER_"))
        .map(|name| plain(name))
        .collect();
    if ours.is_empty() {
        return Finding::ok(CHECK, "none of the project's own begins with STOKER_");
    }
    Finding::warn(
        CHECK,
        format!("the project sets {}: builds that Stoker did not start take it for theirs", ours.join(", ")),
        "take variables that begin with STOKER_ from the project's environment",
    )
}

fn lease(project: &Project, described: &Found) -> Finding {
    const CHECK: &str = "lease";
    let (run, wait) = described.minutes;
    let longest = run.saturating_add(wait);
    let lease = u64::try_from(project.retention.lease.as_hours()).unwrap_or(0);
    let lease_minutes = u64::try_from(project.retention.lease.as_secs() / 60).unwrap_or(0);
    let found = format!("builds wait {wait} min and run {run} min at most, the lease is {lease} h");
    if longest < lease_minutes {
        return Finding::ok(CHECK, found);
    }
    Finding::warn(
        CHECK,
        format!("{found}: a cache may be deleted from under a build that waited"),
        format!("set `retention.lease` to {}h at least", longest / 60 + 1),
    )
}

fn concurrency(name: &ProjectName, described: &Found) -> Finding {
    const CHECK: &str = "concurrency";
    match described.limit {
        Some(limit @ 0..=1) => Finding::warn(
            CHECK,
            format!("{limit} build at a time: every push waits for the one before"),
            format!(
                "aws codebuild update-project --name {name} --concurrent-build-limit 10 (-1 is no limit)"
            ),
        ),
        Some(limit) => {
            Finding::ok(CHECK, format!("{limit} builds at a time; further pushes wait in Stoker's queue"))
        }
        None => Finding::ok(CHECK, "no limit of the project's own"),
    }
}

/// Whether Stoker may start its builds.
fn pattern(name: &ProjectName, stack: Option<&Stack>) -> Option<Finding> {
    const CHECK: &str = "pattern";
    let pattern = stack?.parameter("BuildProjectPattern")?;
    Some(if is_like(pattern, name.as_str()) {
        Finding::ok(CHECK, format!("BuildProjectPattern is {}", plain(pattern)))
    } else {
        Finding::wrong(
            CHECK,
            format!("BuildProjectPattern is {}: Stoker may not start or see its builds", plain(pattern)),
            "sam deploy --parameter-overrides BuildProjectPattern=... with a pattern that matches all projects \
             of the policy",
        )
    })
}

fn base_images(project: &Project, stack: Option<&Stack>) -> Option<Finding> {
    const CHECK: &str = "base images";
    let pattern = stack?.parameter("BaseImageRepositories")?;
    let mut images = project.warm.base_images.iter();
    let hidden = images.clone().find(|image| !is_like(pattern, image.repository.as_str()));
    match hidden {
        Some(image) => Some(Finding::wrong(
            CHECK,
            format!(
                "Stoker may not look at {}: BaseImageRepositories is `{}`",
                image.repository,
                plain(pattern)
            ),
            "sam deploy --parameter-overrides BaseImageRepositories=... with a pattern that matches it",
        )),
        None => {
            images.next().map(|_| Finding::ok(CHECK, format!("BaseImageRepositories is {}", plain(pattern))))
        }
    }
}

/// IAM's patterns: `*` and `?`.
fn is_like(pattern: &str, text: &str) -> bool {
    lifecycle::overlap(&pattern.replace('?', "*"), text)
}

/// A fork's code must not run with the role of the project itself.
fn own_role(described: &Found, project: &Project, all: &[Facts<'_>]) -> Option<Finding> {
    const CHECK: &str = "own role";
    let of_project = all.iter().find(|facts| !facts.is_forks && facts.name == project.name)?;
    let of_project = of_project.seen.described.as_ref().ok()?.as_ref()?;
    Some(if described.role == of_project.role {
        Finding::wrong(
            CHECK,
            format!(
                "{} is the role of {} too: strangers' code may do what its builds may",
                plain(&described.role),
                project.name
            ),
            "give it a role of its own with ForkBuildPolicy: aws codebuild update-project --service-role",
        )
    } else {
        Finding::ok(CHECK, plain(&described.role))
    })
}

fn builds(facts: &Facts<'_>, now: Timestamp) -> Finding {
    const CHECK: &str = "recent builds";
    let builds = match &facts.seen.builds {
        Ok(builds) => builds,
        Err(missing) => return Finding::missing(CHECK, missing),
    };
    let ours: Vec<&PastBuild> = builds.iter().filter(|build| build.is_stokers()).collect();
    let given = ours.iter().filter(|build| build.is_given()).count();
    if ours.is_empty() && (facts.is_forks || !facts.project.builds.start || builds.is_empty()) {
        return Finding::unknown(
            CHECK,
            format!("{}, none by Stoker", count(builds.len(), "build")),
            "push something, and run this again",
        );
    }
    if ours.is_empty() {
        return Finding::warn(
            CHECK,
            format!("{}, and Stoker started none of them", count(builds.len(), "build")),
            "see the forge's list of deliveries to the output WebhookUrl, and what `stoker simulate` says of one",
        );
    }
    let last = ours.first().map(|build| ago(now, Some(build.started_at), "unknown")).unwrap_or_default();
    let found = format!("{} by Stoker, {given} given caches, the last {last}", count(ours.len(), "build"));
    if given == 0 && ours.len() >= TELLING {
        return Finding::warn(
            CHECK,
            found,
            "see that lines exist (above), and the log of promote-cache: nothing that builds export reaches a line",
        );
    }
    Finding::ok(CHECK, found)
}

/// Builds that are given caches and reuse nothing of them.
fn hit_rate(project: &Project, repositories: &BTreeMap<CacheRepository, RepositoryFacts>) -> Option<Finding> {
    const CHECK: &str = "cache hit rate";
    let lines = repositories.get(&project.cache_repository)?.seen.lines.as_ref().ok()?;
    let mut warm = Vec::new();
    for scope in project.scopes() {
        let tag = format!("{scope}.main");
        let Some(provenance) = lines.iter().find(|line| line.tag == tag).and_then(LineImage::provenance)
        else {
            continue;
        };
        let (Some(percent), Some(built)) = (provenance.reused_percent, &provenance.built) else { continue };
        // A build from scratch is meant to be cold.
        if provenance.refreshed == Some(built.at) {
            continue;
        }
        if percent < COLD_PERCENT {
            return Some(Finding::warn(
                CHECK,
                format!("main's newest build of {tag} reused {percent} % of its steps"),
                "stoker cache diff tells what differs; the usual causes are a COPY of everything early, a build \
                 argument that \
                 changes, and another --network",
            ));
        }
        warm.push(percent);
    }
    let least = warm.iter().min()?;
    Some(Finding::ok(CHECK, format!("main's newest build reused {least} % of its steps")))
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use std::collections::BTreeSet;

    use stoker_aws_setup::Decision;

    use super::super::projects;
    use super::*;
    use crate::deployed::Missing;

    const SPEC: &str = "version: 0.2\nphases:\n  build:\n    commands:\n      - docker buildx create --use \
         $STOKER_BUILDER_FLAGS\n      \
                        - docker buildx build $STOKER_CACHE_FLAGS .\n";

    fn project(keys: &str) -> Project {
        projects(keys).remove(0)
    }

    fn described() -> Found {
        Found {
            name: ProjectName::new("app").unwrap(),
            arn: "arn:aws:codebuild:eu-west-1:123456789012:project/app".to_owned(),
            source: "GITHUB".to_owned(),
            location: "https://github.com/Example/App.git".to_owned(),
            version: None,
            secondary: Vec::new(),
            has_batch: false,
            has_docker_server: false,
            has_vpc: false,
            buildspec: Some(SPEC.to_owned()),
            environment: "LINUX_CONTAINER".to_owned(),
            image: "aws/codebuild/standard:7.0".to_owned(),
            is_privileged: true,
            variables: BTreeSet::from(["IMAGE".to_owned()]),
            role: "arn:aws:iam::123456789012:role/builds".to_owned(),
            minutes: (60, 480),
            limit: None,
            caches_layers: false,
            webhook: None,
            changed_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn build(is_given: bool) -> PastBuild {
        let given = if is_given { "type=registry,ref=stoker/app" } else { "" };
        let variables = [("IMAGE", "app"), ("STOKER_LINE", "main"), ("STOKER_CACHE_FROM", given)];
        PastBuild {
            id: "app:1".to_owned(),
            seconds: Some(60),
            phases: BTreeMap::new(),
            failure: None,
            log: None,
            started_at: Timestamp::UNIX_EPOCH,
            initiator: "stoker-StartBuildRole-1/stoker-start-build".to_owned(),
            is_git: true,
            has_succeeded: true,
            resolved: Some("ab".repeat(20)),
            variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        }
    }

    fn role() -> roles::Seen {
        let allowed = Decision { action: "ecr:PutImage".into(), on: "stoker/app".into(), is_allowed: true };
        let answers = || Ok(vec![allowed.clone()]);
        roles::Seen { name: "builds".to_owned(), reads: answers(), writes: answers(), border: Ok(Vec::new()) }
    }

    fn seen(described: Found) -> Seen {
        Seen {
            described: Ok(Some(described)),
            role: Some(role()),
            builds: Ok(vec![build(true), build(false)]),
        }
    }

    /// The checks of a project that are not ok.
    fn reported(keys: &str, change: impl FnOnce(&mut Facts<'_>)) -> Vec<(&'static str, State)> {
        let project = project(keys);
        let mut facts = Facts {
            project: &project,
            name: project.name.clone(),
            is_forks: false,
            seen: seen(described()),
            checkout: None,
        };
        change(&mut facts);
        let findings = check(&facts, &[], &BTreeMap::new(), None, Timestamp::now());
        assert!(findings.iter().all(|finding| (finding.state == State::Ok) == finding.repair.is_none()));
        findings.iter().filter(|f| f.state != State::Ok).map(|f| (f.check, f.state)).collect()
    }

    fn settings(keys: &str, change: impl FnOnce(&mut Found)) -> Vec<(&'static str, State)> {
        reported(keys, |facts| change(facts.seen.described.as_mut().unwrap().as_mut().unwrap()))
    }

    #[test]
    fn a_sound_project_is_sound() {
        assert_eq!(reported("", |_| ()), []);
    }

    #[test]
    fn each_defect_is_reported_by_its_own_check() {
        use State::{Unknown, Warn, Wrong};
        assert_eq!(reported("", |facts| facts.seen.described = Ok(None)), [("exists", Wrong)]);
        assert_eq!(settings("", |of| of.is_privileged = false), [("environment", Wrong)]);
        for kind in ["LINUX_LAMBDA_CONTAINER", "WINDOWS_SERVER_2022_CONTAINER", "MAC_ARM"] {
            assert_eq!(settings("", |of| of.environment = kind.to_owned()), [("environment", Wrong)]);
        }
        assert_eq!(settings("", |of| of.buildspec = None), [("buildspec", Unknown)]);
        assert_eq!(settings("", |of| of.environment = "LINUX_EC2".to_owned()), [("environment", Unknown)]);
        assert_eq!(settings("", |of| of.has_docker_server = true), [("docker server", Warn)]);
        assert_eq!(settings("", |of| of.image = "aws/codebuild/standard:5.0".into()), [("buildx", Wrong)]);
        let installs = SPEC.replace(
            "    commands:\n",
            "    commands:\n      - mv buildx ~/.docker/cli-plugins/docker-buildx\n",
        );
        let with_buildx = |of: &mut Found| {
            of.image = "aws/codebuild/standard:6.0".into();
            of.buildspec = Some(installs.clone());
        };
        assert_eq!(settings("", with_buildx), []);
        assert_eq!(settings("", |of| of.has_vpc = true), [("network", Unknown)]);
        let in_ecr = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/buildkit:v0.25.2";
        let by_policy = format!("    builder: {{ image: \"{in_ecr}\" }}\n");
        assert_eq!(settings(&by_policy, |of| of.has_vpc = true), []);
        let by_hand = SPEC.replace("$STOKER_BUILDER_FLAGS", &format!("--driver-opt image={in_ecr}"));
        let in_vpc = |of: &mut Found| {
            of.has_vpc = true;
            of.buildspec = Some(by_hand.clone());
        };
        assert_eq!(settings("", in_vpc), []);
        assert_eq!(settings("", |of| of.has_batch = true), [("batch", Unknown)]);
        assert_eq!(
            settings("", |of| of.version = Some("refs/heads/develop".into())),
            [("source version", Warn)]
        );
        for version in ["main", "refs/heads/main"] {
            assert_eq!(settings("", |of| of.version = Some(version.into())), []);
        }
        assert_eq!(
            settings("", |of| of.secondary = vec!["libs\u{1b}".into()]),
            [("secondary sources", Warn)]
        );
        let batches = format!("{SPEC}batch: {{ build-list: [{{ identifier: a }}] }}\n");
        assert_eq!(settings("", |of| of.buildspec = Some(batches.clone())), [("batch", Wrong)]);
        assert_eq!(settings("", |of| of.caches_layers = true), [("local cache", Warn)]);
        assert_eq!(settings("", |of| of.limit = Some(1)), [("concurrency", Warn)]);
        assert_eq!(settings("", |of| of.limit = Some(2)), []);
        assert_eq!(settings("", |of| of.minutes = (2160, 480)), [("lease", Warn)]);
        assert_eq!(settings("    retention: { lease: 2d }\n", |of| of.minutes = (2160, 480)), []);
        assert_eq!(
            settings("", |of| of.variables = BTreeSet::from(["STOKER_X\u{1b}".to_owned()])),
            [("variables", Warn)]
        );
        assert_eq!(
            settings("", |of| of.location = "https://github.com/example/other".into()),
            [("source", Wrong)]
        );
        assert_eq!(settings("", |of| of.source = "S3".into()), [("source", Wrong)]);
        let forks = "    builds: { forks: { build: read-only, project: app-forks } }\n";
        assert_eq!(settings(forks, |of| of.source = "GITLAB_SELF_MANAGED".into()), [("source", Wrong)]);
        assert_eq!(settings("", |of| of.location = "CODEBUILD_DEFAULT".into()), [("source", Unknown)]);
        assert_eq!(reported("", |facts| facts.seen.role = None), [("role", Wrong)]);
        let missing = || Missing { action: "codebuild:X", is_denied: true, why: String::new() };
        assert_eq!(reported("", |facts| facts.seen.described = Err(missing())), [("settings", Unknown)]);
        assert_eq!(reported("", |facts| facts.seen.builds = Err(missing())), [("recent builds", Unknown)]);
    }

    #[test]
    fn builds_that_are_given_nothing_are_reported() {
        let builds = |builds: Vec<PastBuild>| reported("", |facts| facts.seen.builds = Ok(builds));
        let foreign = || PastBuild { variables: BTreeMap::new(), ..build(false) };
        assert_eq!(builds(vec![build(false); 2]), [], "two say nothing");
        assert_eq!(builds(vec![build(false); 3]), [("recent builds", State::Warn)]);
        assert_eq!(builds(vec![foreign(); 3]), [("recent builds", State::Warn)]);
        assert_eq!(builds(Vec::new()), [("recent builds", State::Unknown)]);
    }

    #[test]
    fn addresses_of_one_repository_are_one() {
        for location in [
            "https://github.com/Example/App.git",
            "https://github.com/example/app/",
            "git@github.com:example/app.git",
            "https://user@github.com/example/app",
            "ssh://git@github.com/example/app.git",
        ] {
            assert_eq!(repository_of(location), "github.com/example/app", "{location}");
        }
        let with_port = "https://ghe.example.com:8443/example/app.git";
        assert_eq!(repository_of(with_port), "ghe.example.com/example/app");
        let codecommit = "https://git-codecommit.eu-west-1.amazonaws.com/v1/repos/App";
        assert_eq!(repository_of(codecommit), "git-codecommit.eu-west-1.amazonaws.com/v1/repos/App");
    }

    #[test]
    fn a_webhook_of_codebuilds_own_builds_twice() {
        let filter = |kind: &str, pattern: &str| (kind.to_owned(), pattern.to_owned(), false);
        let of = |keys: &str, groups| {
            settings(keys, |of| of.webhook = Some(Webhook { groups, ..Webhook::default() }))
        };
        let warns = [("webhook", State::Warn)];
        assert_eq!(of("", Vec::new()), warns, "without filters everything is built");
        assert_eq!(of("", vec![vec![filter("EVENT", "PULL_REQUEST_MERGED, PUSH")]]), warns);
        assert_eq!(of("", vec![vec![filter("HEAD_REF", "^refs/heads/main$")]]), warns);
        assert_eq!(of("", vec![vec![filter("EVENT", "PUSH"), filter("HEAD_REF", "^refs/tags/.*")]]), []);
        assert_eq!(of("", vec![vec![filter("EVENT", "WORKFLOW_JOB_QUEUED")]]), []);
        let others = of("    builds: { start: false }\n", Vec::new());
        assert_eq!(others, [("exported variables", State::Warn)], "it is theirs to start builds");
    }

    #[test]
    fn a_forks_project_has_a_role_of_its_own_that_writes_nothing() {
        let keys = "    builds: { forks: { build: read-only, project: app-forks } }\n";
        let project = project(keys);
        let of_project = Facts {
            project: &project,
            name: project.name.clone(),
            is_forks: false,
            seen: seen(described()),
            checkout: None,
        };
        let judged = |change: &dyn Fn(&mut Seen)| {
            let mut seen = seen(Found { role: "arn:aws:iam::1:role/forks".into(), ..described() });
            change(&mut seen);
            let name = ProjectName::new("app-forks").unwrap();
            let facts = Facts { project: &project, name, is_forks: true, seen, checkout: None };
            let of_project = std::slice::from_ref(&of_project);
            let findings = check(&facts, of_project, &BTreeMap::new(), None, Timestamp::now());
            findings.iter().filter(|f| f.state != State::Ok).map(|f| (f.check, f.state)).collect::<Vec<_>>()
        };
        assert_eq!(judged(&|_| ()), []);
        let same = |seen: &mut Seen| seen.described = Ok(Some(described()));
        assert_eq!(judged(&same), [("own role", State::Wrong)]);
        let writes = |seen: &mut Seen| {
            let role = seen.role.as_mut().unwrap();
            role.border.clone_from(&role.reads);
        };
        assert_eq!(judged(&writes), [("role's border", State::Wrong)]);
        let hooked = |seen: &mut Seen| {
            seen.described.as_mut().unwrap().as_mut().unwrap().webhook = Some(Webhook::default());
        };
        assert_eq!(judged(&hooked), [("webhook", State::Warn)]);
        let names: Vec<String> =
            built_by(std::slice::from_ref(&project)).iter().map(|(_, name, _)| name.to_string()).collect();
        assert_eq!(names, ["app", "app-forks"]);
    }

    #[test]
    fn the_stacks_patterns_have_to_match() {
        let name = ProjectName::new("team-web").unwrap();
        let state =
            |value: &str| pattern(&name, Some(&Stack::with("BuildProjectPattern", value))).unwrap().state;
        assert_eq!(["*", "team-*", "team-we?"].map(state), [State::Ok; 3]);
        assert_eq!(["app-*", "team", ""].map(state), [State::Wrong; 3]);
        let based = project("    warm: { base-images: [\"library/python:3.12\"] }\n");
        let state = |of: &Project, value: &str| {
            base_images(of, Some(&Stack::with("BaseImageRepositories", value))).map(|finding| finding.state)
        };
        assert_eq!(state(&based, "library/*"), Some(State::Ok));
        assert_eq!(state(&based, ""), Some(State::Wrong));
        assert_eq!(state(&project(""), ""), None);
    }
}
