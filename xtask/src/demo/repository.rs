//! The git repositories of the demo: a bare origin and a clone in which somebody works.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Files of a new repository.
type Files = &'static [(&'static str, &'static str)];

/// An application of two independent stages. Their dependencies cost seconds; the last step needs both.
pub(crate) const APP: Files = &[
    (
        "Dockerfile",
        "\
ARG BASE=busybox:1.37
FROM ${BASE} AS a
COPY a/dependencies.txt /a/
WORKDIR /a
RUN sleep 10.5 && cat dependencies.txt > dependencies-a
COPY a/source.txt .
RUN sleep 0.2 && cat dependencies-a source.txt > part

FROM ${BASE} AS b
COPY b/dependencies.txt /b/
WORKDIR /b
RUN sleep 10.5 && cat dependencies.txt > dependencies-b
COPY b/source.txt .
RUN sleep 0.2 && cat dependencies-b source.txt > part

FROM ${BASE}
COPY version.txt /app/
WORKDIR /app
COPY --from=a /a/part a
COPY --from=b /b/part b
RUN sleep 3.5 && cat version.txt a b > app
",
    ),
    ("a/dependencies.txt", "left 1.0 {run}\n"),
    ("a/source.txt", "a, first version\n"),
    ("b/dependencies.txt", "right 1.0 {run}\n"),
    ("b/source.txt", "b, first version\n"),
    ("version.txt", "1 {run}\n"),
    ("buildspec.yml", BUILDSPEC),
];

/// A repository that nobody has pushed to since Stoker came. Its cache mount is not in the application, whose
/// figures are to be those of layers alone.
pub(crate) const DOCS: Files = &[
    (
        "Dockerfile",
        "\
ARG BASE=busybox:1.37
FROM ${BASE}
COPY index.txt /docs/
WORKDIR /docs
RUN --mount=type=cache,id=demo,target=/kept sleep 0.2 && cat index.txt > site && date >> /kept/builds
",
    ),
    ("index.txt", "documentation {run}\n"),
    ("buildspec.yml", BUILDSPEC),
];

/// As short as the README's, but for the base image, which is an argument here, and the cache mount.
const BUILDSPEC: &str = "\
version: 0.2
phases:
  build:
    commands:
      - test -z \"$STOKER_RESTORE_MOUNTS\" || printf %s \"$STOKER_RESTORE_MOUNTS\" | docker buildx bake --file \
      - >/dev/null 2>&1 || true
      - docker buildx build $STOKER_CACHE_FLAGS --build-arg BASE=$BASE_IMAGE -t demo .
      - test -z \"$STOKER_SAVE_MOUNTS\" || printf %s \"$STOKER_SAVE_MOUNTS\" | docker buildx bake --file - \
      >/dev/null 2>&1 || true
";

/// A repository on the local disk, as a forge would hold it.
pub(crate) struct Repository {
    name: &'static str,
    origin: PathBuf,
    clone: PathBuf,
    run: String,
}

impl Repository {
    /// Creates it with one commit on `main`.
    ///
    /// `{run}` in a file becomes the time of this run. Every stage begins with such a file, so that the builder has
    /// never seen any of its steps, whatever it has been used for before.
    pub(crate) fn create(dir: &Path, name: &'static str, files: Files) -> anyhow::Result<Self> {
        let run = jiff::Timestamp::now().to_string();
        let (origin, clone) = (dir.join(format!("{name}.git")), dir.join(name));
        fs::create_dir_all(&clone)?;
        let repository = Self { name, origin, clone, run };
        git(
            dir,
            &["init", "--quiet", "--bare", "--initial-branch=main", &repository.origin.to_string_lossy()],
        )?;
        repository.git(&["init", "--quiet", "--initial-branch=main"])?;
        repository.git(&["remote", "add", "origin", &repository.origin.to_string_lossy()])?;
        for (file, content) in files {
            repository.write(file, content)?;
        }
        repository.commit("First version")?;
        repository.git(&["push", "--quiet", "origin", "main"])?;
        Ok(repository)
    }

    /// Where builds clone from.
    pub(crate) fn origin(&self) -> &Path {
        &self.origin
    }

    /// Its name at the forge, such as `example/app`.
    pub(crate) fn full_name(&self) -> String {
        format!("example/{}", self.name)
    }

    /// The head of a branch.
    pub(crate) fn head(&self, branch: &str) -> anyhow::Result<String> {
        self.git(&["rev-parse", branch])
    }

    /// When a commit was made, in seconds since 1970.
    pub(crate) fn time(&self, commit: &str) -> anyhow::Result<i64> {
        self.git(&["show", "--no-patch", "--format=%ct", commit])?.parse().context("git tells no time")
    }

    /// Creates a branch from another.
    pub(crate) fn branch(&self, name: &str, from: &str) -> anyhow::Result<()> {
        self.git(&["branch", name, from]).map(drop)
    }

    /// Changes a file on a branch, and pushes. Answers the new head.
    pub(crate) fn change(&self, branch: &str, file: &str, content: &str) -> anyhow::Result<String> {
        self.git(&["switch", "--quiet", branch])?;
        self.write(file, content)?;
        self.commit(&format!("Change {file}"))?;
        self.git(&["push", "--quiet", "origin", branch])?;
        self.head(branch)
    }

    /// Merges a branch into main with a merge commit, and pushes. Answers the new head of main.
    pub(crate) fn merge(&self, branch: &str) -> anyhow::Result<String> {
        self.git(&["switch", "--quiet", "main"])?;
        self.git(&["merge", "--quiet", "--no-ff", "-m", &format!("Merge {branch}"), branch])?;
        self.git(&["push", "--quiet", "origin", "main"])?;
        self.head("main")
    }

    /// Deletes a branch at the forge.
    pub(crate) fn delete(&self, branch: &str) -> anyhow::Result<()> {
        self.git(&["push", "--quiet", "origin", "--delete", branch]).map(drop)
    }

    /// The commits of `to` that `from` has not, the oldest first.
    pub(crate) fn commits(&self, from: &str, to: &str) -> anyhow::Result<Vec<String>> {
        let listed = self.git(&["rev-list", "--reverse", &format!("{from}..{to}")])?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    fn write(&self, file: &str, content: &str) -> anyhow::Result<()> {
        let path = self.clone.join(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content.replace("{run}", &self.run))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn commit(&self, message: &str) -> anyhow::Result<()> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", message]).map(drop)
    }

    fn git(&self, args: &[&str]) -> anyhow::Result<String> {
        git(&self.clone, args)
    }
}

/// Runs git without the settings of whoever runs the demo.
fn git(dir: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=Demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false"])
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()
        .context("cannot run `git`; install it")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(
        output.status.success(),
        "`git {}` failed: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}
