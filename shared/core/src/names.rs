//! The names Stoker gives to things: repositories, scopes, lines, and the tags under which caches live.
//!
//! Tags are the database (see ARCHITECTURE.md), so their grammar is a contract:
//!
//! ```text
//! <scope>.main                                   the line of the default branch
//! <scope>.branch.<branch>                        the line of a branch
//! <scope>.pr.<number>                            the line of a fork's pull request
//! <scope>.commit.<sha>                           the checked cache of one commit, as the first line built it
//! <scope>.commit.<sha>-<line's hash>             the same, as another line built it
//! <scope>.export.<key>                           what one build wrote
//! <scope>.history.<line>.<time>-<digest>         a cache that a line has left
//! ```
//!
//! `<scope>` and `<branch>` are [`slug`]s. A slug has no dot, and carries a hash whenever it is not the name itself,
//! so two names never share a tag and no branch can spell `main`, a pull request or a history tag.

use std::fmt;
use std::sync::Arc;

use buildkit_cache::name_type;
pub use buildkit_cache::{Commit, Digest, InvalidName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Longest slug, in characters. Keeps the longest tag (a branch's history) within the registry's 128.
pub const MAX_SLUG: usize = 44;
/// Separates the readable part of a slug from its hash; no plain slug contains it.
const HASH_MARK: &str = "__";
/// 16 base-32 characters are 80 bits: out of reach for somebody who wants to hit a given branch's slug.
const HASH_CHARS: usize = 16;
/// The longest tag that a registry takes.
const MAX_TAG: usize = 128;
/// How many hexadecimal digits of a line's hash a commit's tag carries, where there is room.
const LINE_HASH: usize = 20;
/// How much of a fork's head its note names: as much as Bitbucket tells of it.
const FORK_HASH: usize = 12;

/// Maps any string to a tag component of at most [`MAX_SLUG`] characters from `[A-Za-z0-9_-]`.
///
/// A short name of those characters is its own slug, but for `export`: a lifecycle rule knows exports by that
/// word between dots, and no branch is to look like one. Any other name gets a readable start, `__` and a
/// hash of the whole name, so that the map is injective for all practical purposes.
#[must_use]
pub fn slug(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_plain =
        !name.is_empty() && name.len() <= MAX_SLUG && name.chars().all(plain) && !name.contains(HASH_MARK);
    if is_plain && name != "export" {
        return name.to_owned();
    }
    let mut readable = String::new();
    for c in name.chars().take(MAX_SLUG - HASH_MARK.len() - HASH_CHARS) {
        // Runs of replaced characters collapse: the readable part must not contain the hash mark.
        let c = if plain(c) && c != '_' { c } else { '-' };
        if !(c == '-' && readable.ends_with('-')) {
            readable.push(c);
        }
    }
    format!("{readable}{HASH_MARK}{}", base32(&Sha256::digest(name), HASH_CHARS))
}

fn base32(bytes: &[u8], chars: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bit = |i: usize| (bytes[i / 8] >> (7 - i % 8)) & 1;
    let char_at = |i: usize| (i * 5..i * 5 + 5).fold(0usize, |value, b| value << 1 | usize::from(bit(b)));
    (0..chars).map(|i| char::from(ALPHABET[char_at(i)])).collect()
}

/// Whether a host is CodeCommit's, of any region and partition.
fn is_codecommit(host: &str) -> bool {
    let service = host.split('.').next().unwrap_or_default();
    ["git-codecommit", "git-codecommit-fips"].iter().any(|name| service.eq_ignore_ascii_case(name))
}

name_type!(
    /// The name of a CodeBuild project.
    ProjectName,
    "project name",
    "CodeBuild allows 2 to 150 letters, digits, `-` and `_`, the first a letter or digit",
    |v| v,
    |v| {
        (2..=150).contains(&v.len())
            && v.starts_with(|c: char| c.is_ascii_alphanumeric())
            && v.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    }
);

/// `ghe.example.com/a/b` for `ghe.example.com:8443/a/b`.
fn without_port(repository: &str) -> String {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
    let (authority, path) = repository.split_once('/').unwrap_or((repository, ""));
    match authority.split_once(':') {
        Some((host, port)) if is_port(port) => format!("{host}/{path}"),
        _ => repository.to_owned(),
    }
}

name_type!(
    /// A git repository: its forge's host and path, such as `github.com/example/app`. In lower case, but for
    /// the path where the forge tells names apart by it: CodeCommit has `App` beside `app`. A host's port is
    /// not part of it: a forge is one and the same by HTTPS and by SSH.
    Repository,
    "repository",
    "write it as host/owner/name, such as `github.com/example/app`",
    |v| {
        let repository = without_port(&v);
        match repository.split_once('/') {
            Some((host, path)) if is_codecommit(host) => format!("{}/{path}", host.to_ascii_lowercase()),
            // Other letters than ASCII's stay: `\u{212a}` is in lower case a plain `k`, and no forge takes
            // one for the other.
            _ => repository.to_ascii_lowercase(),
        }
    },
    |v| {
        v.len() <= 512
            && v.split('/').count() >= 3
            && v.split('/').all(|part| {
                !part.is_empty()
                    && part != ".."
                    && part != "."
                    && part.chars().all(|c| c.is_alphanumeric() || "-_.~".contains(c))
            })
    }
);

name_type!(
    /// The name of an ECR repository that holds caches.
    CacheRepository,
    "cache repository",
    "ECR allows 2 to 256 lower-case letters and digits, with `.`, `_`, `__`, one `/` or any number of `-` between them",
    |v| v,
    |v| {
        let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        (2..=256).contains(&v.len())
            && v.split('/').all(|part| {
                let mut between = part.split(is_end);
                part.starts_with(is_end)
                    && part.ends_with(is_end)
                    && between.all(|marks| matches!(marks, "." | "_" | "__") || marks.chars().all(|c| c == '-'))
            })
    }
);

name_type!(
    /// A git commit as a forge names it: its whole hash, or the start of it where the forge tells no more.
    Revision,
    "revision",
    "expected 7 to 64 hexadecimal digits, and not all of them zero",
    |v| v.to_ascii_lowercase(),
    |v| (7..=64).contains(&v.len()) && v.chars().all(|c| c.is_ascii_hexdigit()) && v.contains(|c| c != '0')
);

name_type!(
    /// The name of an image target: a stage of a Dockerfile, or a target of `docker buildx bake`.
    TargetName,
    "target",
    "expected 1 to 40 letters, digits, `-` and `_`, the first a letter",
    |v| v,
    |v| {
        (1..=40).contains(&v.len())
            && v.starts_with(|c: char| c.is_ascii_alphabetic())
            && v.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    }
);

name_type!(
    /// A platform that images are built for, such as `linux/arm64`.
    Platform,
    "platform",
    "write it as os/architecture or os/architecture/variant, such as `linux/arm64`",
    |v| v,
    |v| {
        (2..=3).contains(&v.split('/').count())
            && v.len() <= 40
            && v.split('/').all(|part| {
                !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            })
    }
);

name_type!(
    /// The id of a cache mount, as a Dockerfile's `--mount=type=cache,id=` has it; without one it is the
    /// mount's target.
    MountId,
    "cache mount",
    "expected 1 to 128 letters, digits and `/._-`, as `id=` or `target=` of the Dockerfile's \
     `--mount=type=cache` say it",
    |v| v,
    |v| (1..=128).contains(&v.len()) && v.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
);

name_type!(
    /// The name of a git branch, without `refs/heads/`.
    Branch,
    "branch",
    "expected 1 to 1024 bytes without control characters, spaces or `..`",
    |v| v,
    |v| {
        (1..=1024).contains(&v.len())
            && !v.chars().any(|c| c.is_control() || " ~^:?*[\\".contains(c))
            && !v.contains("..")
    }
);

impl From<Commit> for Revision {
    fn from(commit: Commit) -> Self {
        Self(commit.into())
    }
}

impl Revision {
    /// The commit, if this is its whole hash.
    #[must_use]
    pub fn commit(&self) -> Option<Commit> {
        Commit::new(self.as_str()).ok()
    }

    /// Whether this is `commit`, or the start of its hash.
    #[must_use]
    pub fn names(&self, commit: &Commit) -> bool {
        commit.as_str().starts_with(self.as_str())
    }

    /// At most its first 8 hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..8).unwrap_or(&self.0)
    }
}

/// One lineage of caches: a project, an image target of it and a platform. Platforms never share a cache.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(Arc<str>);

impl Scope {
    /// The scope of a project with one image and one platform, neither of which its policy names.
    #[must_use]
    pub fn of(project: &ProjectName) -> Self {
        Self(slug(project.as_str()).into())
    }

    /// The scope of a project's target on a platform. It is always hashed, so no project's name can spell it.
    #[must_use]
    pub fn of_target(
        project: &ProjectName,
        target: Option<&TargetName>,
        platform: Option<&Platform>,
    ) -> Self {
        if target.is_none() && platform.is_none() {
            return Self::of(project);
        }
        let target = target.map_or("", TargetName::as_str);
        let platform = platform.map_or("", Platform::as_str);
        Self(slug(&format!("{project}.{target}.{platform}")).into())
    }

    /// The scope of a cache mount of a target: its images have lines as caches have. Always hashed, too.
    #[must_use]
    pub fn of_mount(
        project: &ProjectName,
        target: Option<&TargetName>,
        platform: Option<&Platform>,
        id: &MountId,
    ) -> Self {
        let target = target.map_or("", TargetName::as_str);
        let platform = platform.map_or("", Platform::as_str);
        Self(slug(&format!("{project}.{target}.{platform}.mount.{id}")).into())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A mutable reference to a cache within a scope, like a git branch. Its text is `main`, `branch/<name>`,
/// `pr/<number>` or `tag/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Line {
    /// The line of the default branch, whatever that is called.
    Main,
    /// The line of another branch of the same repository.
    Branch(Branch),
    /// The line of a pull request from a fork.
    PullRequest(u64),
    /// What a build of a tag of git is of. It has no cache: such a build reads main's and writes none.
    GitTag(Branch),
}

impl Branch {
    /// What a default branch is called where nothing says more.
    #[must_use]
    pub fn main() -> Self {
        Self("main".into())
    }
}

impl Line {
    /// The line that builds of `branch` belong to.
    #[must_use]
    pub fn of_branch(branch: &Branch, default_branch: &Branch) -> Self {
        if branch == default_branch { Self::Main } else { Self::Branch(branch.clone()) }
    }

    /// Parses what [`Line`]'s `Display` wrote.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let rule = "expected `main`, `branch/<name>`, `pr/<number>` or `tag/<name>`";
        if text == "main" {
            Ok(Self::Main)
        } else if let Some(branch) = text.strip_prefix("branch/") {
            Ok(Self::Branch(Branch::new(branch)?))
        } else if let Some(tag) = text.strip_prefix("tag/") {
            Ok(Self::GitTag(Branch::new(tag)?))
        } else {
            let number = text.strip_prefix("pr/").and_then(|n| n.parse().ok());
            number.map(Self::PullRequest).ok_or_else(|| InvalidName::new("line", text, rule))
        }
    }

    /// The line's part of a tag.
    #[must_use]
    pub fn key(&self) -> LineKey {
        LineKey(match self {
            Self::Main => "main".into(),
            Self::Branch(branch) => format!("branch.{}", slug(branch.as_str())).into(),
            Self::PullRequest(number) => format!("pr.{number}").into(),
            Self::GitTag(tag) => format!("tag.{}", slug(tag.as_str())).into(),
        })
    }
}

impl TryFrom<String> for Line {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse(&text)
    }
}

