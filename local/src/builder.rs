//! What builds images: the Docker engine that is there, or the simulated builder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::sync::Mutex;

use crate::buildspec::quoted;

/// What the engine says of a container that died before its step began, on machines that are short of something.
pub const STILLBORN: &str = "unable to start container process: waiting for init";

/// How many records are named in one call of `docker buildx prune`.
const PRUNED_AT_ONCE: usize = 200;

/// The builder does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    /// There is no `docker`, or it could not be started.
    #[error("`docker {command}` cannot be run")]
    Spawn {
        /// The command.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The engine refused.
    #[error("`docker {command}` failed: {message}")]
    Failed {
        /// The command.
        command: String,
        /// What it says.
        message: String,
    },
    /// A file of the state directory could not be written.
    #[error("`{}` cannot be written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A builder, which can be made as fresh as a new machine's.
#[derive(Debug)]
pub enum Builder {
    /// The Docker engine.
    Docker(Docker),
    /// The simulated one; builds find its `docker` in this directory.
    Simulated(PathBuf),
}

/// A Docker engine that a developer uses too: only what builds of this process put into its cache is removed from it.
#[derive(Debug)]
pub struct Docker {
    state: Mutex<Cache>,
    /// Remembers `made`, in case this process is killed.
    file: PathBuf,
}

#[derive(Debug, Default)]
struct Cache {
    /// The records that these builds made.
    made: BTreeSet<String>,
    /// The records that were there before the build that runs.
    before: BTreeSet<String>,
}

impl Builder {
    /// The engine that the `docker` command reaches.
    pub async fn docker(state: &Path) -> Result<Self, BuilderError> {
        docker(&["buildx", "inspect"]).await?;
        let file = state.join("builder-cache.txt");
        let made = std::fs::read_to_string(&file).unwrap_or_default();
        let made = made.lines().map(str::to_owned).collect();
        Ok(Self::Docker(Docker { state: Mutex::new(Cache { made, before: BTreeSet::new() }), file }))
    }

    /// The simulated builder: `program docker` builds.
    pub fn simulated(state: &Path, program: &Path) -> Result<Self, BuilderError> {
        let bin = state.join("bin");
        let path = bin.join("docker");
        let script = format!("#!/bin/sh\nexec {} docker \"$@\"\n", quoted(&program.to_string_lossy()));
        let write = || {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::create_dir_all(&bin)?;
            std::fs::write(&path, script)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
        };
        write().map_err(|source| BuilderError::Io { path: path.clone(), source })?;
        Ok(Self::Simulated(bin))
    }

    /// `docker` or `simulated`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Docker(_) => "docker",
            Self::Simulated(_) => "simulated",
        }
    }

    /// The directory that comes first in the builds' `PATH`.
    #[must_use]
    pub fn bin(&self) -> Option<&Path> {
        match self {
            Self::Docker(_) => None,
            Self::Simulated(bin) => Some(bin),
        }
    }

    /// Before a build: removes what earlier builds left, if the machine is to be fresh.
    pub async fn before(&self, fresh: bool) -> Result<(), BuilderError> {
        let Self::Docker(engine) = self else { return Ok(()) };
        let mut cache = engine.state.lock().await;
        if fresh {
            prune(&mut cache).await?;
        }
        cache.before = ids_of(&records().await?);
        engine.remember(&cache)
    }

    /// After a build: notes what it left.
    pub async fn after(&self) -> Result<(), BuilderError> {
        let Self::Docker(engine) = self else { return Ok(()) };
        let mut cache = engine.state.lock().await;
        let new: Vec<String> = ids_of(&records().await?).difference(&cache.before).cloned().collect();
        cache.made.extend(new);
        engine.remember(&cache)
    }

    /// At the end: leaves the engine as it was found.
    pub async fn clean(&self) -> Result<(), BuilderError> {
        let Self::Docker(engine) = self else { return Ok(()) };
        let mut cache = engine.state.lock().await;
        prune(&mut cache).await?;
        engine.remember(&cache)
    }
}

impl Docker {
    fn remember(&self, cache: &Cache) -> Result<(), BuilderError> {
        let text: String = cache.made.iter().flat_map(|id| [id, "\n"]).collect();
        std::fs::write(&self.file, text)
            .map_err(|source| BuilderError::Io { path: self.file.clone(), source })
    }
}

/// A record in a builder's cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// The ids of those that it rests on.
    pub parents: Vec<String>,
    /// What made it: a step, or the import of a blob.
    pub description: String,
}

async fn prune(cache: &mut Cache) -> Result<(), BuilderError> {
    cache.made = remove(&cache.made).await?;
    if !cache.made.is_empty() {
        tracing::warn!(records = cache.made.len(), "the builder keeps some of what earlier builds left");
    }
    Ok(())
}

