//! What carrying a mount costs and spares a Rust project, whose crates come out of the machine's own cargo:
//! main's build after a change of the source, on a new builder with the mount restored and saved, beside the
//! same build on a builder with its disk, on one with layers only, and with the mount copied out and in by
//! way of the build's machine.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context as _, ensure};

use super::{Carrier, succeeded, timed, token_of};
use crate::again::Group;
use crate::engine::{Engine, Options, building};
use crate::registry::Registry;

/// None needs a linker: there is no script that builds, and no macro that is a program.
const MANIFEST: &str = r#"[package]
name = "app"
version = "0.1.0"
edition = "2024"
[dependencies]
clap_builder = { version = "4", default-features = false, features = ["std", "help", "usage", "error-context"] }
encoding_rs = "0.8"
hashbrown = { version = "0.17", default-features = false }
jiff = { version = "1", default-features = false, features = ["std"] }
memchr = "2"
regex-syntax = "0.8"
"#;
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Tells it, and what was compiled has to be what a disk would have spared.
pub(crate) fn rust_project<'a>(
    seed: u64,
    engine: &'a Engine,
    registry: &'a Registry,
    dir: &Path,
) -> anyhow::Result<(String, Option<Group<'a>>)> {
    std::fs::create_dir_all(dir)?;
    let token = format!("r{}", token_of(seed, registry));
    Engine::free(&[&token], &BTreeSet::new())?;
    let source = dir.join("source");
    let Some(image) = toolchain(engine, &token, &source, dir)? else {
        return Ok((
            "SKIPPED: there is no Rust of this machine's that could be put into an image".to_owned(),
            None,
        ));
    };
    let project = Project { image, token: token.clone(), source };
    let carrier = Carrier::new(&token, &format!("{token}-disk"), ", limit: 2GB", engine, registry, dir)?;

    // Main's first build, on a builder that keeps its disk from now on.
    let disk = format!("{token}-disk");
    let (all, cold) = project.build(&disk, 1)?;
    let ((whole, manifest), first_save) = timed(|| carrier.save(None, "first"))?;
    let archive = dir.join("archive");
    project.copy_out(engine, &disk, &archive)?;
    let bytes = bytes_of(&archive)?;

    let (by_disk, disk_seconds) = project.build(&disk, 2)?;
    // What was pushed is known to the builder; a new one has to pull it.
    let forget = || Engine::free(&[&token, registry.host()], &BTreeSet::new());
    remove_images(registry)?;
    forget()?;
    let fresh = carrier.called(&format!("{token}-new"))?;
    let ((), restore) = timed(|| fresh.restore(&whole))?;
    // Which mount it is, is no part of a step's key, so each build has a source of its own.
    let (carried, build_seconds) = project.build(&format!("{token}-new"), 3)?;
    let ((_, delta), save) = timed(|| fresh.save(Some(&whole), "second"))?;
    let (by_layers, layers_seconds) = project.build(&format!("{token}-layers"), 4)?;
    let ((), copy_in) = timed(|| project.copy_in(engine, &format!("{token}-copied"), &archive))?;
    let (copied, _) = project.build(&format!("{token}-copied"), 5)?;
    let ((), copy_out) = timed(|| project.copy_out(engine, &format!("{token}-copied"), &dir.join("out")))?;
    remove_images(registry)?;
    forget()?;

    ensure!(
        all > 5 && by_layers == all,
        "without a mount all of {all} crates are compiled, and were {by_layers}"
    );
    ensure!(
        (by_disk, carried, copied) == (1, 1, 1),
        "only what changed is compiled: {by_disk} with the disk, {carried} restored, {copied} copied"
    );
    ensure!(
        delta.layers().count() == 2 && delta.bytes() < manifest.bytes() * 3 / 2,
        "what changed alone is saved"
    );
    let carrying = restore + save;
    Ok((
        format!(
            "a mount of {} MB: with it restored and saved main's build takes {:.2} of the time with the disk \
             and {:.2} of that \
             with layers only; copying it takes {:.1} times as long as carrying it (restore {restore:.1} s, build \
             {build_seconds:.1}, save {save:.1}, first save {first_save:.1}; disk {disk_seconds:.1}; layers \
             {layers_seconds:.1}, cold {cold:.1}; copied in {copy_in:.1} and out {copy_out:.1}); pushed {:.1} \
             of {:.1} MB",
            bytes / 1_000_000,
            (carrying + build_seconds) / disk_seconds,
            (carrying + build_seconds) / layers_seconds,
            (copy_in + copy_out) / carrying,
            megabytes(delta.bytes().saturating_sub(manifest.bytes())),
            megabytes(delta.bytes()),
        ),
        None,
    ))
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

struct Project {
    image: String,
    token: String,
    source: PathBuf,
}

impl Project {
    /// Builds a version of the source with a mount: how many crates were compiled, and how long it took.
    fn build(&self, mount: &str, version: u32) -> anyhow::Result<(usize, f64)> {
        let Self { image, token, source } = self;
        // Cargo goes by the times of files, and the builder has those of an earlier run for content that it knows.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
        let text = format!("pub fn version() -> (u32, u128) {{\n    ({version}, {now})\n}}\n");
        std::fs::write(source.join("src/lib.rs"), text)?;
        let dockerfile = format!(
            "FROM {image} AS build\nWORKDIR /src\nCOPY Cargo.toml Cargo.lock /src/\nCOPY src /src/src\n\
             RUN --mount=type=cache,id={mount},target=/src/target : {token}; cargo build --offline --locked --lib && \
             cp target/debug/libapp.rlib /out\nFROM scratch\nCOPY --from=build /out /{token}\n"
        );
        std::fs::write(source.join("Dockerfile"), dockerfile)?;
        let (built, seconds) = timed(|| Engine::build(source, &Options::default()))?;
        Ok((built.log.matches("   Compiling ").count(), seconds))
    }

    /// From a folder of the build's machine into a mount, as actions for other CIs do it.
    fn copy_in(&self, engine: &Engine, mount: &str, from: &Path) -> anyhow::Result<()> {
        let dockerfile = format!(
            "FROM {}\nRUN --mount=type=cache,id={mount},target=/m --mount=type=bind,source=.,target=/from : {}; \
             cp -a /from/. /m/\n",
            engine.base_image, self.token
        );
        let file = from.with_extension("in.Dockerfile");
        std::fs::write(&file, dockerfile)?;
        let mut command = Command::new("docker");
        command.args([
            "buildx",
            "build",
            "--quiet",
            "--provenance=false",
            "--output=type=cacheonly",
            "--file",
        ]);
        run(command.arg(file).arg(from))
    }

    /// And back: into an image, which is loaded and copied out of.
    fn copy_out(&self, engine: &Engine, mount: &str, to: &Path) -> anyhow::Result<()> {
        let empty = to.with_extension("empty");
        std::fs::create_dir_all(&empty)?;
        std::fs::create_dir_all(to)?;
        let dockerfile = format!(
            "FROM {}\nRUN --mount=type=cache,id={mount},target=/m : {} {}; mkdir /out && cp -a /m/. /out/\n",
            engine.base_image,
            self.token,
            to.display()
        );
        std::fs::write(empty.join("Dockerfile"), dockerfile)?;
        let name = format!("stoker-{}", self.token);
        let image = format!("localhost/{name}:out");
        let mut command = Command::new("docker");
        command.args(["buildx", "build", "--quiet", "--provenance=false", "--load", "--tag", &image]);
        run(command.arg(&empty))?;
        run(Command::new("docker").args(["create", "--name", &name, &image, "/bin/true"]))?;
        let copied = run(Command::new("docker").args(["cp", &format!("{name}:/out/.")]).arg(to));
        run(Command::new("docker").args(["rm", "--force", &name]))?;
        run(Command::new("docker").args(["image", "rm", "--force", &image]))?;
        copied
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let _builds = building();
    let output = command.stdin(Stdio::null()).output().context("cannot run docker")?;
    succeeded(&format!("{command:?}"), &output)
}

/// Engines with an image store keep what they pushed.
pub(super) fn remove_images(registry: &Registry) -> anyhow::Result<()> {
    let listed =
        Command::new("docker").args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let own: Vec<&str> = listed.lines().filter(|image| image.starts_with(registry.host())).collect();
    if own.is_empty() {
        Ok(())
    } else {
        run(Command::new("docker").args(["image", "rm", "--force"]).args(own))
    }
}

fn bytes_of(dir: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_of(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

/// An image with the machine's compiler and the crates that the source needs; writes the source, too. `None`
/// where the machine has none that could be put there.
fn toolchain(engine: &Engine, token: &str, source: &Path, dir: &Path) -> anyhow::Result<Option<String>> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let Ok(sysroot) = sysroot else { return Ok(None) };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let Some(cargo_home) = cargo_home else { return Ok(None) };
    let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    if !libraries.is_dir() || !sysroot.join("bin/cargo").is_file() {
        return Ok(None);
    }
    std::fs::create_dir_all(source.join("src"))?;
    std::fs::write(source.join("Cargo.toml"), MANIFEST)?;
    std::fs::write(source.join("src/lib.rs"), "")?;
    let mut lock = Command::new(sysroot.join("bin/cargo"));
    lock.args(["generate-lockfile", "--offline"]).current_dir(source).env_remove("CARGO_TARGET_DIR");
    if !lock.output()?.status.success() {
        return Ok(None);
    }
    let context = dir.join("toolchain");
    let root = context.join("root");
    for program in ["bin/rustc", "bin/cargo"] {
        copy(&sysroot.join(program), &root.join("rust").join(program))?;
        for library in libraries_of(&sysroot.join(program))? {
            copy(&library, &root.join(library.strip_prefix("/")?))?;
        }
    }
    for (from, to) in
        [(sysroot.join("lib"), "rust/lib".to_owned()), (libraries, format!("rust/lib/rustlib/{TARGET}/lib"))]
    {
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                copy(&entry.path(), &root.join(&to).join(entry.file_name()))?;
            }
        }
    }
    crates(
        &cargo_home.join("registry"),
        &root.join("cargo/registry"),
        &std::fs::read_to_string(source.join("Cargo.lock"))?,
    )?;
    let dockerfile =
        format!("FROM {}\nCOPY root /\nENV PATH=/rust/bin:/bin CARGO_HOME=/cargo\n", engine.base_image);
    std::fs::write(context.join("Dockerfile"), dockerfile)?;
    let image = engine.image_of(token, &context)?;
    std::fs::remove_dir_all(&context)?;
    Ok(Some(image))
}

/// What a program loads when it starts, and the loader.
fn libraries_of(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths
        .map(PathBuf::from)
        .filter(|path| !path.starts_with("/root") && !path.to_string_lossy().contains("rust"))
        .collect())
}