impl From<Line> for String {
    fn from(line: Line) -> Self {
        line.to_string()
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Main => f.write_str("main"),
            Self::Branch(branch) => write!(f, "branch/{branch}"),
            Self::PullRequest(number) => write!(f, "pr/{number}"),
            Self::GitTag(tag) => write!(f, "tag/{tag}"),
        }
    }
}

/// A line as its tag spells it. A hashed slug does not tell the branch, so this is all that a registry knows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineKey(Arc<str>);

impl LineKey {
    /// The key of the default branch's line.
    #[must_use]
    pub fn is_main(&self) -> bool {
        &*self.0 == "main"
    }

    fn parse(text: &str) -> Option<Self> {
        let ok = match text.split_once('.') {
            None => text == "main",
            Some(("branch", slug)) => is_slug(slug),
            Some(("pr", number)) => number.parse::<u64>().is_ok_and(|n| n.to_string() == number),
            Some(_) => false,
        };
        ok.then(|| Self(text.into()))
    }
}

impl fmt::Display for LineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_slug(text: &str) -> bool {
    (1..=MAX_SLUG).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// What a tag of Stoker's means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TagKind {
    /// Where a line points.
    Line(LineKey),
    /// The cache of one commit, from a build that Stoker checked.
    Commit(Commit),
    /// A note that the commit whose hash starts like this is the head of a fork's pull request.
    Fork(String),
    /// What one build wrote, not yet checked.
    Export(String),
    /// Caches of several lines, joined for builds that may read them all.
    Given(String),
    /// A cache that a line left.
    History {
        /// The line.
        line: LineKey,
        /// When the line left it.
        left_at: Timestamp,
    },
}

