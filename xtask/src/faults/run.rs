//! A life by chance: what people do, and the git repository that comes of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

/// The branch that others are merged into.
pub(crate) const MAIN: &str = "main";
/// When the first commit of every life is dated.
const EPOCH: u64 = 1_700_000_000;
/// Two independent stages, and a last step that needs both.
const DOCKERFILE: &str = "\
ARG BASE=busybox:1.37
FROM ${BASE} AS a
COPY a/dependencies.txt /a/
WORKDIR /a
RUN cat dependencies.txt > dependencies-a
COPY a/source.txt .
RUN cat dependencies-a source.txt > part

FROM ${BASE} AS b
COPY b/dependencies.txt /b/
WORKDIR /b
RUN cat dependencies.txt > dependencies-b
COPY b/source.txt .
RUN cat dependencies-b source.txt > part

FROM ${BASE}
WORKDIR /app
COPY --from=a /a/part a
COPY --from=b /b/part b
RUN cat a b > app
";
const BUILDSPEC: &str = "\
version: 0.2
phases:
  build:
    commands:
      - docker buildx build $STOKER_CACHE_FLAGS --build-arg BASE=$BASE_IMAGE -t run .
";

/// Numbers that only look random: `SplitMix64`.
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}

/// What people do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A branch gets a commit.
    Push {
        /// The branch.
        branch: String,
        /// Its head before, if it is not new.
        before: Option<String>,
        /// Its head now.
        head: String,
    },
    /// A branch is merged into main.
    Merge {
        /// The branch.
        branch: String,
        /// Its head.
        head: String,
        /// Main's head before.
        before: String,
        /// Main's head now.
        merge: String,
    },
    /// A branch is deleted.
    Delete {
        /// The branch.
        branch: String,
        /// Its head.
        before: String,
    },
    /// The reconciliation comes to the project in between.
    Reconcile,
}

/// The sources of a commit, as versions of its four files.
type Versions = [u64; 4];

/// A life.
#[derive(Debug)]
pub(crate) struct Run {
    /// Whose it is, and all that is by chance in it.
    pub(crate) seed: u64,
    /// Whether builds and lines have repositories of their own.
    pub(crate) isolated: bool,
    /// What people do; the first is a push to main.
    pub(crate) steps: Vec<Step>,
    /// The heads of the branches that are left at the end, with a checkout of each.
    pub(crate) heads: BTreeMap<String, PathBuf>,
    /// All commits of branches that are gone.
    pub(crate) gone: Vec<String>,
    /// The git repository.
    pub(crate) origin: PathBuf,
}

/// What people do, with commits as marks of `git fast-import`.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Push { branch: u64, before: Option<usize>, head: usize },
    Merge { branch: u64, head: usize, before: usize, merge: usize },
    Delete { branch: u64, before: usize },
    Reconcile,
}

/// A commit that is to be made.
struct Made {
    parents: Vec<usize>,
    versions: Versions,
}

impl Run {
    /// The life of a seed, of so many steps at most, its repository below `dir`.
    pub(crate) fn new(seed: u64, most: u64, dir: &Path) -> anyhow::Result<Self> {
        let mut rng = Rng(seed);
        let isolated = rng.below(2) == 1;
        let (deeds, commits) = chance(&mut rng, most);
        let dir = dir.join(format!("run-{seed}"));
        let (origin, ids) = import(&dir, &commits)?;
        let id = |mark: usize| ids.get(mark).cloned().unwrap_or_default();
        let name = |branch: u64| format!("b{branch}");
        let mut heads: BTreeMap<String, usize> = BTreeMap::from([(MAIN.to_owned(), 0)]);
        let mut pushed: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut gone = Vec::new();
        let mut steps = vec![Step::Push { branch: MAIN.to_owned(), before: None, head: id(0) }];
        for deed in deeds {
            steps.push(match deed {
                Deed::Push { branch, before, head } => {
                    heads.insert(name(branch), head);
                    pushed.entry(name(branch)).or_default().push(id(head));
                    Step::Push { branch: name(branch), before: before.map(id), head: id(head) }
                }
                Deed::Merge { branch, head, before, merge } => {
                    heads.insert(MAIN.to_owned(), merge);
                    Step::Merge { branch: name(branch), head: id(head), before: id(before), merge: id(merge) }
                }
                Deed::Delete { branch, before } => {
                    heads.remove(&name(branch));
                    gone.extend(pushed.remove(&name(branch)).unwrap_or_default());
                    Step::Delete { branch: name(branch), before: id(before) }
                }
                Deed::Reconcile => Step::Reconcile,
            });
        }
        let mut checkouts = BTreeMap::new();
        for (branch, mark) in heads {
            let Some(Made { versions, .. }) = commits.get(mark) else { continue };
            let checkout = dir.join(&branch);
            for (path, content) in files(versions) {
                let file = checkout.join(path);
                fs::create_dir_all(file.parent().unwrap_or(&checkout))?;
                fs::write(file, content)?;
            }
            checkouts.insert(branch, checkout);
        }
        Ok(Self { seed, isolated, steps, heads: checkouts, gone, origin })
    }