/// The crates that a lock file names, and what the registry says of them, as far as they are there.
fn crates(from: &Path, to: &Path, lock: &str) -> anyhow::Result<()> {
    let value = |line: &str, name: &str| Some(line.strip_prefix(name)?.trim_matches('"').to_owned());
    let names: Vec<String> = lock.lines().filter_map(|line| value(line, "name = ")).collect();
    let versions = lock.lines().filter_map(|line| value(line, "version = \""));
    let packages: Vec<String> = names
        .iter()
        .zip(versions)
        .map(|(name, version)| format!("{name}-{}.crate", version.trim_matches('"')))
        .collect();
    for part in ["index", "cache"] {
        for registry in std::fs::read_dir(from.join(part))? {
            let registry = registry?;
            let to = to.join(part).join(registry.file_name());
            let files = if part == "cache" {
                packages.iter().map(PathBuf::from).collect()
            } else {
                let of_name = |name: &String| Path::new(".cache").join(place_in_index(name));
                names.iter().map(of_name).chain([PathBuf::from("config.json")]).collect::<Vec<_>>()
            };
            for file in files {
                if registry.path().join(&file).is_file() {
                    copy(&registry.path().join(&file), &to.join(&file))?;
                }
            }
        }
    }
    Ok(())
}

/// As cargo files what it knows of a crate.
fn place_in_index(name: &str) -> PathBuf {
    match name.len() {
        1 | 2 => Path::new(&name.len().to_string()).join(name),
        3 => Path::new("3").join(&name[..1]).join(name),
        _ => Path::new(&name[..2]).join(&name[2..4]).join(name),
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to.parent().context("no folder")?)?;
    if !to.exists() {
        std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}
