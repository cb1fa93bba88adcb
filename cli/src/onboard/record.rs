//! What was made for a project, and what was there before: a file for each, written before anything is made. `undo`
//! goes by it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stoker_core::names::ProjectName;
use stoker_core::onboard::Webhook;

use crate::problem::Problem;
use crate::text::plain;

/// Something that is made or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub(super) enum Change {
    /// A repository of ECR, with the tag that says for whom.
    Repository { name: String, is_immutable: bool },
    /// A managed policy is attached to a role.
    Role { role: String, policy: String },
    /// Text is put into the policy, at a byte of it.
    Rule { file: PathBuf, text: String, at: usize },
    /// A webhook at the forge.
    Webhook { repository: String, url: String },
    /// An inline buildspec.
    Inline { before: String, after: String },
    /// A pull request with another buildspec.
    Proposal { repository: String, branch: String, base: String, file: String, after: String },
    /// CodeBuild's own webhook is taken away.
    TakeOver { webhook: Webhook },
}

impl Change {
    /// Whether two changes are of the same thing, which several projects may share.
    pub(super) fn is_of_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Repository { name: a, .. }, Self::Repository { name: b, .. }) => a == b,
            (Self::Rule { file: a, text: c, .. }, Self::Rule { file: b, text: d, .. }) => (a, c) == (b, d),
            (
                Self::Proposal { repository: a, branch: c, .. },
                Self::Proposal { repository: b, branch: d, .. },
            ) => (a, c) == (b, d),
            (Self::Inline { .. }, Self::Inline { .. }) | (Self::TakeOver { .. }, Self::TakeOver { .. }) => {
                false
            }
            _ => self == other,
        }
    }

    /// Its place in the order in which things are made.
    pub(super) fn step(&self) -> u8 {
        match self {
            Self::Repository { .. } => 0,
            Self::Role { .. } => 1,
            Self::Rule { .. } => 2,
            Self::Webhook { .. } => 3,
            Self::Inline { .. } | Self::Proposal { .. } => 4,
            Self::TakeOver { .. } => 5,
        }
    }

    /// In a line.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Repository { name, .. } => format!("repository {} in ECR", plain(name)),
            Self::Role { role, policy } => format!("policy {} of role {}", plain(policy), plain(role)),
            Self::Rule { file, .. } => format!("rule in {}", plain(&file.display().to_string())),
            Self::Webhook { repository, url } => {
                format!("webhook of {} to {}", plain(repository), plain(url))
            }
            Self::Inline { .. } => "the project's inline buildspec".to_owned(),
            Self::Proposal { repository, file, .. } => {
                format!("pull request in {} for {}", plain(repository), plain(file))
            }
            Self::TakeOver { .. } => "CodeBuild's own webhook, which is taken away".to_owned(),
        }
    }
}

/// What was made for a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) project: String,
    pub(super) region: String,
    pub(super) account: String,
    /// When it was begun.
    pub(super) at: Timestamp,
    pub(super) changes: Vec<Change>,
}

/// The records of a directory.
pub(super) struct Records {
    directory: PathBuf,
    all: Vec<Record>,
}

