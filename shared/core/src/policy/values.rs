//! Values of a policy document: from text to what it means, or to what would be right.

use jiff::SignedDuration;
use wildmatch::WildMatch;

use super::document::{Mistake, Node, shown};
use super::pattern::{PROJECT, Template};
use super::{
    BaseImage, CacheMode, Compression, ExportBuilds, ForkBuilds, Globs, Mode, PathsUnknown, Promotion,
    Superseded,
};
use crate::event::Change;
use crate::names::{Branch, CacheRepository, Digest, MountId, Platform, ProjectName, Repository, TargetName};
use crate::partition::is_aws;

/// Shortest duration in a policy.
pub const MINIMUM_DURATION: SignedDuration = SignedDuration::from_mins(1);
/// Longest duration in a policy: ten years, so that none leaves the calendar when it is taken from a time.
pub const MAXIMUM_DURATION: SignedDuration = SignedDuration::from_hours(3650 * 24);
/// Shortest lease, if that is more than [`MINIMUM_DURATION`].
pub const MINIMUM_LEASE: SignedDuration = SignedDuration::ZERO;
/// The shortest probation of what a merge brought: main's build has to begin before it ends.
pub const MINIMUM_PROBATION: SignedDuration = SignedDuration::from_hours(1);
/// The longest.
pub const MAXIMUM_PROBATION: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Shortest time between two builds from scratch.
pub const MINIMUM_REFRESH: SignedDuration = SignedDuration::from_hours(24);

/// Most entries of a list.
pub(super) const MAX_ENTRIES: usize = 100;
/// Longest glob and longest reference of an image, in characters.
const MAX_TEXT: usize = 512;
/// Longest label and longest account of a forge, in characters.
const MAX_NAME: usize = 100;
/// What a reference of an image is made of: none of it means anything to a shell, or splits a value of `--cache-from`.
const REFERENCE: &str = "letters, digits and `._:/@+-`";

/// The only one of these words that a text can be.
fn one_of<T: Copy>(what: &str, words: &[(&str, T)], text: &str) -> Result<T, String> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let quoted: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
    let (last, others) = quoted.split_last().map_or(("", &quoted[..]), |(last, others)| (last, others));
    Err(format!("`{}` is {what}; write {} or {last}", shown(text), others.join(", ")))
}

pub(super) fn branch(text: &str) -> Result<Branch, String> {
    Branch::new(text).map_err(|e| e.to_string())
}

pub(super) fn target_name(text: &str) -> Result<TargetName, String> {
    TargetName::new(text).map_err(|e| e.to_string())
}

pub(super) fn mount_id(text: &str) -> Result<MountId, String> {
    MountId::new(text).map_err(|e| e.to_string())
}

/// What makes another mount of the same id: they stand in a Dockerfile as they are.
pub(super) fn mount_options(text: &str) -> Result<String, String> {
    let is_option = |option: &str| {
        let (name, number) = option.split_once('=').unwrap_or_default();
        let is_number = (1..=10).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        ["uid", "gid", "mode"].contains(&name) && is_number
    };
    if text.split(',').all(is_option) {
        return Ok(text.to_owned());
    }
    let rule = "write `uid`, `gid` and `mode` as the Dockerfile has them, such as `uid=1000,gid=1000`";
    Err(format!("`{}` are no options of a mount: {rule}", shown(text)))
}

pub(super) fn mount_limit(text: &str) -> Result<u64, String> {
    line_budget(text)?.ok_or_else(|| "a mount needs a limit: write a number and `MB` or `GB`".to_owned())
}

pub(super) fn platform(text: &str) -> Result<Platform, String> {
    Platform::new(text).map_err(|e| e.to_string())
}

/// A git repository. What git clones it from is not its name, so what of it is gets told.
pub(super) fn repository(text: &str) -> Result<Template, String> {
    let check = |name| Repository::new(name).map(drop).map_err(|e| e.to_string());
    let plain = plain_repository(text);
    if plain != text && template(&plain, check).is_ok() {
        return Err(format!(
            "write it as `{}`: host and path, without scheme, user and `.git`",
            shown(&plain)
        ));
    }
    template(text, check)
}

