//! Why a verdict is what it is. Of a hundred thousand verdicts few are ever read, so words are made when
//! somebody asks for them.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use super::rule::Rule;
use crate::names::{Line, LineKey, Tag, TagKind};

/// What one tag says of its image, or what is true of the whole image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    Main,
    DeletedLine(Timestamp),
    KeepBranches(Arc<Line>),
    Idle(Timestamp),
    Line,
    NoTagOfOurs,
    NoProject,
    Pinned,
    LeftWithinLease,
    LeftNewest,
    Left,
    Head,
    WentWithLine,
    NoHead,
    CommitWithinLease,
    OldFork,
    Fork,
    OldExport,
    ExportWithinLease,
    OldGiven,
    GivenWithinLease,
    Unnamed,
    DigestPinned,
    Orphan(Timestamp),
    OrphanWithinLease,
    Unread,
    TooLarge,
    NotCache,
    Child,
    Budget(Timestamp),
}

/// A reason, and by its place the tag of the image that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Why {
    pub(super) reason: Reason,
    pub(super) tag: u32,
}

impl Why {
    /// Its words. `tags` are those of the image.
    pub(super) fn write(&self, f: &mut impl fmt::Write, tags: &[String], rule: Rule) -> fmt::Result {
        let tag = tags.get(self.tag as usize).map_or("", String::as_str);
        match &self.reason {
            Reason::Main => f.write_str("main"),
            Reason::DeletedLine(at) => write!(f, "{} went at {at}", line(tag)),
            Reason::KeepBranches(line) => write!(f, "{line} is one to keep"),
            Reason::Idle(since) => write!(f, "{} has been idle since {since}", line(tag)),
            Reason::Line => f.write_str(&line(tag)),
            Reason::NoTagOfOurs => write!(f, "{tag} is no tag of Stoker's"),
            Reason::NoProject => write!(f, "{tag} belongs to no project of the policy"),
            Reason::Pinned => write!(f, "{tag} is pinned"),
            Reason::LeftWithinLease => write!(f, "{}, within the lease", left(tag)),
            Reason::LeftNewest => write!(f, "{}; one of the newest", left(tag)),
            Reason::Left => f.write_str(&left(tag)),
            Reason::Head => write!(f, "commit {} is a line's head", commit(tag)),
            Reason::WentWithLine => write!(f, "commit {} went with its line", commit(tag)),
            Reason::NoHead => write!(f, "commit {} is no line's head", commit(tag)),
            Reason::CommitWithinLease => write!(f, "commit {} is within the lease", commit(tag)),
            Reason::OldFork => {
                f.write_str("a fork's head that was told longer ago than branches may be idle")
            }
            Reason::Fork => f.write_str("says that a commit is the head of a fork's pull request"),
            Reason::OldExport => f.write_str("an export older than the lease"),
            Reason::ExportWithinLease => f.write_str("an export within the lease"),
            Reason::OldGiven => f.write_str("a join that no build was given within the lease"),
            Reason::GivenWithinLease => f.write_str("a join that a build was given within the lease"),
            Reason::Unnamed => f.write_str("no tag says what it is"),
            Reason::DigestPinned => f.write_str("its digest is pinned"),
            Reason::Orphan(since) => write!(f, "no tag, and no use since {since}"),
            Reason::OrphanWithinLease => f.write_str("no tag, and not long ago"),
            Reason::Unread => f.write_str("its manifest cannot be read"),
            Reason::TooLarge => f.write_str("its manifest is too large to be read"),
            Reason::NotCache => f.write_str("it is not a cache"),
            Reason::Child => f.write_str("an index holds it"),
            Reason::Budget(used) => write!(f, "last used at {used}, and the {} is exceeded", rule.name()),
        }
    }
}

fn line(tag: &str) -> String {
    match Tag::parse(tag) {
        Some((_, TagKind::Line(line) | TagKind::History { line, .. })) => LineKey::to_string(&line),
        _ => tag.to_owned(),
    }
}

fn left(tag: &str) -> String {
    match Tag::parse(tag) {
        Some((_, TagKind::History { line, left_at })) => format!("{line} left it at {left_at}"),
        _ => tag.to_owned(),
    }
}

fn commit(tag: &str) -> String {
    match Tag::parse(tag) {
        Some((_, TagKind::Commit(commit))) => commit.short().to_owned(),
        _ => tag.to_owned(),
    }
}