    /// Main is at this commit now. Whoever builds a branch names its commit, so only main has to be where it
    /// is.
    pub(crate) fn move_main(&self, commit: &str) -> anyhow::Result<()> {
        let moved = git(&self.origin, &["update-ref", "refs/heads/main", commit]).status();
        ensure!(moved.context("cannot run `git`")?.success(), "main cannot be moved to {commit}");
        Ok(())
    }
}

/// What happens in a life, as in `tests/scenarios/chaos.rs`, but that no time passes.
fn chance(rng: &mut Rng, most: u64) -> (Vec<Deed>, Vec<Made>) {
    let mut version = 1;
    let mut commits = vec![Made { parents: vec![], versions: [1; 4] }];
    let mut main = 0;
    let mut branches: BTreeMap<u64, usize> = BTreeMap::new();
    let mut deeds = Vec::new();
    for _ in 0..most.min(4 + rng.below(7)) {
        let branch = rng.below(3);
        let deed = match (rng.below(8), branches.get(&branch).copied()) {
            (4 | 5, Some(head)) => {
                let versions = commits[head].versions;
                commits.push(Made { parents: vec![main, head], versions });
                let before = std::mem::replace(&mut main, commits.len() - 1);
                Deed::Merge { branch, head, before, merge: main }
            }
            (6, Some(before)) => {
                branches.remove(&branch);
                Deed::Delete { branch, before }
            }
            (7, _) => Deed::Reconcile,
            (_, before) => {
                version += 1;
                let parent = before.unwrap_or(main);
                let mut versions = commits[parent].versions;
                let file = usize::try_from(rng.below(4)).unwrap_or_default();
                versions[file] = version;
                commits.push(Made { parents: vec![parent], versions });
                branches.insert(branch, commits.len() - 1);
                Deed::Push { branch, before, head: commits.len() - 1 }
            }
        };
        deeds.push(deed);
    }
    (deeds, commits)
}

/// A `git` without the settings of whoever runs it.
fn git(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.current_dir(dir).args(args);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    command
}

fn files(versions: &Versions) -> [(&'static str, String); 6] {
    let [deps_a, source_a, deps_b, source_b] = versions;
    [
        ("Dockerfile", DOCKERFILE.to_owned()),
        ("buildspec.yml", BUILDSPEC.to_owned()),
        ("a/dependencies.txt", format!("left {deps_a}\n")),
        ("a/source.txt", format!("a {source_a}\n")),
        ("b/dependencies.txt", format!("right {deps_b}\n")),
        ("b/source.txt", format!("b {source_b}\n")),
    ]
}

/// Makes a repository of all commits at once; answers where it is, and the commits' ids. Main is where it
/// begins.
fn import(dir: &Path, commits: &[Made]) -> anyhow::Result<(PathBuf, Vec<String>)> {
    let origin = dir.join("origin.git");
    fs::create_dir_all(&origin)?;
    let made = git(&origin, &["init", "--quiet", "--bare", "--initial-branch=main"]).status();
    ensure!(made.context("cannot run `git`; install it")?.success(), "`git init` failed");

    let mut stream = String::new();
    for (mark, Made { parents, versions }) in commits.iter().enumerate() {
        // Each has a branch of its own, so that a clone brings it.
        let (number, date) = (mark + 1, EPOCH + mark as u64);
        writeln!(stream, "commit refs/heads/commit-{number}\nmark :{number}")?;
        writeln!(stream, "committer Run <run@localhost> {date} +0000\ndata 4\nlife")?;
        for (parent, word) in parents.iter().zip(["from", "merge"]) {
            writeln!(stream, "{word} :{}", parent + 1)?;
        }
        for (path, content) in files(versions) {
            writeln!(stream, "M 100644 inline {path}\ndata {}\n{content}", content.len())?;
        }
    }
    writeln!(stream, "reset refs/heads/main\nfrom :1\n")?;
    let mut importing = git(&origin, &["fast-import", "--quiet", "--export-marks=marks"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run `git fast-import`")?;
    importing.stdin.take().context("git takes no input")?.write_all(stream.as_bytes())?;
    ensure!(importing.wait()?.success(), "`git fast-import` failed");

    let mut ids = vec![String::new(); commits.len()];
    for line in fs::read_to_string(origin.join("marks"))?.lines() {
        let known = line.strip_prefix(':').and_then(|line| line.split_once(' '));
        let (mark, id) = known.with_context(|| format!("`{line}` is no mark"))?;
        let place = mark.parse::<usize>()?.checked_sub(1).and_then(|mark| ids.get_mut(mark));
        id.clone_into(place.context("git knows more commits than were made")?);
    }
    Ok((origin, ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_has_the_same_life() {
        let dir = std::env::temp_dir().join(format!("stoker-run-{}", std::process::id()));
        let runs = [dir.join("a"), dir.join("b")].map(|dir| Run::new(7, 10, &dir).unwrap());
        assert_eq!(runs[0].steps, runs[1].steps);
        assert!(runs[0].steps.len() > 4);
        assert_eq!(runs[0].heads.keys().collect::<Vec<_>>(), runs[1].heads.keys().collect::<Vec<_>>());
        let Step::Push { head, .. } = &runs[0].steps[0] else { panic!("a run begins with a push") };
        let main = git(&runs[0].origin, &["rev-parse", "main"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&main.stdout).trim(), head);
        fs::remove_dir_all(dir).unwrap();
    }
}
