//! The Docker engine: builds, and freeing its builder of what some of them left, or of all.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use cache_misses::{Log, Steps};
use stoker_core::names::Digest;
use stoker_local::builder::{self, Record};

const LOCAL_BASE_IMAGE: &str = "localhost/base:1";
const BASE_IMAGE: &str = "busybox:1.37";

/// The engine's version, `28.5` say, from which on the tests are told to run.
const LEAST_ENGINE: &str = "STOKER_TEST_ENGINE";
/// A shell command that ends with an engine whose builder has no state at all.
const NEW_BUILDER: &str = "STOKER_TEST_NEW_BUILDER";

/// What is said of a build that failed, before its log.
pub(crate) const FAILED: &str = "the build failed";

/// Held by builds together, and by what removes records alone: to collect its garbage while a build ends takes from
/// the build what it has just pulled, and it fails with "not found".
static RECORDS: RwLock<()> = RwLock::new(());

/// An engine that can export registry caches.
pub(crate) struct Engine {
    pub(crate) base_image: String,
    /// What it and its client say of themselves.
    pub(crate) versions: String,
    new_builder: Option<String>,
    /// Images that tests made; they go in the end.
    made: Mutex<Vec<String>>,
}

/// What a build is told besides its source.
#[derive(Default)]
pub(crate) struct Options<'a> {
    pub(crate) imports: &'a [String],
    pub(crate) export: Option<String>,
    pub(crate) platforms: Option<&'a str>,
    /// As they are.
    pub(crate) flags: &'a str,
    /// The log tells of each of a build's operations in JSON.
    pub(crate) as_json: bool,
}

/// What a build did.
pub(crate) struct Built {
    pub(crate) log: String,
    pub(crate) steps: Steps,
    /// Each path with what is there: a digest, a link's target, a mode.
    pub(crate) files: BTreeMap<String, String>,
}

impl Engine {
    /// The engine that `docker` reaches, or why it is none.
    pub(crate) fn find() -> Result<Self, String> {
        let info = docker(&["info", "--format", "{{.ServerVersion}} {{.DriverStatus}}"]);
        let Some(info) = info else { return Err("no Docker engine answers".to_owned()) };
        if !info.contains("io.containerd.snapshotter") {
            return Err("Docker's containerd image store is off".to_owned());
        }
        let Some(buildx) = docker(&["buildx", "version"]) else {
            return Err("Docker has no buildx".to_owned());
        };
        let engine = info.split(' ').next().unwrap_or_default();
        if let Ok(least) = env::var(LEAST_ENGINE)
            && version(engine) < version(&least)
        {
            return Err(format!("the engine is {engine}, and {LEAST_ENGINE} asks for {least}"));
        }
        let buildx = buildx.split(' ').nth(1).unwrap_or_default();
        let found = |base_image: &str| Self {
            base_image: base_image.to_owned(),
            versions: format!("Docker {engine}, buildx {buildx}"),
            new_builder: env::var(NEW_BUILDER).ok(),
            made: Mutex::default(),
        };
        let has = |image| docker(&["image", "inspect", image]).is_some();
        if has(LOCAL_BASE_IMAGE) {
            return Ok(found(LOCAL_BASE_IMAGE));
        }
        if has(BASE_IMAGE) || docker(&["pull", "--quiet", BASE_IMAGE]).is_some() {
            return Ok(found(BASE_IMAGE));
        }
        Err(format!("{BASE_IMAGE} cannot be pulled"))
    }

    /// A base image of a test's own. On a builder that built from several caches on one base image, BuildKit
    /// 0.25 at times finds nothing of any of them from a certain build on. In CodeBuild each build has a
    /// builder of its own.
    pub(crate) fn own_base_image(&self, token: &str, dir: &Path) -> anyhow::Result<String> {
        self.own_base_image_with(token, dir, &[], "")
    }

    /// The same with these files in its context, and these instructions.
    pub(crate) fn own_base_image_with(
        &self,
        token: &str,
        dir: &Path,
        files: &[(&str, &str)],
        more: &str,
    ) -> anyhow::Result<String> {
        let context = dir.join("base");
        std::fs::create_dir_all(&context)?;
        for (name, content) in files.iter().chain([&("token", token)]) {
            std::fs::write(context.join(name), content)?;
        }
        let dockerfile = format!("FROM {}\nCOPY token /token\n{more}", self.base_image);
        std::fs::write(context.join("Dockerfile"), dockerfile)?;
        self.image_of(token, &context)
    }

    /// An image of a test's own, of a directory with a Dockerfile.
    pub(crate) fn image_of(&self, token: &str, context: &Path) -> anyhow::Result<String> {
        let image = format!("localhost/stoker-test:{token}");
        let mut command = Command::new("docker");
        command.args(["buildx", "build", "--quiet", "--provenance=false", "--load", "--tag", &image]);
        let built = without_removals(command.arg(context).stdin(Stdio::null()))?;
        ensure!(built.status.success(), "{image}: {}", String::from_utf8_lossy(&built.stderr));
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(image.clone());
        Ok(image)
    }

    /// Whether the builder can be made one without any state. What is left after the records of a build were removed
    /// are its keys, which can serve a later build or hide from it what it imports.
    pub(crate) fn renews(&self) -> bool {
        self.new_builder.is_some()
    }