/// A tag of a cache repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

const TIME_FORMAT: &str = "%Y%m%dT%H%M%SZ";

/// Reads what [`TIME_FORMAT`] writes. By hand: a night reads hundreds of thousands.
fn read_time(text: &str) -> Option<Timestamp> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let is_whole =
        |text: &str, length: usize| text.len() == length && text.bytes().all(|c| c.is_ascii_digit());
    (is_whole(date, 8) && is_whole(time, 6)).then_some(())?;
    let year = date[..4].parse().ok()?;
    let two = |text: &str, at: usize| text[at..at + 2].parse::<i8>().ok();
    let (month, day) = (two(date, 4)?, two(date, 6)?);
    let (hour, minute, second) = (two(time, 0)?, two(time, 2)?, two(time, 4)?);
    let time = jiff::civil::DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
    jiff::tz::Offset::UTC.to_timestamp(time).ok()
}

impl Tag {
    /// The tag of a line.
    #[must_use]
    pub fn line(scope: &Scope, line: &Line) -> Self {
        Self(format!("{scope}.{}", line.key()))
    }

    /// The tag of a commit's checked cache, as the first line built it; its manifest says whether another one has, too.
    #[must_use]
    pub fn commit(scope: &Scope, commit: &Commit) -> Self {
        Self(format!("{scope}.commit.{commit}"))
    }

