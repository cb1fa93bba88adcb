//! Repositories of the policy: settings that lose caches or keep them from being written, and the lines themselves.

use std::collections::BTreeMap;

use buildkit_cache::{IMPORT_LIMIT, Kind, SAFE_SIZE};
use serde::Deserialize;
use stoker_aws_setup::RepositorySettings;
use stoker_core::names::{CacheRepository, Digest, Tag, TagKind};
use stoker_core::policy::Project;
use stoker_core::ports::ListedImage;
use stoker_core::provenance::Provenance;

use super::finding::{Fact, Finding};
use super::lifecycle::{self, Holds, Promises, of_line, overlap};
use super::stack::Stack;
use crate::text::{count, percent, plain};

/// Images that ECR lets a repository hold, unless AWS has been asked for more.
const QUOTA: u64 = 100_000;
/// Things that are named; the others are counted.
const NAMED: usize = 3;
/// ECR's policies are shorter.
const LONGEST_POLICY: usize = 64 * 1024;

/// A repository and the projects that have caches in it.
pub(super) struct Facts {
    pub(super) seen: Seen,
    pub(super) projects: Vec<Project>,
}

/// What AWS says of a repository.
pub(super) struct Seen {
    /// `None` where there is none.
    pub(super) described: Fact<Option<RepositorySettings>>,
    pub(super) lifecycle: Fact<Option<String>>,
    /// Its own policy: what it allows to others.
    pub(super) access: Fact<Option<String>>,
    pub(super) images: Fact<Vec<ListedImage>>,
    /// The images of its lines.
    pub(super) lines: Fact<Vec<LineImage>>,
    /// Blobs of theirs that nobody could read.
    pub(super) unavailable: Fact<Vec<Digest>>,
}

/// The image of a line.
#[derive(Debug, Clone)]
pub(super) struct LineImage {
    pub(super) tag: String,
    /// Size of the manifest, and what it is; `None` where it cannot be read.
    pub(super) manifest: Option<(usize, Kind)>,
}

impl LineImage {
    /// What Stoker has noted on it.
    pub(super) fn provenance(&self) -> Option<Provenance> {
        match self.manifest.as_ref()? {
            (_, Kind::Cache(manifest)) => Some(Provenance::read(&manifest.annotations)),
            (_, Kind::Other { .. }) => None,
        }
    }
}

/// The tags that lines of this repository's projects have.
pub(super) fn is_line(tag: &str, projects: &[Project]) -> bool {
    Tag::parse(tag).is_some_and(|(scope, kind)| {
        matches!(kind, TagKind::Line(_)) && projects.iter().any(|project| project.has_scope(&scope))
    })
}

pub(super) fn check(
    name: &CacheRepository,
    facts: &Facts,
    stack: Option<&Stack>,
    all: &BTreeMap<CacheRepository, Facts>,
) -> Vec<Finding> {
    let Facts { seen, projects } = facts;
    let holds = Holds::of(name, projects);
    let mut findings = Vec::new();
    match &seen.described {
        Ok(None) => {
            let kind = if holds == Holds::Exports { "IMMUTABLE" } else { "MUTABLE" };
            findings.push(Finding::wrong(
                "exists",
                "there is none: builds find no cache and cannot write one",
                format!("aws ecr create-repository --repository-name {name} --image-tag-mutability {kind}"),
            ));
            findings.extend(prefix(name, holds, stack));
            return findings;
        }
        Ok(Some(described)) => {
            findings.push(tags(name, described, holds, projects));
            findings.push(scanning(name, described));
            findings.extend(encryption(described, holds, projects, all));
        }
        Err(missing) => findings.push(Finding::missing("settings", missing)),
    }
    findings.extend(prefix(name, holds, stack));
    match &seen.lifecycle {
        Ok(text) => {
            findings.extend(lifecycle::check(name.as_str(), text.as_deref(), holds, &Promises::of(projects)));
        }
        Err(missing) => findings.push(Finding::missing("lifecycle", missing)),
    }
    let account =
        seen.described.as_ref().ok().and_then(Option::as_ref).map(|described| described.account.as_str());
    findings.push(match &seen.access {
        Ok(text) => access(name, text.as_deref(), account, holds),
        Err(missing) => Finding::missing("access", missing),
    });
    match &seen.images {
        Ok(images) => {
            findings.push(room(images.len() as u64));
            findings.push(archived(name, images, projects));
            findings.push(strangers(images, projects));
        }
        Err(missing) => findings.push(Finding::missing("images", missing)),
    }
    if holds.lines() {
        match &seen.lines {
            Ok(lines) => findings.push(imports(name, lines)),
            Err(missing) => findings.push(Finding::missing("import", missing)),
        }
        findings.push(match &seen.unavailable {
            Ok(unavailable) => layers(name, unavailable),
            Err(missing) => Finding::missing("layers", missing),
        });
    }
    findings
}