impl Records {
    pub(super) fn open(directory: &Path) -> Result<Self, Problem> {
        let mut all = Vec::new();
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { directory: directory.to_owned(), all });
            }
            Err(error) => return Err(unusable(directory, &error.to_string())),
        };
        for entry in entries {
            let path = entry.map_err(|error| unusable(directory, &error.to_string()))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read_to_string(&path).map_err(|error| unusable(&path, &error.to_string()))?;
            all.push(serde_json::from_str(&text).map_err(|error| unusable(&path, &error.to_string()))?);
        }
        Ok(Self { directory: directory.to_owned(), all })
    }

    pub(super) fn of(&self, project: &ProjectName) -> Option<&Record> {
        self.all.iter().find(|record| record.project == project.as_str())
    }

    /// The projects that have a record, of those that are meant.
    pub(super) fn names(&self, is_meant: impl Fn(&str) -> bool) -> Vec<ProjectName> {
        let mut names: Vec<ProjectName> =
            self.all.iter().filter_map(|record| ProjectName::new(record.project.as_str()).ok()).collect();
        names.retain(|name| is_meant(name.as_str()));
        names.sort();
        names
    }

    /// Whether another project's record says that a thing was made.
    pub(super) fn has_elsewhere(&self, project: &ProjectName, change: &Change) -> bool {
        let others = self.all.iter().filter(|record| record.project != project.as_str());
        others.flat_map(|record| &record.changes).any(|known| known.is_of_same(change))
    }

    /// What other projects' records have of a kind.
    pub(super) fn elsewhere(&self, project: &ProjectName, is_meant: impl Fn(&Change) -> bool) -> Vec<Change> {
        let others = self.all.iter().filter(|record| record.project != project.as_str());
        others.flat_map(|record| &record.changes).filter(|change| is_meant(change)).cloned().collect()
    }

    /// Writes a record, whole or not at all.
    pub(super) fn save(&mut self, record: Record) -> Result<(), Problem> {
        let path = self.path(&record.project);
        let text = serde_json::to_string_pretty(&record).unwrap_or_default() + "\n";
        let written = fs::create_dir_all(&self.directory).and_then(|()| replace(&path, &text));
        written.map_err(|error| unusable(&path, &error.to_string()))?;
        self.all.retain(|known| known.project != record.project);
        self.all.push(record);
        Ok(())
    }

    pub(super) fn remove(&mut self, project: &ProjectName) -> Result<(), Problem> {
        let path = self.path(project.as_str());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(unusable(&path, &error.to_string()))
            }
            _ => {
                self.all.retain(|known| known.project != project.as_str());
                // The directory goes with its last record.
                let _ = fs::remove_dir(&self.directory);
                Ok(())
            }
        }
    }

    fn path(&self, project: &str) -> PathBuf {
        self.directory.join(format!("{project}.json"))
    }
}

fn unusable(path: &Path, why: &str) -> Problem {
    Problem::failed(
        format!("the record {} cannot be used: {}", plain(&path.display().to_string()), plain(why)),
        "it says what was made and what was there before: name its directory with --record, and see that you \
         may write there",
    )
}

/// Writes a file, whole or not at all.
pub(super) fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// What was put into a text, and at which byte: `before` with it is `after`.
pub(super) fn inserted(before: &str, after: &str) -> Option<(usize, String)> {
    let (old, new): (Vec<&str>, Vec<&str>) =
        (before.split_inclusive('\n').collect(), after.split_inclusive('\n').collect());
    let start = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let end = old[start..].iter().rev().zip(new[start..].iter().rev()).take_while(|(a, b)| a == b).count();
    let at = old[..start].concat().len();
    (start + end == old.len()).then(|| (at, new[start..new.len() - end].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_was_saved_and_goes_with_its_directory() {
        let directory = std::env::temp_dir().join(format!("stoker-record-{}", std::process::id()));
        let name = ProjectName::new("app").unwrap();
        let change = Change::Role { role: "builds".to_owned(), policy: "arn".to_owned() };
        let of = |project: &str| Record {
            project: project.to_owned(),
            region: "r".to_owned(),
            account: "1".to_owned(),
            at: Timestamp::UNIX_EPOCH,
            changes: vec![change.clone()],
        };
        let mut records = Records::open(&directory).unwrap();
        records.save(of("app")).unwrap();
        assert!(!records.has_elsewhere(&name, &change));
        records.save(of("web")).unwrap();
        let mut again = Records::open(&directory).unwrap();
        assert_eq!(again.of(&name), Some(&of("app")));
        assert!(again.has_elsewhere(&name, &change));
        again.remove(&name).unwrap();
        again.remove(&ProjectName::new("web").unwrap()).unwrap();
        assert!(!directory.exists());
    }

    #[test]
    fn what_was_put_in_can_be_taken_out() {
        let before = "a\nb\nc\n";
        let after = "a\nb\nx\nb\nc\n";
        let (at, text) = inserted(before, after).unwrap();
        assert_eq!(format!("{}{text}{}", &before[..at], &before[at..]), after);
        assert_eq!(after.replacen(&text, "", 1), before);
        assert_eq!(inserted("a\nb\n", "a\nc\n"), None);
    }
}