    /// Where a commit's checked cache is, as `line` built it: under a tag of its own, or under that of the
    /// first line, if it is that. What is there says of which line it is, and whoever reads it asks.
    #[must_use]
    pub fn commit_of(scope: &Scope, commit: &Commit, line: &Line) -> [Self; 2] {
        let tag = format!("{scope}.commit.{commit}-");
        let hash = hex::encode(Sha256::digest(line.to_string()));
        let room = MAX_TAG.saturating_sub(tag.len()).min(LINE_HASH);
        [Self(tag + hash.get(..room).unwrap_or_default()), Self::commit(scope, commit)]
    }

    /// The tag that says of a commit that it is the head of a fork's pull request. It names the start of the
    /// hash alone, as not every forge tells more; `None` where even that is shorter.
    #[must_use]
    pub fn fork(scope: &Scope, head: &Revision) -> Option<Self> {
        head.as_str().get(..FORK_HASH).map(|start| Self(format!("{scope}.fork.{start}")))
    }

    /// The tag that the build known by `key` (any string) exports to.
    #[must_use]
    pub fn export(scope: &Scope, key: &str) -> Self {
        Self(format!("{scope}.export.{}", slug(key)))
    }

    /// The tag of the join that the key names: of certain caches, on a certain day.
    #[must_use]
    pub fn given(scope: &Scope, key: &str) -> Self {
        Self(format!("{scope}.given.{}", slug(key)))
    }