/// Removes records from the cache of the builder that `docker buildx` uses; returns those that it keeps.
pub async fn remove(ids: &BTreeSet<String>) -> Result<BTreeSet<String>, BuilderError> {
    let mut left = ids.clone();
    // A record goes only after those that rest on it; what a call could not remove, the next one does.
    for _ in 0..3 {
        if left.is_empty() {
            break;
        }
        let ids: Vec<&str> = left.iter().map(String::as_str).collect();
        for ids in ids.chunks(PRUNED_AT_ONCE) {
            // `id` is matched as a regular expression.
            let filter = format!("id={}", ids.join("|"));
            docker(&["buildx", "prune", "--all", "--force", "--filter", &filter]).await?;
        }
        let there = ids_of(&records().await?);
        left.retain(|id| there.contains(id));
    }
    Ok(left)
}

/// All records in the cache of the builder that `docker buildx` uses.
pub async fn records() -> Result<Vec<Record>, BuilderError> {
    Ok(parse_records(&docker(&["buildx", "du", "--verbose"]).await?))
}

/// Reads what `docker buildx du --verbose` prints. Versions of buildx name the parents of a record in a field each, in
/// one field, or in a list below it.
fn parse_records(text: &str) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let mut in_parents = false;
    for line in text.lines() {
        let item = line.trim_start().strip_prefix("- ").filter(|_| in_parents);
        if let (Some(item), Some(record)) = (item, records.last_mut()) {
            // Each item has a dash of its own in the text that makes the list.
            record.parents.push(item.trim_start_matches("- ").trim().to_owned());
            continue;
        }
        in_parents = false;
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match (name, records.last_mut()) {
            ("ID", _) => records.push(Record { id: value.to_owned(), ..Record::default() }),
            ("Parent" | "Parents", Some(record)) => {
                in_parents = true;
                let parents = value.split(',').map(str::trim).filter(|id| !id.is_empty());
                record.parents.extend(parents.map(str::to_owned));
            }
            ("Description", Some(record)) => value.clone_into(&mut record.description),
            _ => {}
        }
    }
    records
}

fn ids_of(records: &[Record]) -> BTreeSet<String> {
    records.iter().map(|record| record.id.clone()).collect()
}

async fn docker(arguments: &[&str]) -> Result<String, BuilderError> {
    let command = || arguments.iter().take(3).copied().collect::<Vec<_>>().join(" ");
    let output = Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| BuilderError::Spawn { command: command(), source })?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(BuilderError::Failed { command: command(), message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As buildx 0.13 and 0.29 print the same two records.
    const ONE_FIELD: &str = "ID:\t\tsl263o73\nParent:\tfpsi93lu\nCreated at:\t2026-11-29 06:06:45.92168383 +0000 UTC\n\
        Mutable:\tfalse\nSize:\t24.58kB\nDescription:\t[a 2/3] RUN make: all\nType:\tregular\n\n\
        ID:\t\tfpsi93lu\nCreated at:\t2026-11-29 06:06:45.8 +0000 UTC\nDescription:\tpulled from x\n";
    const LISTS: &str = "ID:           sl263o73\nParents:\n- - fpsi93lu\n\
        Created at:   2026-11-29 06:06:45.92168383 +0000 UTC\nMutable:      false\nSize:         24.58kB\n\
        Description:  [a 2/3] RUN make: all\nType:         regular\n\n\
        ID:           fpsi93lu\nCreated at:   2026-11-29 06:06:45.8 +0000 UTC\nDescription:  pulled from x\n";

    #[test]
    fn records_are_read_as_each_buildx_prints_them() {
        let record = |id: &str, parents: &[&str], description: &str| Record {
            id: id.to_owned(),
            parents: parents.iter().map(|&parent| parent.to_owned()).collect(),
            description: description.to_owned(),
        };
        let expected = [
            record("sl263o73", &["fpsi93lu"], "[a 2/3] RUN make: all"),
            record("fpsi93lu", &[], "pulled from x"),
        ];
        assert_eq!(parse_records(ONE_FIELD), expected);
        assert_eq!(parse_records(LISTS), expected);
        let several = LISTS.replace("- - fpsi93lu", " - fpsi93lu\n - other");
        assert_eq!(parse_records(&several)[0].parents, ["fpsi93lu", "other"]);
        let listed = ONE_FIELD.replace("Parent:\tfpsi93lu", "Parents:\tfpsi93lu, other");
        assert_eq!(parse_records(&listed)[0].parents, ["fpsi93lu", "other"]);
    }
}
