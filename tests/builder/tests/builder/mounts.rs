//! Cache mounts on the real builder: what is restored is what was saved, whatever goes wrong a build goes on,
//! and what carrying costs a Rust project beside the other ways.

mod project;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use builder::Random;
use stoker_core::build_inputs::{BuildInputs, Part, Reads, variable};
use stoker_core::mounts::MountManifest;
use stoker_core::mounts::input::MountInput;
use stoker_core::names::{Digest, Line, ProjectName, Tag};
use stoker_core::policy::{Policy, Project};

pub(crate) use self::project::rust_project;
use crate::again::{Group, ran};
use crate::engine::{Engine, Options, building};
use crate::registry::Registry;

/// The repository of [`Registry::reference`].
const REPOSITORY: &str = "stoker/builder";

/// A project with one mount, and where its images are.
struct Carrier<'a> {
    project: Project,
    registry: &'a Registry,
    dir: PathBuf,
}

impl<'a> Carrier<'a> {
    fn new(
        token: &str,
        id: &str,
        mount: &str,
        engine: &Engine,
        registry: &'a Registry,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let text = format!(
            "version: 1\nprojects: [{{name: {token}, repository: github.com/example/app, cache-repository: \
             {REPOSITORY}, \
             targets: [{{mounts: [{{id: {id}{mount}}}]}}]}}]"
        );
        let policy = Policy::parse("policy", &text)?;
        let mut project = policy.project(&ProjectName::new(token)?).context("no project")?;
        project.tools_image.clone_from(&engine.base_image);
        std::fs::create_dir_all(dir)?;
        Ok(Self { project, registry, dir: dir.to_owned() })
    }

    /// Runs what the buildspec's two lines would run.
    fn bake(
        &self,
        name: &str,
        image: Option<&Digest>,
        extends: bool,
        save: Option<&str>,
    ) -> anyhow::Result<Output> {
        let file = self.file(name, image, extends, save)?;
        let mut command = Command::new("docker");
        command.args(["buildx", "bake", "--progress=plain", "--file", "-"]).current_dir(&self.dir);
        let _builds = building();
        let mut bake = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        std::io::Write::write_all(&mut bake.stdin.take().context("no input")?, file.as_bytes())?;
        Ok(bake.wait_with_output()?)
    }

    fn file(
        &self,
        name: &str,
        image: Option<&Digest>,
        extends: bool,
        save: Option<&str>,
    ) -> anyhow::Result<String> {
        let target = self.project.targets[0].clone();
        let tag = |key: &str| Tag::export(&target.mounts[0].scope, key);
        let input = MountInput {
            image: image.cloned(),
            extends,
            is_carried: true,
            save: save.map(tag),
            note: String::new(),
        };
        // It is what tells one build's from another's.
        let export = Some(Tag::export(&target.scope, &format!("{}", fresh())));
        let reads = Reads { mounts: vec![input], ..Reads::default() };
        let inputs = BuildInputs {
            line: Line::Main,
            commit: None,
            reason: "push".to_owned(),
            parts: vec![Part { target, reads, export }],
            merged: Vec::new(),
            pushed_at: None,
            refresh: false,
            bases: None,
        };
        let environment: BTreeMap<String, String> =
            inputs.environment(self.registry.host(), &self.project).into_iter().collect();
        environment.get(name).cloned().with_context(|| format!("no {name}"))
    }

    fn restore(&self, image: &Digest) -> anyhow::Result<()> {
        succeeded("restoring", &self.bake(variable::RESTORE_MOUNTS, Some(image), false, None)?)
    }

    /// Saves the mount, and answers the image's digest and its manifest.
    fn save(&self, image: Option<&Digest>, key: &str) -> anyhow::Result<(Digest, MountManifest)> {
        let extends = image.is_some();
        succeeded("saving", &self.bake(variable::SAVE_MOUNTS, image, extends, Some(key))?)?;
        self.saved(key)
    }

    fn saved(&self, key: &str) -> anyhow::Result<(Digest, MountManifest)> {
        let tag = Tag::export(&self.project.targets[0].mounts[0].scope, key);
        let manifest = self.registry.manifest(tag.as_str())?;
        let parsed = MountManifest::parse(&manifest).map_err(anyhow::Error::msg)?;
        Ok((Digest::of(&manifest), parsed))
    }

    /// The same carrier of a mount of another id: a new builder has none of the first's.
    fn called(&self, id: &str) -> anyhow::Result<Self> {
        let mut project = self.project.clone();
        project.targets[0].mounts[0].id = stoker_core::names::MountId::new(id)?;
        Ok(Self { project, registry: self.registry, dir: self.dir.clone() })
    }
}