/// Whether ECR would let a tag move. For what is excluded from the rule by pattern, `may_match` says how to match.
fn moves(described: &RepositorySettings, excluded: impl Fn(&str) -> bool) -> Option<bool> {
    let is_excluded = described.excluded.iter().any(|pattern| excluded(pattern));
    match described.mutability.as_str() {
        "MUTABLE" => Some(true),
        "IMMUTABLE" => Some(false),
        "MUTABLE_WITH_EXCLUSION" => Some(!is_excluded),
        "IMMUTABLE_WITH_EXCLUSION" => Some(is_excluded),
        _ => None,
    }
}

fn tags(
    name: &CacheRepository,
    described: &RepositorySettings,
    holds: Holds,
    projects: &[Project],
) -> Finding {
    const CHECK: &str = "tags";
    let set = |to: &str| {
        format!("aws ecr put-image-tag-mutability --repository-name {name} --image-tag-mutability {to}")
    };
    let is = plain(&described.mutability);
    let by_default = described.mutability.starts_with("MUTABLE");
    let mut scopes = projects.iter().flat_map(Project::scopes);
    // Of a rule's exceptions any that may be meant counts; of an exception that is needed, one that is certain.
    let meant = |pattern: &str, tags: &str| {
        if by_default { overlap(pattern, tags) } else { overlap(pattern, &tags.replace('*', "a-name")) }
    };
    if holds.lines() {
        let stuck = scopes.find_map(|scope| {
            of_line(scope)
                .filter(|tag| !tag.contains(".history."))
                .find(|tag| moves(described, |pattern| meant(pattern, tag)) != Some(true))
        });
        return match stuck {
            None => Finding::ok(CHECK, format!("{is}: lines can move")),
            Some(tag) => Finding::wrong(
                CHECK,
                format!("{is}: {tag} cannot move, so no build's cache reaches it"),
                set("MUTABLE"),
            ),
        };
    }
    let meant = |pattern: &str, tags: &str| {
        if by_default { overlap(pattern, &tags.replace('*', "a-name")) } else { overlap(pattern, tags) }
    };
    let loose = scopes
        .any(|scope| moves(described, |pattern| meant(pattern, &format!("{scope}.export.*"))) != Some(false));
    if loose {
        let found = format!("{is}: a build that learns another's tag can write over its export");
        return Finding::wrong(CHECK, found, set("IMMUTABLE"));
    }
    Finding::ok(CHECK, format!("{is}: no build writes over another's export"))
}

fn scanning(name: &CacheRepository, described: &RepositorySettings) -> Finding {
    const CHECK: &str = "scanning";
    if described.scans {
        return Finding::warn(
            CHECK,
            "every push is scanned: caches are no images, and the findings are nobody's",
            format!(
                "aws ecr put-image-scanning-configuration --repository-name {name} \
                 --image-scanning-configuration scanOnPush=false"
            ),
        );
    }
    Finding::ok(CHECK, "not on push")
}

/// Layers are mounted only between repositories with one key.
fn encryption(
    described: &RepositorySettings,
    holds: Holds,
    projects: &[Project],
    all: &BTreeMap<CacheRepository, Facts>,
) -> Option<Finding> {
    const CHECK: &str = "encryption";
    if holds != Holds::Exports {
        return None;
    }
    let lines = projects.iter().find_map(|project| {
        let of_lines = all.get(&project.cache_repository)?.seen.described.as_ref().ok()?.as_ref()?;
        (of_lines.encryption != described.encryption).then_some((&project.cache_repository, of_lines))
    });
    let reported = |(kind, key): &(String, Option<String>)| match key {
        Some(key) => format!("{} with {}", plain(kind), plain(key)),
        None => plain(kind),
    };
    Some(match lines {
        None => Finding::ok(CHECK, reported(&described.encryption)),
        Some((lines, of_lines)) => Finding::wrong(
            CHECK,
            format!(
                "{}, and {lines} has {}: ECR mounts no layer from one to the other",
                reported(&described.encryption),
                reported(&of_lines.encryption)
            ),
            "make one of them anew with the other's encryption: it cannot be changed afterwards",
        ),
    })
}