/// `github.com/example/app` for `https://github.com/example/app.git` and for `git@github.com:example/app.git`.
fn plain_repository(text: &str) -> String {
    let has_scheme = text.contains("://");
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (user, text) = text.split_once('@').map_or(("", text), |(user, rest)| (user, rest));
    let text = text.trim_end_matches('/');
    let end = text.len().saturating_sub(".git".len());
    let has_git = text.get(end..).is_some_and(|end| end.eq_ignore_ascii_case(".git"));
    let text = if has_git { &text[..end] } else { text };
    if has_scheme || user.is_empty() { text.to_owned() } else { text.replacen(':', "/", 1) }
}

pub(super) fn cache_repository(text: &str) -> Result<Template, String> {
    if let Some((host, repository)) = text.split_once('/').filter(|(host, _)| is_aws(host)) {
        return Err(format!(
            "`{}` is a host and no part of a repository's name: write `{}`, which is looked for in the account \
             and region of the stack",
            shown(host),
            shown(repository)
        ));
    }
    template(text, |name| CacheRepository::new(name).map(drop).map_err(|e| e.to_string()))
}

pub(super) fn builds_repository(text: &str) -> Result<Option<Template>, String> {
    if text == "none" { Ok(None) } else { cache_repository(text).map(Some) }
}

/// The `CodeBuild` project that builds forks.
pub(super) fn fork_project(text: &str) -> Result<Option<Template>, String> {
    if text == "none" {
        return Ok(None);
    }
    template(text, |name| ProjectName::new(name).map(drop).map_err(|e| e.to_string())).map(Some)
}

pub(super) fn promotion(text: &str) -> Result<Promotion, String> {
    let words = [("merged", Promotion::Merged), ("rebuild", Promotion::Rebuild), ("off", Promotion::Off)];
    one_of("no promotion", &words, text)
}

pub(super) fn superseded(text: &str) -> Result<Superseded, String> {
    one_of("no way to end", &[("finish", Superseded::Finish), ("stop", Superseded::Stop)], text)
}

pub(super) fn fork_builds(text: &str) -> Result<ForkBuilds, String> {
    let words = [
        ("none", ForkBuilds::None),
        ("read-only", ForkBuilds::ReadOnly),
        ("after-approval", ForkBuilds::AfterApproval),
    ];
    one_of("no way to build forks", &words, text)
}

pub(super) fn export_builds(text: &str) -> Result<ExportBuilds, String> {
    one_of("not which builds export", &[("all", ExportBuilds::All), ("main", ExportBuilds::Main)], text)
}

pub(super) fn cache_mode(text: &str) -> Result<CacheMode, String> {
    one_of("no mode of a cache", &[("max", CacheMode::Max), ("min", CacheMode::Min)], text)
}

pub(super) fn compression(text: &str) -> Result<Option<Compression>, String> {
    let words = [
        ("default", None),
        ("gzip", Some(Compression::Gzip)),
        ("zstd", Some(Compression::Zstd)),
        ("estargz", Some(Compression::Estargz)),
        ("uncompressed", Some(Compression::Uncompressed)),
    ];
    one_of("no compression", &words, text)
}

/// Checks a name with a sample in the place of `{project}`.
fn template(text: &str, check: impl FnOnce(String) -> Result<(), String>) -> Result<Template, String> {
    let sample = text.replace(PROJECT, "project");
    if sample.contains(['{', '}']) {
        return Err(format!("`{}` has braces that are not `{PROJECT}`", shown(text)));
    }
    check(sample).map(|()| Template::new(text))
}

pub(super) fn mode(text: &str) -> Result<Mode, String> {
    one_of("not a mode", &[("report", Mode::Report), ("apply", Mode::Apply)], text)
}

