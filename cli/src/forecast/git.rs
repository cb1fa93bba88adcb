//! A git repository, read by the program `git`: one process for its commits, one for all objects.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;

use dockerfile_keys::{Entry, Id, Kind, Tree, TreeError, normal};
use sha2::{Digest as _, Sha256};

use crate::problem::Problem;
use crate::text::plain;

/// How many links are followed before they count as a circle.
const LINKS: usize = 10;
/// A Dockerfile is a text that people write: what is larger than this is none.
const LARGEST_FILE: u64 = 64 << 20;

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Its hash, as git writes it.
    pub(crate) id: String,
    pub(crate) tree: Id,
    pub(crate) parents: Vec<String>,
    /// When it was put where it is, in seconds since 1970.
    pub(crate) committed: i64,
    /// When it was first written.
    pub(crate) authored: i64,
    pub(crate) subject: String,
}

/// An object cannot be read.
#[derive(Debug, thiserror::Error)]
enum ObjectError {
    #[error("git stopped answering")]
    Git(#[source] std::io::Error),
    #[error("object {0} is not there; a partial clone has to be able to fetch it")]
    Missing(String),
    #[error("object {0} is no {1}")]
    Kind(String, &'static str),
}

impl From<ObjectError> for TreeError {
    fn from(error: ObjectError) -> Self {
        Self(Box::new(error))
    }
}

/// A repository.
pub(crate) struct Repository {
    directory: PathBuf,
    /// Bytes of an object's id: 20, or 32 with SHA-256.
    id_bytes: usize,
    objects: RefCell<Objects>,
    /// Directories that were read, and those that were only thought up.
    trees: RefCell<HashMap<Id, Rc<[Entry]>>>,
}

struct Objects {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Drop for Objects {
    fn drop(&mut self) {
        // It waits for questions; nobody has any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Repository {
    /// Opens the repository that holds a directory.
    pub(crate) fn open(directory: &Path) -> Result<Self, Problem> {
        let shallow =
            git(directory, &["rev-parse", "--is-shallow-repository"]).map_err(|error| match error {
                GitError::Start(error) => Problem::usage(
                    format!("cannot run git: {error}"),
                    "install git: the history is read with it",
                ),
                GitError::Failed(words) => Problem::usage(
                    format!("{} is in no git repository ({})", directory.display(), plain(&words)),
                    "run it in a checkout, or name one: `forecast --repository`, `why --git`",
                ),
            })?;
        if shallow.trim() == "true" {
            return Err(Problem::usage(
                "the repository is a shallow clone: its history is cut off".to_owned(),
                "fetch the rest with `git fetch --unshallow`, and run it again",
            ));
        }
        // A git that does not know the question knows one format.
        let format = git(directory, &["rev-parse", "--show-object-format"]).unwrap_or_default();
        let id_bytes = if format.trim() == "sha256" { 32 } else { 20 };
        let objects = RefCell::new(Objects::start(directory)?);
        let trees = RefCell::default();
        Ok(Self { directory: directory.to_owned(), id_bytes, objects, trees })
    }

    /// Where it lies.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The branch into which people merge: the one that is named, the remote's, or `main` or `master`.
    pub(super) fn default_branch(&self, named: Option<&str>) -> Result<String, Problem> {
        let exists = |name: &str| {
            let name = format!("{name}^{{commit}}");
            git(&self.directory, &["rev-parse", "--verify", "--quiet", "--end-of-options", &name]).is_ok()
        };
        if let Some(named) = named {
            let found = [named.to_owned(), format!("origin/{named}")].into_iter().find(|name| exists(name));
            return found.ok_or_else(|| {
                Problem::usage(
                    format!("there is no branch {}", plain(named)),
                    "see `git branch --all` for those that there are",
                )
            });
        }
        let remote =
            git(&self.directory, &["symbolic-ref", "--quiet", "--short", "refs/remotes/origin/HEAD"]);
        let remote = remote.ok().map(|name| name.trim().to_owned());
        let usual = ["origin/main", "origin/master", "main", "master", "HEAD"].map(str::to_owned);
        let found = remote.into_iter().chain(usual).find(|name| exists(name));
        found.ok_or_else(|| {
            Problem::usage("the repository has no commit".to_owned(), "name a branch with --branch")
        })
    }

    /// The newest commits of a branch along first parents, the newest first.
    pub(crate) fn first_parents(&self, branch: &str, most: usize) -> Result<Vec<Commit>, Problem> {
        self.log(&["--first-parent", &format!("--max-count={most}"), "--end-of-options", branch])
    }

    /// All commits of a branch that another commit does not have.
    pub(super) fn since(&self, branch: &str, base: Option<&str>) -> Result<Vec<Commit>, Problem> {
        let without = base.map(|base| format!("^{base}"));
        let mut arguments = vec!["--end-of-options", branch];
        arguments.extend(without.as_deref());
        self.log(&arguments)
    }

    /// The message of a commit.
    pub(crate) fn message(&self, commit: &str) -> Option<String> {
        let arguments =
            ["log", "--no-walk", "--no-show-signature", "--format=%B", "--end-of-options", commit];
        git(&self.directory, &arguments).ok()
    }

    /// Where it was cloned from.
    pub(crate) fn origin(&self) -> Option<String> {
        git(&self.directory, &["remote", "get-url", "origin"]).ok().map(|url| url.trim().to_owned())
    }

    fn log(&self, arguments: &[&str]) -> Result<Vec<Commit>, Problem> {
        let format = "--format=%H%x1f%T%x1f%P%x1f%ct%x1f%at%x1f%s";
        let all: Vec<&str> =
            ["log", "-z", "--no-show-signature", format].iter().chain(arguments).copied().collect();
        let text = git(&self.directory, &all).map_err(|error| {
            let words = match error {
                GitError::Start(error) => error.to_string(),
                GitError::Failed(words) => words,
            };
            Problem::failed(format!("git cannot read the history ({})", plain(&words)), "try `git fsck`")
        })?;
        Ok(text.split('\0').filter_map(commit).collect())
    }

    fn name(&self, id: &Id) -> String {
        hex::encode(id.get(..self.id_bytes).unwrap_or(id))
    }

    /// A file by its path in a tree, following links: its id.
    pub(crate) fn file(&self, tree: &Id, path: &str) -> Result<Option<Id>, TreeError> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let Some(entry) = dockerfile_keys::find(self, tree, &path)? else { return Ok(None) };
            match entry.kind {
                Kind::File | Kind::Executable => return Ok(Some(entry.id)),
                Kind::Link => {
                    let to = String::from_utf8_lossy(&self.read(&entry.id)?).into_owned();
                    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                    path = normal(&format!("{directory}/{to}"));
                }
                Kind::Directory | Kind::Submodule => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Calls a function with the path of every file below a directory.
    pub(super) fn files(&self, tree: &Id, path: &str, each: &mut dyn FnMut(&str)) -> Result<(), TreeError> {
        for entry in self.entries(tree)?.iter() {
            let path =
                if path.is_empty() { entry.name.to_string() } else { format!("{path}/{}", entry.name) };
            match entry.kind {
                Kind::Directory => self.files(&entry.id, &path, each)?,
                Kind::Submodule => {}
                Kind::File | Kind::Executable | Kind::Link => each(&path),
            }
        }
        Ok(())
    }

    /// The text of a file.
    pub(super) fn text(&self, file: &Id) -> Result<String, TreeError> {
        Ok(String::from_utf8_lossy(&self.read(file)?).into_owned())
    }

    /// A tree that holds the changes between two others upon a third: what a branch that was behind may have held.
    pub(super) fn graft(&self, base: &Id, from: &Id, to: &Id) -> Result<Id, TreeError> {
        if from == to {
            return Ok(*base);
        }
        if base == from {
            return Ok(*to);
        }
        let by_name = |id: &Id| -> Result<BTreeMap<Box<str>, Entry>, TreeError> {
            Ok(self.entries(id)?.iter().map(|entry| (entry.name.clone(), entry.clone())).collect())
        };
        let (mut result, from, to) = (by_name(base)?, by_name(from)?, by_name(to)?);
        for name in from.keys().chain(to.keys()) {
            let (before, after) = (from.get(name), to.get(name));
            if before == after {
                continue;
            }
            let Some(after) = after else {
                result.remove(name);
                continue;
            };
            let mut entry = after.clone();
            if let (Some(ours), Some(before)) = (result.get(name), before)
                && [ours.kind, before.kind, after.kind].iter().all(|kind| *kind == Kind::Directory)
            {
                entry.id = self.graft(&ours.id, &before.id, &after.id)?;
            }
            result.insert(name.clone(), entry);
        }
        let mut hash = Sha256::new();
        for entry in result.values() {
            hash.update(format!("{:?} {}\0", entry.kind, entry.name));
            hash.update(entry.id);
        }
        let id: Id = hash.finalize().into();
        self.trees.borrow_mut().insert(id, result.into_values().collect());
        Ok(id)
    }

    fn object(&self, id: &Id, wanted: &'static str) -> Result<Vec<u8>, ObjectError> {
        let name = self.name(id);
        let (kind, content) = self.objects.borrow_mut().ask(&name)?;
        if kind == wanted { Ok(content) } else { Err(ObjectError::Kind(name, wanted)) }
    }
}

impl Tree for Repository {
    fn entries(&self, directory: &Id) -> Result<Rc<[Entry]>, TreeError> {
        if let Some(known) = self.trees.borrow().get(directory) {
            return Ok(Rc::clone(known));
        }
        let content = self.object(directory, "tree")?;
        let entries: Rc<[Entry]> = Entries { rest: &content, id_bytes: self.id_bytes }.collect();
        self.trees.borrow_mut().insert(*directory, Rc::clone(&entries));
        Ok(entries)
    }

    fn read(&self, file: &Id) -> Result<Vec<u8>, TreeError> {
        Ok(self.object(file, "blob")?)
    }
}

/// The entries of a tree object: mode, name and id, one after the other.
struct Entries<'a> {
    rest: &'a [u8],
    id_bytes: usize,
}

impl Iterator for Entries<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let space = self.rest.iter().position(|byte| *byte == b' ')?;
        let (mode, rest) = self.rest.split_at(space);
        let end = rest.iter().position(|byte| *byte == 0)?;
        let (name, rest) = rest.split_at(end);
        let (id, rest) = rest.get(1..)?.split_at_checked(self.id_bytes)?;
        self.rest = rest;
        let kind = match mode {
            b"40000" => Kind::Directory,
            b"100755" => Kind::Executable,
            b"120000" => Kind::Link,
            b"160000" => Kind::Submodule,
            _ => Kind::File,
        };
        let name = String::from_utf8_lossy(name.get(1..)?).into_owned().into_boxed_str();
        Some(Entry { name, kind, id: filled(id)? })
    }
}

impl Objects {
    fn start(directory: &Path) -> Result<Self, Problem> {
        let problem =
            |error: std::io::Error| Problem::failed(format!("cannot run git: {error}"), "try again");
        let mut process = Command::new("git")
            .arg("-C")
            .arg(directory)
            .args(["cat-file", "--batch"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(problem)?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(questions), Some(answers)) => {
                Ok(Self { process, questions, answers: BufReader::with_capacity(1 << 16, answers) })
            }
            _ => Err(problem(std::io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// An object's kind and content.
    fn ask(&mut self, name: &str) -> Result<(String, Vec<u8>), ObjectError> {
        let missing = || ObjectError::Missing(name.to_owned());
        writeln!(self.questions, "{name}").and_then(|()| self.questions.flush()).map_err(ObjectError::Git)?;
        let mut header = String::new();
        self.answers.read_line(&mut header).map_err(ObjectError::Git)?;
        let mut words = header.split_whitespace().skip(1);
        let kind = words.next().filter(|kind| *kind != "missing").ok_or_else(missing)?.to_owned();
        let size: u64 = words.next().and_then(|size| size.parse().ok()).ok_or_else(missing)?;
        if size > LARGEST_FILE {
            return Err(ObjectError::Kind(name.to_owned(), "file of a sensible size"));
        }
        let mut content = Vec::new();
        // A newline follows the content.
        let read =
            self.answers.by_ref().take(size + 1).read_to_end(&mut content).map_err(ObjectError::Git)?;
        if read as u64 != size + 1 {
            return Err(missing());
        }
        content.pop();
        Ok((kind, content))
    }
}

enum GitError {
    Start(std::io::Error),
    Failed(String),
}

fn git(directory: &Path, arguments: &[&str]) -> Result<String, GitError> {
    let output = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(GitError::Start)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(GitError::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// Reads a line of the log.
fn commit(line: &str) -> Option<Commit> {
    let mut fields = line.splitn(6, '\u{1f}');
    let id = fields.next()?.trim().to_owned();
    let tree = filled(&hex::decode(fields.next()?).ok()?)?;
    let parents = fields.next()?.split_whitespace().map(str::to_owned).collect();
    let committed = fields.next()?.parse().ok()?;
    let authored = fields.next()?.parse().ok()?;
    Some(Commit { id, tree, parents, committed, authored, subject: fields.next()?.to_owned() })
}

fn filled(bytes: &[u8]) -> Option<Id> {
    let mut id = Id::default();
    id.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(id)
}