    /// Frees the builder of all that it has; where nobody said how, of what these builds left.
    pub(crate) fn renew(&self, tokens: &[&str], blobs: &BTreeSet<String>) -> anyhow::Result<()> {
        let Some(command) = &self.new_builder else { return Self::free(tokens, blobs) };
        let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{NEW_BUILDER} failed: {said}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let left = runtime.block_on(builder::records())?;
        ensure!(left.is_empty(), "{NEW_BUILDER} left {} records in the builder", left.len());
        Ok(())
    }

    /// Builds what is in a directory.
    pub(crate) fn build(context: &Path, options: &Options<'_>) -> anyhow::Result<Built> {
        let output = context.with_extension("out");
        if output.exists() {
            std::fs::remove_dir_all(&output)?;
        }
        let mut command = Command::new("docker");
        let progress = if options.as_json { "--progress=rawjson" } else { "--progress=plain" };
        command.args(["buildx", "build", progress, "--provenance=false", "--output"]);
        // The value is CSV, and a path may hold a comma.
        command.arg(format!("type=local,\"dest={}\"", output.display()));
        for import in options.imports {
            command.args(["--cache-from", &format!("type=registry,ref={import}")]);
        }
        if let Some(export) = &options.export {
            // Layers that are not compressed can be searched for the marks of steps.
            let to = format!(
                "type=registry,ref={export},mode=max,image-manifest=true,oci-mediatypes=true,compression=uncompressed"
            );
            command.args(["--cache-to", &to]);
        }
        if let Some(platforms) = options.platforms {
            command.args(["--platform", platforms]);
        }
        command.args(options.flags.split_whitespace());
        let built = without_removals(command.arg(context).stdin(Stdio::null()))?;
        let log = String::from_utf8_lossy(&built.stderr).into_owned();
        // What is wrong comes last, and JSON is long.
        let shown = if options.as_json { log.rsplit("\n}\n").next().unwrap_or_default() } else { &log };
        ensure!(built.status.success(), "{FAILED}:\n{shown}");
        let mut files = BTreeMap::new();
        read_files(&output, &output, &mut files)?;
        std::fs::remove_dir_all(&output)?;
        Ok(Built { steps: Log::read(&log).steps(), log, files })
    }

    /// Removes what builds left in the builder: the steps that name one of these tokens, these blobs, and what rests on
    /// them.
    pub(crate) fn free(tokens: &[&str], blobs: &BTreeSet<String>) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _alone = RECORDS.write().unwrap_or_else(PoisonError::into_inner);
        for attempt in 0..10 {
            let ids = own(&runtime.block_on(builder::records())?, tokens, blobs);
            if ids.is_empty() || runtime.block_on(builder::remove(&ids))?.is_empty() {
                return Ok(());
            }
            // A build that has just ended may still hold its results.
            thread::sleep(Duration::from_millis(100 << attempt.min(4)));
        }
        bail!("the builder keeps records of {}", tokens.join(", "))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let made = self.made.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !made.is_empty() {
            let made: Vec<&str> = made.iter().map(String::as_str).collect();
            docker(&[&["image", "rm", "--force"], &made[..]].concat());
        }
    }
}

/// Runs a build while nothing is [removed](Engine::free) from the builder: what is removed under it is not found.
pub(crate) fn without_removals(build: &mut Command) -> anyhow::Result<Output> {
    let _records = building();
    build.output().context("cannot run docker")
}

/// While this is held nothing is removed.
pub(crate) fn building() -> RwLockReadGuard<'static, ()> {
    RECORDS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a build failed because the engine could not start a container, which says nothing of caches.
pub(crate) fn could_not_start(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains(builder::STILLBORN)
}

/// The first two numbers of a version.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.trim_start_matches('v').split('.').map(|part| part.parse().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

fn own(records: &[Record], tokens: &[&str], blobs: &BTreeSet<String>) -> BTreeSet<String> {
    let mut own = BTreeSet::new();
    loop {
        let before = own.len();
        for record in records {
            let is_imported = || record.description.split_whitespace().any(|word| blobs.contains(word));
            if tokens.iter().any(|token| record.description.contains(token))
                || is_imported()
                || record.parents.iter().any(|parent| own.contains(parent))
            {
                own.insert(record.id.clone());
            }
        }
        if own.len() == before {
            return own;
        }
    }
}

impl Built {
    /// Whether BuildKit had nothing to say against any cache.
    pub(crate) fn imported_all(&self) -> bool {
        Log::read(&self.log).errors().is_empty() && !self.log.contains("too large")
    }
}

fn read_files(root: &Path, dir: &Path, files: &mut BTreeMap<String, String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = path.symlink_metadata()?;
        let what = if metadata.is_symlink() {
            format!("link to {}", path.read_link()?.display())
        } else if metadata.is_dir() {
            read_files(root, &path, files)?;
            format!("directory {:o}", metadata.permissions().mode())
        } else {
            format!("{} {:o}", Digest::of(&std::fs::read(&path)?), metadata.permissions().mode())
        };
        files.insert(path.strip_prefix(root)?.to_string_lossy().into_owned(), what);
    }
    Ok(())
}

fn docker(arguments: &[&str]) -> Option<String> {
    let output = Command::new("docker").args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