/// A number that no call before has answered.
fn fresh() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn succeeded(what: &str, output: &Output) -> anyhow::Result<()> {
    ensure!(output.status.success(), "{what} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn token_of(seed: u64, registry: &Registry) -> String {
    format!("m{:010x}{}", Random::new(seed).number() >> 24, registry.name.replace('-', ""))
}

/// Runs a command in a mount, and answers what it prints between two marks.
fn in_mount(engine: &Engine, dir: &Path, token: &str, mount: &str, script: &str) -> anyhow::Result<String> {
    let context = dir.join(format!("run-{}", fresh()));
    std::fs::create_dir_all(&context)?;
    // Two scripts that are alike are still two builds.
    let dockerfile = format!(
        "FROM {} AS run\nRUN --mount=type=cache,{mount},target=/mount : {token} {}; cd /mount; ({script}) >/out\n\
         FROM scratch\nCOPY --from=run /out /out\n",
        engine.base_image,
        context.display()
    );
    std::fs::write(context.join("Dockerfile"), dockerfile)?;
    let output = context.join("result");
    let mut command = Command::new("docker");
    command.args(["buildx", "build", "--quiet", "--provenance=false", "--output"]);
    command.arg(format!("type=local,dest={}", output.display()));
    let builds = building();
    let built = command.arg(&context).stdin(Stdio::null()).output()?;
    drop(builds);
    succeeded("a build", &built)?;
    Ok(std::fs::read_to_string(output.join("out"))?)
}

/// Everything of a tree that a restored mount must have as it was.
const LIST: &str = "find . -mindepth 1 ! -type l -print0 | sort -z | xargs -0 -r stat -c '%n %f %u:%g'; \
     find . -type l -exec readlink {} \\;; find . -type f -print0 | sort -z | xargs -0 -r stat -c '%n %s %Y'; \
     find . -type f -print0 | sort -z | xargs -0 -r md5sum";

/// What is saved and restored, whole and upon what was there, and what goes wrong.
pub(crate) fn carried<'a>(
    seed: u64,
    engine: &'a Engine,
    registry: &'a Registry,
    dir: &Path,
) -> anyhow::Result<(String, Option<Group<'a>>)> {
    let token = token_of(seed, registry);
    // A run that failed half way has left mounts.
    Engine::free(&[&token], &BTreeSet::new())?;
    let first = Carrier::new(&token, &token, ", options: 'uid=7,gid=8', limit: 4MB", engine, registry, dir)?;
    let second = first.called(&format!("{token}-second"))?;
    let of = |carrier: &Carrier<'_>| format!("id={},uid=7,gid=8", carrier.project.targets[0].mounts[0].id);
    let run = |carrier: &Carrier<'_>, script: &str| in_mount(engine, dir, &token, &of(carrier), script);
    run(
        &first,
        "mkdir -p 'a b/c' empty; echo one >'a b/c/one'; echo two >'a b/two|x'; echo three >three; ln -s three link; \
         chown -R 7:9 'a b'; chmod 750 'a b/c'; chmod 4711 three; touch -d '2001-02-03 04:05:06' 'a b/c/one'; \
         mkfifo pipe",
    )?;
    let (whole, manifest) = first.save(None, "whole")?;
    ensure!(manifest.layers().count() == 1, "a first save has one layer");
    second.restore(&whole)?;
    let (was, restored) = (run(&first, LIST)?, run(&second, LIST)?);
    ensure!(was == restored && was.contains("./a b/c/one"), "restored otherwise:\n{was}\n{restored}");

    run(
        &second,
        "rm three; rm -r empty; mkdir -p new/of; echo 4 >new/of/four; chown -R 5:6 new; chmod 700 new; echo uno \
         >'a b/c/one'; \
         rm 'a b/two|x'; mkdir 'a b/two|x'; echo in >'a b/two|x/in'; head -c 100000 /dev/urandom >large",
    )?;
    let (delta, manifest) = second.save(Some(&whole), "delta")?;
    ensure!(manifest.layers().count() == 2, "what is saved builds upon what was restored");
    let third = first.called(&format!("{token}-third"))?;
    third.restore(&delta)?;
    let (was, restored) = (run(&second, LIST)?, run(&third, LIST)?);
    let differ: Vec<&str> =
        restored.lines().filter(|line| !was.lines().any(|known| known == *line)).collect();
    // A folder that went stays empty: no tool minds, and the next whole save drops it.
    ensure!(differ.iter().all(|line| line.starts_with("./empty ")), "restored otherwise: {differ:#?}\n{was}");
    ensure!(
        was.lines().all(|line| restored.lines().any(|known| known == line)),
        "not restored:\n{was}\n{restored}"
    );

    // A mount that holds something is newer than anything that could be restored.
    run(&third, "rm -rf ./*; echo mine >own")?;
    third.restore(&delta)?;
    ensure!(run(&third, "ls")? == "own\n", "a mount that was not empty is not touched");

    // Two builds that save at once have a tag each.
    thread::scope(|scope| {
        let saves =
            ["left", "right"].map(|key| scope.spawn(|| third.save(None, key).map(|(digest, _)| digest)));
        saves
            .into_iter()
            .try_for_each(|save| save.join().map_err(|_| anyhow::anyhow!("a thread died"))?.map(drop))
    })?;

    // What goes wrong leaves no image and no part of one, and a build without the mount goes on.
    run(&third, "head -c 5000000 /dev/urandom >too-large")?;
    let over = third.bake(variable::SAVE_MOUNTS, None, false, Some("over"))?;
    let said = String::from_utf8_lossy(&over.stderr).into_owned();
    ensure!(!over.status.success() && said.contains("over its limit of 3906 KiB"), "saved too much: {said}");
    ensure!(third.saved("over").is_err(), "an image of a mount over its limit");
    let missing = first.called(&format!("{token}-missing"))?;
    let lost = missing.bake(variable::RESTORE_MOUNTS, Some(&Digest::of(b"nothing")), false, None)?;
    ensure!(!lost.status.success() && run(&missing, "ls -A")?.is_empty(), "restored from nothing");
    stopped_half_way(&first, &token, engine, dir)?;
    let keys = steps_keep_their_keys(&first, &token, engine, registry, dir, &whole)?;
    project::remove_images(registry)?;
    Engine::free(&[&token], &BTreeSet::new())?;
    Ok((format!("restored as saved, whole and upon another; {keys} steps keep their keys"), None))
}