/// Whether the stack's roles may touch it at all.
fn prefix(name: &CacheRepository, holds: Holds, stack: Option<&Stack>) -> Option<Finding> {
    const CHECK: &str = "prefix";
    let parameter = match holds {
        Holds::Lines | Holds::Both => "CacheRepositoryPrefix",
        Holds::Exports => "BuildsRepositoryPrefix",
    };
    let prefix = stack?.parameter(parameter)?;
    if !prefix.is_empty() && name.as_str().strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')) {
        return Some(Finding::ok(CHECK, format!("{parameter} is {}", plain(prefix))));
    }
    let found = if prefix.is_empty() {
        format!("{parameter} is empty: the stack's functions and roles may not touch this repository")
    } else {
        format!(
            "{parameter} is {}: the stack's functions and roles may touch {}/... only",
            plain(prefix),
            plain(prefix)
        )
    };
    let begins = name.as_str().split('/').next().unwrap_or_default();
    Some(Finding::wrong(
        CHECK,
        found,
        format!(
            "sam deploy --parameter-overrides {parameter}={begins}, or name another repository in the policy"
        ),
    ))
}

#[derive(Deserialize)]
struct Access {
    #[serde(rename = "Statement", default)]
    statements: OneOrMore<Statement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    effect: String,
    #[serde(default)]
    principal: serde_json::Value,
    #[serde(default)]
    not_principal: serde_json::Value,
    #[serde(default)]
    action: OneOrMore<String>,
    #[serde(default)]
    not_action: serde_json::Value,
    #[serde(default)]
    condition: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> Default for OneOrMore<T> {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

impl<T> OneOrMore<T> {
    fn all(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

/// Who else may write or delete, by the repository's own policy.
fn access(name: &CacheRepository, text: Option<&str>, account: Option<&str>, holds: Holds) -> Finding {
    const CHECK: &str = "access";
    let Some(text) = text else {
        return Finding::ok(CHECK, "no policy of its own: this account's roles decide");
    };
    let look =
        format!("aws ecr get-repository-policy --repository-name {name} --query policyText --output text");
    if text.len() > LONGEST_POLICY {
        return Finding::unknown(CHECK, "its policy is too long to be read", format!("look at it: {look}"));
    }
    let access: Access = match serde_json::from_str(text) {
        Ok(access) => access,
        Err(error) => {
            let why = format!("its policy cannot be read: {}", plain(&error.to_string()));
            return Finding::unknown(CHECK, why, format!("look at it: {look}"));
        }
    };
    let mut writers = Vec::new();
    let mut open = false;
    for statement in access.statements.all() {
        let writes = !statement.not_action.is_null()
            || ["ecr:PutImage", "ecr:CompleteLayerUpload", "ecr:BatchDeleteImage"]
                .iter()
                .any(|action| statement.action.all().iter().any(|allowed| is_action(allowed, action)));
        if statement.effect != "Allow" || !writes {
            continue;
        }
        let mut principals = Vec::new();
        texts(&statement.principal, &mut principals);
        if !statement.not_principal.is_null() {
            principals.push("everybody but some");
        }
        let own = |principal: &str| {
            account.is_some_and(|own| principal == own || principal.split(':').nth(4) == Some(own))
        };
        for principal in principals {
            // Where lines are kept apart, nobody but the functions' roles should write.
            if !own(principal) || holds == Holds::Lines {
                open |= matches!(principal, "*" | "everybody but some") && statement.condition.is_null();
                writers.push(plain(principal));
            }
        }
    }
    if writers.is_empty() {
        return Finding::ok(CHECK, "its own policy lets nobody else write");
    }
    writers.dedup();
    let more = writers.len().saturating_sub(NAMED);
    writers.truncate(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let found = format!(
        "its own policy lets {}{more} write or delete: whoever does decides what builds contain",
        writers.join(", ")
    );
    let repair = format!("take that from it (aws ecr set-repository-policy): {look}");
    if open { Finding::wrong(CHECK, found, repair) } else { Finding::warn(CHECK, found, repair) }
}

/// Whether a policy's action, which may have `*` and be in any case, is or includes this one.
fn is_action(allowed: &str, action: &str) -> bool {
    allowed.len() <= 128 && overlap(&allowed.to_lowercase().replace('?', "*"), &action.to_lowercase())
}

fn texts<'v>(value: &'v serde_json::Value, found: &mut Vec<&'v str>) {
    match value {
        serde_json::Value::String(text) => found.push(text),
        serde_json::Value::Array(values) => values.iter().for_each(|value| texts(value, found)),
        serde_json::Value::Object(values) => values.values().for_each(|value| texts(value, found)),
        _ => {}
    }
}

fn room(images: u64) -> Finding {
    const CHECK: &str = "room";
    let many = count(usize::try_from(images).unwrap_or(usize::MAX), "image");
    let found = format!("{many}, {} of ECR's quota", percent(images, QUOTA));
    let repair = "let retention delete (`stoker plan`, then `retention.mode: apply`), or raise ECR's quota of \
         images per repository";
    match images {
        QUOTA.. => Finding::wrong(CHECK, found, repair),
        _ if images * 10 >= QUOTA * 8 => Finding::warn(CHECK, found, repair),
        _ => Finding::ok(CHECK, found),
    }
}

fn archived(name: &CacheRepository, images: &[ListedImage], projects: &[Project]) -> Finding {
    const CHECK: &str = "archived";
    let archived: Vec<&ListedImage> = images.iter().filter(|image| image.is_archived).collect();
    let line = archived
        .iter()
        .find_map(|image| Some((image, image.tags.iter().find(|tag| is_line(tag, projects))?)));
    if let Some((image, tag)) = line {
        return Finding::wrong(
            CHECK,
            format!("{} is archived: its builds are cold until it is brought back", plain(tag)),
            format!(
                "aws ecr update-image-storage-class --repository-name {name} --image-id imageDigest={} \
                 --target-storage-class STANDARD",
                image.digest
            ),
        );
    }
    let found = if archived.is_empty() {
        "nothing".to_owned()
    } else {
        format!("{}, and no line", count(archived.len(), "image"))
    };
    Finding::ok(CHECK, found)
}

/// Tags that are not Stoker's, or of no target of the policy: retention leaves them alone for ever.
fn strangers(images: &[ListedImage], projects: &[Project]) -> Finding {
    const CHECK: &str = "other tags";
    let is_known = |tag: &str| {
        Tag::parse(tag).is_some_and(|(scope, _)| projects.iter().any(|project| project.has_scope(&scope)))
    };
    let mut strange = images.iter().flat_map(|image| &image.tags).filter(|tag| !is_known(tag));
    let named: Vec<String> = strange.by_ref().take(NAMED).map(|tag| plain(tag)).collect();
    let more = strange.count();
    if named.is_empty() {
        return Finding::ok(CHECK, "none");
    }
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Finding::warn(
        CHECK,
        format!("{}{more}: of no target of the policy, so Stoker never deletes them", named.join(", ")),
        "delete what nobody needs: `stoker explain REPOSITORY:TAG` says what an image is",
    )
}

fn imports(name: &CacheRepository, lines: &[LineImage]) -> Finding {
    const CHECK: &str = "import";
    let mut largest = 0;
    let mut warning = None;
    for line in lines {
        let tag = plain(&line.tag);
        let Some((bytes, kind)) = &line.manifest else {
            let repair = format!(
                "aws ecr batch-get-image --repository-name {name} --image-ids imageTag={tag} says why"
            );
            return Finding::wrong(
                CHECK,
                format!("the manifest of {tag} cannot be read: its builds are cold"),
                repair,
            );
        };
        let config = match kind {
            Kind::Cache(manifest) => manifest.config.size,
            Kind::Other { why } => {
                let found = format!("{tag} holds no cache: {}", plain(why));
                return Finding::wrong(
                    CHECK,
                    found,
                    format!("delete that tag, and main is filled tonight: `stoker explain {name}:{tag}`"),
                );
            }
        };
        let size = config.max(*bytes as u64);
        largest = largest.max(size);
        let found = format!("{tag} is at {} of what BuildKit imports", percent(size, IMPORT_LIMIT as u64));
        let repair =
            "stoker cache prune lets old steps go; `line-budget` in the policy keeps it smaller".to_owned();
        if size > IMPORT_LIMIT as u64 {
            return Finding::wrong(CHECK, format!("{found}: its builds are cold"), repair);
        }
        if size > SAFE_SIZE as u64 {
            warning.get_or_insert((found, repair));
        }
    }
    match warning {
        Some((found, repair)) => Finding::warn(CHECK, found, repair),
        None if lines.is_empty() => Finding::ok(CHECK, "no lines yet"),
        None => {
            let lines = count(lines.len(), "line");
            Finding::ok(
                CHECK,
                format!(
                    "{lines}, the largest at {} of what BuildKit imports",
                    percent(largest, IMPORT_LIMIT as u64)
                ),
            )
        }
    }
}

fn layers(name: &CacheRepository, unavailable: &[Digest]) -> Finding {
    const CHECK: &str = "layers";
    match unavailable {
        [] => Finding::ok(CHECK, "all there"),
        [first, ..] => Finding::wrong(
            CHECK,
            format!(
                "{} of lines cannot be had, such as {first}: a build that needs it fails",
                count(unavailable.len(), "blob")
            ),
            format!("the night repairs lines; at once: stoker lines REGISTRY/{name}, then stoker rollback"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use buildkit_cache::{CONFIG_MEDIA_TYPE, classify_within};
    use serde_json::{Value, json};

    use super::super::finding::State;
    use super::super::projects;
    use super::*;
    use crate::deployed::Missing;

    const SIMPLE: &str = "";
    const ISOLATED: &str = "    builds-repository: stoker-builds/app\n";

    fn line(config: usize, padding: usize) -> LineImage {
        let manifest = json!({"schemaVersion": 2, "layers": [],
            "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(b"config"), "size": config},
            "annotations": {"note": "x".repeat(padding)}});
        let bytes = manifest.to_string();
        LineImage {
            tag: "app.main".to_owned(),
            manifest: Some((bytes.len(), classify_within(bytes.as_bytes(), 8 << 20))),
        }
    }

    fn image(tags: &[&str]) -> ListedImage {
        ListedImage {
            digest: Digest::of(tags.concat().as_bytes()),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            pushed_at: jiff::Timestamp::UNIX_EPOCH,
            bytes: 1,
            pulled_at: None,
            is_archived: false,
        }
    }

    fn seen(mutability: &str) -> Seen {
        Seen {
            described: Ok(Some(RepositorySettings {
                account: "123456789012".to_owned(),
                mutability: mutability.to_owned(),
                excluded: Vec::new(),
                encryption: ("AES256".to_owned(), None),
                scans: false,
            })),
            lifecycle: Ok(None),
            access: Ok(None),
            images: Ok(vec![image(&["app.main", "app.export.k"]), image(&[])]),
            lines: Ok(vec![line(1000, 0)]),
            unavailable: Ok(Vec::new()),
        }
    }

    fn settings(seen: &mut Seen) -> &mut RepositorySettings {
        seen.described.as_mut().unwrap().as_mut().unwrap()
    }

    /// The checks of a repository that are not ok.
    fn reported(repository: &str, keys: &str, change: impl FnOnce(&mut Seen)) -> Vec<(&'static str, State)> {
        let of = |name: &str, seen| {
            (CacheRepository::new(name).unwrap(), Facts { seen, projects: projects(keys) })
        };
        let mut all =
            BTreeMap::from([of("stoker/app", seen("MUTABLE")), of("stoker-builds/app", seen("IMMUTABLE"))]);
        let name = CacheRepository::new(repository).unwrap();
        change(&mut all.get_mut(&name).unwrap().seen);
        let findings = check(&name, &all[&name], None, &all);
        assert!(findings.iter().all(|finding| (finding.state == State::Ok) == finding.repair.is_none()));
        findings.iter().filter(|f| f.state != State::Ok).map(|f| (f.check, f.state)).collect()
    }

    fn simple(change: impl FnOnce(&mut Seen)) -> Vec<(&'static str, State)> {
        reported("stoker/app", SIMPLE, change)
    }

    #[test]
    fn a_sound_repository_is_sound() {
        for (repository, keys) in
            [("stoker/app", SIMPLE), ("stoker/app", ISOLATED), ("stoker-builds/app", ISOLATED)]
        {
            assert_eq!(reported(repository, keys, |_| ()), []);
        }
    }

    #[test]
    fn each_defect_is_reported_by_its_own_check() {
        use State::{Unknown, Warn, Wrong};
        assert_eq!(simple(|seen| seen.described = Ok(None)), [("exists", Wrong)]);
        assert_eq!(simple(|seen| settings(seen).mutability = "IMMUTABLE".into()), [("tags", Wrong)]);
        assert_eq!(simple(|seen| settings(seen).mutability = "ODD\u{1b}".into()), [("tags", Wrong)]);
        assert_eq!(simple(|seen| settings(seen).scans = true), [("scanning", Warn)]);
        assert_eq!(simple(|seen| seen.lines = Ok(vec![line(IMPORT_LIMIT + 1, 0)])), [("import", Wrong)]);
        assert_eq!(simple(|seen| seen.lines = Ok(vec![line(1, IMPORT_LIMIT)])), [("import", Wrong)]);
        assert_eq!(simple(|seen| seen.lines = Ok(vec![line(SAFE_SIZE + 1, 0)])), [("import", Warn)]);
        let no_cache =
            || LineImage { tag: "app.main".into(), manifest: Some((2, classify_within(b"{}", 9))) };
        assert_eq!(simple(|seen| seen.lines = Ok(vec![line(1, 0), no_cache()])), [("import", Wrong)]);
        let unread = || LineImage { tag: "app.main".into(), manifest: None };
        assert_eq!(simple(|seen| seen.lines = Ok(vec![unread()])), [("import", Wrong)]);
        assert_eq!(simple(|seen| seen.unavailable = Ok(vec![Digest::of(b"layer")])), [("layers", Wrong)]);
        let strange = image(&["v1\u{1b}[31m", "other.main"]);
        assert_eq!(simple(|seen| seen.images.as_mut().unwrap().push(strange)), [("other tags", Warn)]);
        let archive = |at: usize| move |seen: &mut Seen| seen.images.as_mut().unwrap()[at].is_archived = true;
        assert_eq!(simple(archive(0)), [("archived", Wrong)]);
        assert_eq!(simple(archive(1)), []);
        let missing = || Missing { action: "ecr:X", is_denied: true, why: String::new() };
        assert_eq!(simple(|seen| seen.images = Err(missing())), [("images", Unknown)]);
        assert_eq!(simple(|seen| seen.lines = Err(missing())), [("import", Unknown)]);
        assert_eq!(simple(|seen| seen.unavailable = Err(missing())), [("layers", Unknown)]);
        assert_eq!(simple(|seen| seen.access = Err(missing())), [("access", Unknown)]);
        assert_eq!(simple(|seen| seen.lifecycle = Err(missing())), [("lifecycle", Unknown)]);
        assert_eq!(simple(|seen| seen.described = Err(missing())), [("settings", Unknown)]);
    }

    #[test]
    fn a_quota_that_fills_is_reported_in_time() {
        for (images, state) in [
            (0, State::Ok),
            (79_999, State::Ok),
            (80_000, State::Warn),
            (100_000, State::Wrong),
            (u64::MAX, State::Wrong),
        ] {
            assert_eq!(room(images).state, state, "{images}");
        }
    }

    #[test]
    fn exclusions_from_mutability_count() {
        let of = |repository: &str, keys: &str, mutability: &str, excluded: &str| {
            reported(repository, keys, |seen| {
                settings(seen).mutability = mutability.to_owned();
                settings(seen).excluded = vec![excluded.to_owned()];
            })
        };
        let wrong = [("tags", State::Wrong)];
        assert_eq!(of("stoker/app", SIMPLE, "MUTABLE_WITH_EXCLUSION", "v*"), []);
        assert_eq!(of("stoker/app", SIMPLE, "MUTABLE_WITH_EXCLUSION", "*.export.*"), []);
        assert_eq!(of("stoker/app", SIMPLE, "MUTABLE_WITH_EXCLUSION", "*.branch.rel*"), wrong);
        assert_eq!(of("stoker/app", SIMPLE, "IMMUTABLE_WITH_EXCLUSION", "app.*"), []);
        assert_eq!(of("stoker/app", SIMPLE, "IMMUTABLE_WITH_EXCLUSION", "app.main"), wrong);
        assert_eq!(of("stoker-builds/app", ISOLATED, "MUTABLE", "x"), wrong);
        assert_eq!(of("stoker-builds/app", ISOLATED, "MUTABLE_WITH_EXCLUSION", "*.export.*"), []);
        assert_eq!(of("stoker-builds/app", ISOLATED, "IMMUTABLE_WITH_EXCLUSION", "latest*"), []);
        assert_eq!(of("stoker-builds/app", ISOLATED, "IMMUTABLE_WITH_EXCLUSION", "*.export.0*"), wrong);
    }

    #[test]
    fn layers_are_mounted_under_one_key_only() {
        let key = |seen: &mut Seen| settings(seen).encryption = ("KMS".to_owned(), Some("key".to_owned()));
        assert_eq!(reported("stoker-builds/app", ISOLATED, key), [("encryption", State::Wrong)]);
        assert_eq!(simple(key), []);
    }

    #[test]
    fn whoever_else_may_write_is_reported() {
        let policy = |principal: Value, action: Value| {
            json!({"Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Principal": principal, "Action": action}]})
        };
        let state = |keys: &str, policy: &Value| {
            let reported = reported("stoker/app", keys, |seen| seen.access = Ok(Some(policy.to_string())));
            reported.first().map_or(State::Ok, |(check, state)| {
                assert_eq!(*check, "access");
                *state
            })
        };
        let other = json!({"AWS": ["arn:aws:iam::999999999999:root"]});
        let own = json!({"AWS": "arn:aws:iam::123456789012:role/x"});
        assert_eq!(state(SIMPLE, &policy(other.clone(), json!("ecr:BatchGetImage"))), State::Ok);
        assert_eq!(state(SIMPLE, &policy(other.clone(), json!(["ecr:PutImage"]))), State::Warn);
        assert_eq!(state(SIMPLE, &policy(other.clone(), json!("ecr:*"))), State::Warn);
        assert_eq!(state(SIMPLE, &policy(other.clone(), json!("ECR:P?tImage"))), State::Warn);
        assert_eq!(state(SIMPLE, &policy(own.clone(), json!("*"))), State::Ok);
        assert_eq!(state(ISOLATED, &policy(own, json!("ecr:PutImage"))), State::Warn);
        assert_eq!(state(SIMPLE, &policy(json!("*"), json!("ecr:PutImage"))), State::Wrong);
        assert_eq!(state(SIMPLE, &policy(json!({"AWS": "*"}), json!("ecr:Batch*"))), State::Wrong);
        let mut limited = policy(json!("*"), json!("ecr:PutImage"));
        limited["Statement"][0]["Condition"] = json!({"StringEquals": {"aws:PrincipalOrgID": "o-1"}});
        assert_eq!(state(SIMPLE, &limited), State::Warn);
        let mut denied = policy(json!("*"), json!("ecr:PutImage"));
        denied["Statement"][0]["Effect"] = json!("Deny");
        assert_eq!(state(SIMPLE, &denied), State::Ok);
        let one = json!({"Statement": {"Effect": "Allow", "Principal": other, "NotAction": "ecr:GetX"}});
        assert_eq!(state(SIMPLE, &one), State::Warn);
        for text in ["", "[", "\u{1b}", "{\"Statement\": 3}", &"[".repeat(LONGEST_POLICY + 1)] {
            let reported = simple(|seen| seen.access = Ok(Some(text.to_owned())));
            assert_eq!(reported, [("access", State::Unknown)]);
        }
    }

    #[test]
    fn the_stack_has_to_be_let_into_it() {
        let state = |name: &str, holds, parameter: &str, value: &str| {
            let name = CacheRepository::new(name).unwrap();
            prefix(&name, holds, Some(&Stack::with(parameter, value))).map(|finding| finding.state)
        };
        let (caches, builds) = ("CacheRepositoryPrefix", "BuildsRepositoryPrefix");
        assert_eq!(state("stoker/app", Holds::Both, caches, "stoker"), Some(State::Ok));
        assert_eq!(state("stokers/app", Holds::Both, caches, "stoker"), Some(State::Wrong));
        assert_eq!(state("stoker", Holds::Lines, caches, "stoker"), Some(State::Wrong));
        assert_eq!(state("stoker-builds/app", Holds::Exports, builds, "stoker-builds"), Some(State::Ok));
        assert_eq!(state("stoker-builds/app", Holds::Exports, builds, ""), Some(State::Wrong));
        assert_eq!(state("stoker-builds/app", Holds::Exports, caches, "stoker"), None);
    }
}