pub(super) fn line_budget(text: &str) -> Result<Option<u64>, String> {
    if text == "none" {
        return Ok(None);
    }
    let rule = "write a number and `MB` or `GB`, such as `500MB` or `10GB`, or `none`";
    let wrong = || format!("`{}` is not a size: {rule}", shown(text));
    let units = [("MB", 1_000_000), ("GB", 1_000_000_000)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .filter(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        .ok_or_else(wrong)?;
    match number.parse().unwrap_or(u64::MAX).saturating_mul(unit) {
        0 => Err(format!("`{}` would leave no cache: at least 1MB", shown(text))),
        bytes => Ok(Some(bytes)),
    }
}

pub(super) fn duration(text: &str) -> Result<SignedDuration, String> {
    duration_from(MINIMUM_DURATION, text)
}

pub(super) fn lease(text: &str) -> Result<SignedDuration, String> {
    duration_from(MINIMUM_LEASE.max(MINIMUM_DURATION), text)
}

/// How long what a merge brought may wait for a build of main.
pub(super) fn probation(text: &str) -> Result<SignedDuration, String> {
    duration_between(MINIMUM_PROBATION, MAXIMUM_PROBATION, text)
}

/// How often; `none` is never.
pub(super) fn refresh(text: &str) -> Result<Option<SignedDuration>, String> {
    if text == "none" {
        return Ok(None);
    }
    duration_from(MINIMUM_REFRESH, text).map(Some).map_err(|wrong| format!("{wrong}; or `none` for never"))
}

/// A duration, or `none`.
pub(super) fn optional_duration(text: &str) -> Result<Option<SignedDuration>, String> {
    if text == "none" {
        return Ok(None);
    }
    duration(text).map(Some).map_err(|wrong| format!("{wrong}; or `none`"))
}

/// A tag or a digest.
pub(super) fn pin(text: &str) -> Result<String, String> {
    let is_tag = (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if is_tag || Digest::new(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{}` is neither a tag nor a digest, such as `sha256:` and 64 hexadecimal digits",
        shown(text)
    ))
}

fn duration_from(shortest: SignedDuration, text: &str) -> Result<SignedDuration, String> {
    duration_between(shortest, MAXIMUM_DURATION, text)
}

fn duration_between(
    shortest: SignedDuration,
    longest: SignedDuration,
    text: &str,
) -> Result<SignedDuration, String> {
    let rule = "write a number and `m`, `h` or `d`, such as `30m`, `24h` or `7d`";
    let wrong = || format!("`{}` is not a duration: {rule}", shown(text));
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number = text.strip_suffix(unit).filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    // Digits that do not fit are a duration, only too long a one.
    let number = number.ok_or_else(wrong)?.parse().unwrap_or(i64::MAX);
    let value = SignedDuration::from_secs(number.saturating_mul(seconds));
    if value < shortest {
        Err(format!("`{}` is too short: at least {shortest:#}", shown(text)))
    } else if value > longest {
        Err(format!("`{}` is too long: at most {}d", shown(text), longest.as_hours() / 24))
    } else {
        Ok(value)
    }
}

/// What a word of `builds.on` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trigger {
    /// Pushes of branches.
    Push,
    /// Pushes of tags.
    Tag,
    /// These changes of a pull request.
    PullRequest(&'static [Change]),
}

impl Trigger {
    pub(super) fn changes(self) -> &'static [Change] {
        if let Self::PullRequest(changes) = self { changes } else { &[] }
    }
}

pub(super) fn event(text: &str) -> Result<Trigger, String> {
    let words = [
        ("push", Trigger::Push),
        ("pull-request", Trigger::PullRequest(&Change::BUILT)),
        ("pull-request-created", Trigger::PullRequest(&[Change::Opened])),
        ("pull-request-updated", Trigger::PullRequest(&[Change::Pushed])),
        ("pull-request-reopened", Trigger::PullRequest(&[Change::Reopened])),
        ("tag", Trigger::Tag),
    ];
    one_of("nothing that starts builds", &words, text)
}

pub(super) fn paths_unknown(text: &str) -> Result<PathsUnknown, String> {
    one_of("not what to do", &[("build", PathsUnknown::Build), ("skip", PathsUnknown::Skip)], text)
}

/// Globs over branches.
pub(super) fn branches(node: &Node<'_>, found: &mut Vec<Mistake>) -> Globs {
    globs(node, branch_glob, found)
}

/// Globs over tags.
pub(super) fn tags(node: &Node<'_>, found: &mut Vec<Mistake>) -> Globs {
    globs(node, tag_glob, found)
}

/// Globs over the paths of files.
pub(super) fn paths(node: &Node<'_>, found: &mut Vec<Mistake>) -> Globs {
    globs(node, path_glob, found)
}

/// Globs over the messages of commits.
pub(super) fn messages(node: &Node<'_>, found: &mut Vec<Mistake>) -> Globs {
    globs(node, message_glob, found)
}

/// Accounts by their ids, or `*`.
pub(super) fn actors(node: &Node<'_>, found: &mut Vec<Mistake>) -> Globs {
    globs(node, actor, found)
}

/// An id, in one of the forms that forges have: [`check_id_of`] knows which forge's it has to be.
fn actor(id: &str) -> Result<(), String> {
    let is_id = id == "*" || id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:/+=,@".contains(c));
    let rule = "an account is named by its id, such as `49699333`, and wildcards match none but by `*` alone";
    if is_id { Ok(()) } else { Err(format!("`{}` is no account: {rule}", shown(id))) }
}

/// Whether this is the id of an account at the forge of a repository. Accounts' names change hands, so that
/// they are not asked, and one that stood in a policy would keep nobody out.
pub(super) fn check_id_of(repository: &str, id: &str) -> Result<(), String> {
    let (is_id, rule) = if repository.starts_with("bitbucket.org/") {
        let is_hex = id.len() == 24 && id.chars().all(|c| c.is_ascii_hexdigit());
        (is_hex || id.contains(':'), "Bitbucket's accounts have ids such as `557058:` and a UUID")
    } else if repository.starts_with("git-codecommit.") {
        (
            id.starts_with("arn:"),
            "CodeCommit tells the ARN of who called, such as `arn:aws:iam::123456789012:user/x`",
        )
    } else {
        (
            id.chars().all(|c| c.is_ascii_digit()),
            "GitHub's and GitLab's accounts have numbers, such as `49699333`",
        )
    };
    if is_id { Ok(()) } else { Err(format!("`{}` is no account's id: {rule}", shown(id))) }
}

/// Whether this is an id as the forge of a repository, in lower case, tells it of the repository.
pub(super) fn check_repository_id_of(repository: &str, id: &str) -> Result<(), String> {
    let (is_id, rule) = if repository.starts_with("bitbucket.org/") {
        let uuid = id.strip_prefix('{').and_then(|id| id.strip_suffix('}')).unwrap_or_default();
        let is_uuid = uuid.len() == 36 && uuid.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f' | '-'));
        (is_uuid, "Bitbucket's repositories have ids such as `{00000000-0000-0000-0000-000000000000}`")
    } else if repository.starts_with("git-codecommit.") {
        (false, "CodeCommit does not tell one with every event, and its events name the account")
    } else {
        let is_number = !id.is_empty() && id.chars().all(|c| c.is_ascii_digit());
        (is_number, "GitHub's and GitLab's repositories have numbers, such as `1296269`")
    };
    if is_id { Ok(()) } else { Err(format!("`{}` is no repository's id: {rule}", shown(id))) }
}

fn globs(node: &Node<'_>, check: fn(&str) -> Result<(), String>, found: &mut Vec<Mistake>) -> Globs {
    let mut globs = Globs::default();
    let parse = |text: &str| {
        let glob = text.strip_prefix('!').unwrap_or(text);
        check_glob(text, glob).and_then(|()| check(glob)).map(|()| (glob != text, WildMatch::new(glob)))
    };
    let before = found.len();
    let all = node.texts(MAX_ENTRIES, parse, found);
    if all.is_empty() && found.len() == before {
        found.push(
            node.place.mistake("there is no glob in this list; write `[\"*\"]` to let everything match"),
        );
    }
    for (is_excluded, glob) in all {
        if is_excluded { globs.excluded.push(glob) } else { globs.included.push(glob) }
    }
    // Without any glob everything matches too, and then nobody has to ask what a push has changed.
    if globs.included.iter().any(|glob| glob.pattern_chars() == ['*']) {
        globs.included.clear();
    }
    globs
}

fn check_glob(text: &str, glob: &str) -> Result<(), String> {
    let shown = shown(text);
    if glob.is_empty() {
        return Err(format!("`{shown}` is no glob: write what is to match, with `*` for any characters"));
    }
    if glob.chars().count() > MAX_TEXT {
        return Err(format!("`{shown}` is too long: at most {MAX_TEXT} characters"));
    }
    if glob != text && glob.chars().all(|c| c == '*') {
        return Err(format!("`{shown}` excludes everything; write which to exclude"));
    }
    Ok(())
}

fn branch_glob(glob: &str) -> Result<(), String> {
    reference_glob("branch", "refs/heads/", glob)
}

fn tag_glob(glob: &str) -> Result<(), String> {
    reference_glob("tag", "refs/tags/", glob)
}

/// With a letter for each wildcard, it is the name of a branch, or of a tag, for which git has the same rules.
fn reference_glob(what: &str, prefix: &str, glob: &str) -> Result<(), String> {
    if let Some(name) = glob.strip_prefix(prefix) {
        return Err(format!("write `{}`, without the `{prefix}`", shown(name)));
    }
    if glob.chars().any(char::is_control) {
        return Err(has_control(glob));
    }
    let rule = format!("a {what} has no spaces and none of `~^:[\\` and `..`");
    let none = |_| format!("`{}` matches no {what}: {rule}", shown(glob));
    Branch::new(glob.replace(['*', '?'], "x")).map(drop).map_err(none)
}

/// A message has lines, and a glob may say so.
fn message_glob(glob: &str) -> Result<(), String> {
    let is_control = |c: char| c.is_control() && c != '\n';
    if glob.chars().any(is_control) { Err(has_control(glob)) } else { Ok(()) }
}

fn has_control(glob: &str) -> String {
    format!("`{}` has a control character in it", shown(glob))
}

fn path_glob(glob: &str) -> Result<(), String> {
    if glob.chars().any(char::is_control) {
        return Err(has_control(glob));
    }
    let (shown, root) = (shown(glob), "a path begins at the root of the repository, without");
    if glob.starts_with('/') {
        return Err(format!("`{shown}` matches no file: {root} a `/` before it"));
    }
    if glob.split('/').any(|part| part == "." || part == "..") {
        return Err(format!("`{shown}` matches no file: {root} `.` or `..` in it"));
    }
    if glob.ends_with('/') {
        return Err(format!("`{shown}` matches no file; write `{shown}*` for all in that directory"));
    }
    Ok(())
}

/// A label of a pull request.
pub(super) fn label(text: &str) -> Result<String, String> {
    let is_label = (1..=MAX_NAME).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    let rule = "expected 1 to 100 characters, none of them a control character";
    if is_label { Ok(text.to_owned()) } else { Err(format!("`{}` is no label: {rule}", shown(text))) }
}

/// The id of an account of a forge, in lower case. Bitbucket's is such as
/// `557058:00000000-abcd-0000-0000-000000000000` or 24 hexadecimal digits. Names change hands: who takes one
/// that an approver has given up must not be able to approve.
pub(super) fn approver(text: &str) -> Result<String, String> {
    let is_id = |is_one: fn(char) -> bool| text.chars().all(is_one);
    let is_one = (1..=MAX_NAME).contains(&text.len())
        && (is_id(|c| c.is_ascii_digit())
            || (text.len() == 24 && is_id(|c| c.is_ascii_hexdigit()))
            || (text.contains(':') && is_id(|c| c.is_ascii_alphanumeric() || "-:".contains(c))));
    let rule = "GitHub's and GitLab's accounts have numbers, such as `49699333`, Bitbucket's ids such as \
         `557058:` and a \
                UUID; a team has none";
    if is_one {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("`{}` is no account's id: {rule}", shown(text)))
    }
}

/// A value of `--cache-from`, of which only registries are taken, and a bare reference of an image stands for one.
pub(super) fn more_source(text: &str) -> Result<String, String> {
    let form = "write `type=registry,ref=` and an image, such as `type=registry,ref=example.com/app:latest`";
    let reference = text.strip_prefix("type=registry,ref=").unwrap_or(text);
    if reference.contains(['=', ',']) {
        return Err(format!("`{}` is no source that is taken: {form}", shown(text)));
    }
    if !reference.chars().all(|c| c.is_ascii_alphanumeric() || "._:/@+-".contains(c)) {
        return Err(format!("`{}` has more in it than {REFERENCE}: {form}", shown(text)));
    }
    if reference.len() > MAX_TEXT {
        return Err(format!("`{}` is too long: at most {MAX_TEXT} characters", shown(text)));
    }
    if !is_reference(reference) {
        return Err(format!("`{}` is no image in a registry: {form}", shown(text)));
    }
    Ok(format!("type=registry,ref={reference}"))
}

/// An image that builders are made of. A tag or a digest pins it: `latest` would be another BuildKit one morning.
pub(super) fn builder_image(text: &str) -> Result<String, String> {
    let form = "write an image with its tag, such as `moby/buildkit:v0.25.2` or \
         `registry.example:5000/buildkit:v0.25.2`";
    if !text.chars().all(|c| c.is_ascii_alphanumeric() || "._:/@+-".contains(c)) {
        return Err(format!("`{}` has more in it than {REFERENCE}: {form}", shown(text)));
    }
    if text.len() > MAX_TEXT {
        return Err(format!("`{}` is too long: at most {MAX_TEXT} characters", shown(text)));
    }
    // Docker takes what has no host for an image of Docker Hub's.
    let on_hub = format!("docker.io/{text}");
    if !is_reference(text) && !is_reference(&on_hub) {
        return Err(format!("`{}` is no image in a registry: {form}", shown(text)));
    }
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let is_tagged =
        name.rsplit('/').next().is_some_and(|last| last.contains(':') && !last.ends_with(":latest"));
    if digest.is_none() && !is_tagged {
        return Err(format!("`{}` names no version: {form}", shown(text)));
    }
    Ok(text.to_owned())
}

/// Whether this is `host/name`, `host/name:tag`, `host/name@digest` or both.
fn is_reference(text: &str) -> bool {
    let (image, digest) = text.split_once('@').map_or((text, None), |(image, digest)| (image, Some(digest)));
    let Some((host, path)) = image.split_once('/') else { return false };
    let (name, tag) = path.split_once(':').map_or((path, None), |(name, tag)| (name, Some(tag)));
    let is_host = host == "localhost" || (host.contains(['.', ':']) && is_host(host));
    is_host
        && name.split('/').all(is_path_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(|digest| Digest::new(digest).is_ok())
}

fn is_path_component(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(ends) && text.ends_with(ends) && text.chars().all(|c| ends(c) || "._-".contains(c))
}

fn is_host(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_word =
        |word: &str| !word.is_empty() && !word.starts_with('-') && !word.contains(['_', '+', '@', ':']);
    host.split('.').all(is_word) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// An image of this account's registry, as repository and tag.
pub(super) fn base_image(text: &str) -> Result<BaseImage, String> {
    let rule = "write the repository in this account's ECR and the tag, such as `library/python:3.12`";
    let wrong = || format!("`{}` is no base image: {rule}", shown(text));
    if text.split_once('/').is_some_and(|(host, _)| is_aws(host)) {
        return Err(format!("{}, without the registry's host", wrong()));
    }
    let (repository, tag) = text.split_once(':').filter(|(_, tag)| is_tag(tag)).ok_or_else(wrong)?;
    let repository = CacheRepository::new(repository).map_err(|_| wrong())?;
    Ok(BaseImage { repository, tag: tag.to_owned() })
}