    /// The tag that keeps `digest` after `line` has left it.
    #[must_use]
    pub fn history(scope: &Scope, line: &Line, left_at: Timestamp, digest: &Digest) -> Self {
        let time = left_at.strftime(TIME_FORMAT);
        Self(format!("{scope}.history.{}.{time}-{}", line.key(), &digest.short()[..8]))
    }

    /// Reads a tag; `None` when it is not one of Stoker's.
    #[must_use]
    pub fn parse(text: &str) -> Option<(Scope, TagKind)> {
        let (scope, rest) = text.split_once('.')?;
        if !is_slug(scope) {
            return None;
        }
        let kind = if let Some(sha) = rest.strip_prefix("commit.") {
            let (sha, line) = sha.split_once('-').map_or((sha, None), |(sha, line)| (sha, Some(line)));
            let is_hash = |line: &str| {
                (1..=LINE_HASH).contains(&line.len())
                    && line.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            };
            line.is_none_or(is_hash).then(|| Commit::new(sha).ok()).flatten().map(TagKind::Commit)?
        } else if let Some(start) = rest.strip_prefix("fork.") {
            let is_hex = start.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            (start.len() == FORK_HASH && is_hex).then(|| TagKind::Fork(start.to_owned()))?
        } else if let Some(key) = rest.strip_prefix("export.") {
            is_slug(key).then(|| TagKind::Export(key.to_owned()))?
        } else if let Some(key) = rest.strip_prefix("given.") {
            is_slug(key).then(|| TagKind::Given(key.to_owned()))?
        } else if let Some(history) = rest.strip_prefix("history.") {
            let (line, moment) = history.rsplit_once('.')?;
            let (time, digest) = moment.split_once('-')?;
            (digest.len() == 8 && digest.chars().all(|c| c.is_ascii_hexdigit())).then_some(())?;
            TagKind::History { line: LineKey::parse(line)?, left_at: read_time(time)? }
        } else {
            TagKind::Line(LineKey::parse(rest)?)
        };
        Some((Scope(scope.into()), kind))
    }

    /// A tag that [`Tag::parse`] has read.
    #[must_use]
    pub fn known(text: &str) -> Option<Self> {
        Self::parse(text).map(|_| Self(text.to_owned()))
    }