/// A save and a restore that are stopped: the one leaves no tag, the other nothing in the mount.
fn stopped_half_way(first: &Carrier<'_>, token: &str, engine: &Engine, dir: &Path) -> anyhow::Result<()> {
    let mut large = first.called(&format!("{token}-large"))?;
    large.project.targets[0].mounts[0].limit = 1 << 30;
    let mount = format!("id={token}-large,uid=7,gid=8");
    in_mount(engine, dir, token, &mount, "head -c 60000000 /dev/urandom >large; head -c 9 large >small")?;
    let (image, _) = large.save(None, "stopped-whole")?;
    for (name, wait) in
        [(variable::SAVE_MOUNTS, 500), (variable::RESTORE_MOUNTS, 300), (variable::RESTORE_MOUNTS, 700)]
    {
        let id = format!("{token}-stopped-{}", fresh());
        let stopped = large.called(if name == variable::SAVE_MOUNTS {
            large.project.targets[0].mounts[0].id.as_str()
        } else {
            &id
        })?;
        let save = (name == variable::SAVE_MOUNTS).then_some("stopped");
        let file = stopped.file(name, Some(&image), false, save)?;
        let mut command = Command::new("docker");
        command.args(["buildx", "bake", "--progress=plain", "--file", "-"]).current_dir(&stopped.dir);
        let builds = building();
        let mut bake = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::io::Write::write_all(&mut bake.stdin.take().context("no input")?, file.as_bytes())?;
        thread::sleep(Duration::from_millis(wait));
        bake.kill()?;
        bake.wait()?;
        // A second one would wait for whoever waits for this one.
        drop(builds);
        if save.is_some() {
            continue;
        }
        let left = in_mount(engine, dir, token, &format!("id={id},uid=7,gid=8"), "ls")?;
        ensure!(["", "large\nsmall\n"].contains(&left.as_str()), "a part of the mount is left: {left}");
    }
    Ok(())
}

/// What a build exports with the mount restored and without: the same steps by the same keys.
fn steps_keep_their_keys(
    first: &Carrier<'_>,
    token: &str,
    engine: &Engine,
    registry: &Registry,
    dir: &Path,
    image: &Digest,
) -> anyhow::Result<usize> {
    let keyed = first.called(&format!("{token}-keyed"))?;
    let context = dir.join("keyed");
    std::fs::create_dir_all(&context)?;
    std::fs::write(context.join("file"), token)?;
    std::fs::write(
        context.join("Dockerfile"),
        format!(
            "FROM {}\nCOPY file /{token}\nRUN --mount=type=cache,id={token}-keyed,uid=7,gid=8,target=/mount cp \
             /{token} /{token}-2\n\
             RUN cp /{token}-2 /{token}-3\n",
            engine.base_image
        ),
    )?;
    let tag = format!("{token}-keyed-without");
    let export = Some(registry.reference(&tag));
    let without = Engine::build(&context, &Options { export, ..Options::default() })?;
    ensure!(ran(&without).len() == 3, "three steps run:\n{}", without.log);
    let blobs = registry.read(&tag)?.blobs().map(|blob| blob.digest.to_string()).collect();
    Engine::free(&[&format!("{token}-2")], &blobs)?;
    keyed.restore(image)?;
    let imports = [registry.reference(&tag)];
    let with = Engine::build(&context, &Options { imports: &imports, ..Options::default() })?;
    ensure!(ran(&with).is_empty(), "with the mount restored other steps are looked for:\n{}", with.log);
    ensure!(with.files == without.files, "other files");
    Ok(ran(&without).len())
}

/// How long something takes.
fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, f64)> {
    let started = Instant::now();
    let result = work()?;
    Ok((result, started.elapsed().as_secs_f64()))
}