    /// The tag as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn repositories_are_named_as_ecr_allows() {
        for name in ["a1", "stoker/app", "a--b---c", "a__b", "a.b/c_d", "0/1"] {
            assert!(CacheRepository::new(name).is_ok(), "{name}");
        }
        for name in
            ["a", "A/b", "a___b", "a..b", "a._b", "a-_b", "-a", "a-", "a//b", "/ab", "ab/", "a/-b", "a b"]
        {
            assert!(CacheRepository::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_repositorys_host_may_have_a_port() {
        let plain = Repository::new("ghe.example.com/example/app").unwrap();
        for name in ["ghe.example.com:8443/example/app", "GHE.example.com:443/Example/App"] {
            assert_eq!(Repository::new(name).as_ref(), Ok(&plain), "{name}");
        }
        for name in
            ["ghe.example.com:/a/b", "ghe.example.com:x/a/b", "a:1:2/a/b", ":1/a/b", "host:1", "host/a:1/b"]
        {
            assert!(Repository::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn branches_are_named_as_git_allows() {
        for name in ["main", "feature/ログイン　修正", "a\u{a0}b", "a\u{2003}b"] {
            assert!(Branch::new(name).is_ok(), "{name}");
        }
        for name in ["", "a b", "a\tb", "a\nb", "a\u{7f}b", "a\u{9b}b", "a..b", "a:b", "a^b"] {
            assert!(Branch::new(name).is_err(), "{name}");
        }
    }

    fn tag_is_legal(tag: &str) -> bool {
        (1..=128).contains(&tag.len())
            && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
    }

    proptest! {
        #[test]
        fn two_branches_never_share_a_tag(a in "[a-zA-Z_./-]{1,60}", b in "[a-zA-Z_./-]{1,60}") {
            prop_assert_eq!(slug(&a) == slug(&b), a == b);
        }

        #[test]
        fn every_tag_is_legal_and_reads_back(project in "[a-z][a-zA-Z0-9_-]{1,149}",
            branch in "export|\\PC{1,200}", sha in "[0-9a-f]{40}|[0-9a-f]{64}") {
            let commit = Commit::new(sha).unwrap();
            let scope = Scope::of(&ProjectName::new(project).unwrap());
            let now = Timestamp::from_second(1_795_000_000).unwrap();
            let digest = Digest::of(b"cache");
            let line = Line::Branch(Branch(branch));
            for (tag, kind) in [
                (Tag::line(&scope, &line), TagKind::Line(line.key())),
                (Tag::history(&scope, &line, now, &digest), TagKind::History { line: line.key(), left_at: now }),
                (Tag::given(&scope, "key"), TagKind::Given("key".to_owned())),
                (Tag::fork(&scope, &commit.clone().into()).unwrap(), TagKind::Fork(commit.as_str()[..12].to_owned())),
                (Tag::commit_of(&scope, &commit, &line)[0].clone(), TagKind::Commit(commit.clone())),
                (Tag::commit(&scope, &commit), TagKind::Commit(commit.clone())),
            ] {
                prop_assert!(tag_is_legal(tag.as_str()), "{}", tag);
                prop_assert_eq!(Tag::parse(tag.as_str()), Some((scope.clone(), kind)));
                prop_assert!(!tag.as_str().contains(".export."), "a lifecycle rule would delete {}", tag);
            }
        }

        #[test]
        fn no_branch_spells_another_kind_of_tag(branch in "(main|pr\\.1|history|export|given|commit|fork|x)[./a-z0-9_-]{0,40}") {
            let scope = Scope::of(&ProjectName::new("app").unwrap());
            let tag = Tag::line(&scope, &Line::Branch(Branch(branch)));
            let (_, kind) = Tag::parse(tag.as_str()).unwrap();
            prop_assert!(matches!(kind, TagKind::Line(key) if key.to_string().starts_with("branch.")));
        }

        #[test]
        fn any_text_parses_without_panic(text in "\\PC{0,140}") {
            let _ = Tag::parse(&text);
        }
    }

    #[test]
    fn tags_look_as_documented() {
        let scope = Scope::of(&ProjectName::new("app").unwrap());
        let branch = |name: &str| Line::Branch(Branch::new(name).unwrap());
        assert_eq!(Tag::line(&scope, &Line::Main).as_str(), "app.main");
        assert_eq!(Tag::line(&scope, &branch("fix-1")).as_str(), "app.branch.fix-1");
        assert_eq!(Tag::line(&scope, &Line::PullRequest(7)).as_str(), "app.pr.7");
        let slashed = Tag::line(&scope, &branch("feature/a"));
        assert!(slashed.as_str().starts_with("app.branch.feature-a__"), "{slashed}");
        assert!(Tag::parse("latest").is_none());
        assert!(Tag::parse("app.latest").is_none());
    }

    #[test]
    fn lines_read_back() {
        for text in ["main", "branch/feature/a", "pr/12"] {
            assert_eq!(Line::parse(text).unwrap().to_string(), text);
        }
        assert!(Line::parse("pr/x").is_err());
        assert!(Line::parse("branch/").is_err());
    }
}
