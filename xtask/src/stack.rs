//! The stack: `template.yaml` with the functions built, and deployed to the local AWS.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context as _, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::environment::{LocalSetup, unzip};
use crate::{aws, process, tools};

/// The stack's name. Its functions are called `stoker-start-build` and so on.
pub(crate) const NAME: &str = "stoker";
/// How many functions it has.
const FUNCTIONS: usize = 7;
/// What the built functions depend on.
const SOURCES: [&str; 6] =
    ["Cargo.lock", "Cargo.toml", "functions", "rust-toolchain.toml", "shared", "template.yaml"];

/// What the stack says of itself once it is deployed, by the names in `template.yaml`.
pub(crate) type Outputs = BTreeMap<String, String>;

/// The full name of one of the stack's functions.
pub(crate) fn function(name: &str) -> String {
    format!("{NAME}-{name}")
}

/// Builds the functions for this machine's processor, and the local stand-ins with them, in the profile that the tests
/// are built in, so that what they share is compiled once; and writes the template beside them as SAM would.
pub(crate) fn build() -> anyhow::Result<()> {
    tools::install()?;
    println!("building the functions and the local setup");
    let source = fs::read_to_string(crate::paths::root().join("template.yaml"))?;
    let (template, functions) = with_programs(&source)?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::paths::root()).args(["build", "--package", "stoker-local"]);
    for (_, binary) in &functions {
        cargo.args(["--package", binary]);
    }
    process::run(&mut cargo, "compiling", &log("compile"), compiled)?;
    drop(fs::remove_dir_all(build_dir()));
    for (function, binary) in &functions {
        let dir = build_dir().join(function);
        fs::create_dir_all(&dir)?;
        fs::copy(built(binary)?, dir.join("bootstrap"))?;
    }
    fs::write(build_dir().join("template.yaml"), template)?;
    Ok(())
}

/// The program of the local stand-ins, which is built with the functions.
pub(crate) fn local_world() -> anyhow::Result<PathBuf> {
    built("stoker-local")
}

/// A program that was built in this one's profile.
fn built(name: &str) -> anyhow::Result<PathBuf> {
    let program = env::current_exe()?.with_file_name(name);
    ensure!(program.exists(), "{} is not there after its build", program.display());
    Ok(program)
}

/// Of what cargo says, every fiftieth crate: how far it is.
fn compiled(line: &str) -> Option<String> {
    static DONE: AtomicUsize = AtomicUsize::new(0);
    line.trim_start().strip_prefix("Compiling ")?;
    let done = DONE.fetch_add(1, Ordering::Relaxed) + 1;
    done.is_multiple_of(50).then(|| format!("{done} crates compiled"))
}

/// The template with each function's code in a directory of its name, and the functions with their programs' names.
fn with_programs(template: &str) -> anyhow::Result<(String, Vec<(String, String)>)> {
    let (mut written, mut functions) = (String::with_capacity(template.len()), Vec::new());
    let (mut resource, mut binary) = ("", None);
    for line in template.lines() {
        let is_resource = |name: &&str| !name.starts_with([' ', '#']);
        if let Some(name) = line.strip_prefix("  ").and_then(|l| l.strip_suffix(':')).filter(is_resource) {
            (resource, binary) = (name, None);
        }
        if let Some((_, after)) = line.split_once("Binary: ") {
            binary = Some(after.trim_end_matches('}').to_owned());
        }
        match line.split_once("CodeUri: .") {
            Some((indent, "")) => {
                writeln!(written, "{indent}CodeUri: {resource}")?;
                let binary = binary.take().with_context(|| format!("{resource} names no binary"))?;
                functions.push((resource.to_owned(), binary));
            }
            _ => writeln!(written, "{line}")?,
        }
    }
    ensure!(functions.len() == FUNCTIONS, "the template has {} functions", functions.len());
    Ok((written, functions))
}

/// Builds the functions as `sam build` does for AWS, unless nothing has changed since the last time.
pub(crate) fn build_for_release() -> anyhow::Result<()> {
    tools::install()?;
    let dir = release_dir();
    let stamp = dir.with_extension("stamp");
    let sources = sources()?;
    if dir.join("template.yaml").exists() && fs::read_to_string(&stamp).is_ok_and(|built| built == sources) {
        return Ok(());
    }
    let started = Instant::now();
    println!("building the functions as `sam build` does; the first time takes minutes");
    // Where SAM looks for what was built, wherever the caller has its own.
    let target = crate::paths::root().join("target");
    // SAM builds one function after the other. Built together first, their linking shares the processors, and SAM then
    // finds each of them done.
    let mut command = tools::cargo_lambda()?;
    command
        .current_dir(crate::paths::root())
        .args(["lambda", "build", "--release"])
        .env("CARGO_TARGET_DIR", &target);
    process::run(&mut command, "compiling", &log("compile"), compiled)?;
    let mut command = tools::sam()?;
    command
        .current_dir(crate::paths::root())
        .args(["build", "--no-cached", "--build-dir"])
        .arg(&dir)
        .args(["--parameter-overrides", &format!("Architecture={}", architecture()?)])
        .env("CARGO_TARGET_DIR", &target);
    process::run(&mut command, "building", &log("build"), |line| {
        let (_, function) = line.strip_prefix("Building codeuri:")?.rsplit_once("functions: ")?;
        Some(function.to_owned())
    })?;
    fs::write(stamp, sources)?;
    println!("  built in {} s", started.elapsed().as_secs());
    Ok(())
}

/// Deploys the built stack with this policy document, or updates it, and waits until it is in force.
///
/// Parameters that are not given have the template's defaults, but for the architecture and the registry,
/// which are this machine's and this setup's.
pub(crate) fn deploy(
    setup: &LocalSetup,
    policy: &str,
    parameters: &[(&str, &str)],
) -> anyhow::Result<Outputs> {
    let started = Instant::now();
    println!("deploying the stack `{NAME}`");
    let registry = setup.registry();
    let mut all = BTreeMap::from([("Architecture", architecture()?), ("RegistryHost", registry.as_str())]);
    all.extend(parameters.iter().copied());
    let mut command = tools::sam()?;
    command
        .current_dir(build_dir())
        .args(["deploy", "--template-file"])
        .arg(with_policy(policy)?)
        .args([
            "--stack-name",
            NAME,
            "--resolve-s3",
            "--no-confirm-changeset",
            "--no-fail-on-empty-changeset",
        ])
        .args(["--capabilities", "CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"])
        .arg("--parameter-overrides")
        .args(all.iter().map(|(name, value)| format!("ParameterKey={name},ParameterValue={value}")))
        .env("AWS_ENDPOINT_URL", setup.endpoint())
        .env("AWS_ACCESS_KEY_ID", aws::KEY_ID)
        .env("AWS_SECRET_ACCESS_KEY", aws::SECRET_KEY);
    process::run(&mut command, "deploying", &log("deploy"), |_| None)?;
    let outputs = setup.aws().stack_outputs(NAME)?;
    bring_layer_to_opt(setup, &outputs)?;
    println!("  deployed in {:.1} s", started.elapsed().as_secs_f32());
    Ok(outputs)
}

/// Lambda unpacks layers to `/opt`; the local AWS runs functions as plain processes and does not. So what was
/// deployed is fetched from it and unpacked to where the functions have been told to look.
fn bring_layer_to_opt(setup: &LocalSetup, outputs: &Outputs) -> anyhow::Result<()> {
    let aws = setup.aws();
    let layer = outputs.get("PolicyLayer").context("the stack has no output PolicyLayer")?;
    let mut parts = layer.rsplit(':');
    let (version, name) = parts.next().zip(parts.next()).context("the policy's layer has no ARN")?;
    let layer = aws.rest("lambda", "GET", &format!("/2018-10-31/layers/{name}/versions/{version}"), None)?;
    let location = layer["Content"]["Location"].as_str().context("the policy's layer has no content")?;
    let archive = setup.dir().join("layer.zip");
    fs::write(&archive, aws.download(location)?)?;

    let (opt, new) = (setup.opt(), setup.dir().join("opt.new"));
    unzip(&archive, &new)?;
    ensure!(new.join("stoker.yaml").exists(), "the policy's layer holds no stoker.yaml");
    fs::remove_dir_all(&opt)?;
    fs::rename(new, opt)?;

    // A warm function may have read the policy that was there before. To be configured makes it start anew.
    let functions = aws.rest("lambda", "GET", "/2015-03-31/functions/", None)?;
    for function in functions["Functions"].as_array().map(Vec::as_slice).unwrap_or_default() {
        if let Some(name) = function["FunctionName"].as_str().filter(|name| name.starts_with(NAME)) {
            let path = format!("/2015-03-31/functions/{name}/configuration");
            aws.rest("lambda", "PUT", &path, Some(&json!({ "Description": function["Description"] })))?;
        }
    }
    Ok(())
}

/// Writes a copy of the built template whose policy layer has this content.
fn with_policy(policy: &str) -> anyhow::Result<PathBuf> {
    let layer = crate::paths::home().join("policy");
    fs::create_dir_all(&layer)?;
    fs::write(layer.join("stoker.yaml"), policy)?;
    let built =
        fs::read_to_string(build_dir().join("template.yaml")).context("the functions are not built")?;
    let mut copy = String::with_capacity(built.len());
    let mut found = 0;
    for line in built.lines() {
        match line.split_once("ContentUri:") {
            Some((indent, _)) => {
                found += 1;
                writeln!(copy, "{indent}ContentUri: {}", json!(layer))?;
            }
            None => writeln!(copy, "{line}")?,
        }
    }
    ensure!(found == 1, "the template has {found} layers rather than the policy's");
    let file = build_dir().join("deployed.yaml");
    fs::write(&file, copy)?;
    Ok(file)
}

/// A digest of all that the built functions depend on.
fn sources() -> anyhow::Result<String> {
    let files = Command::new("git")
        .current_dir(crate::paths::root())
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"])
        .args(SOURCES)
        .output()
        .context("cannot run `git`")?;
    ensure!(files.status.success(), "`git ls-files` failed: {}", String::from_utf8_lossy(&files.stderr));
    let mut digest = Sha256::new();
    for file in String::from_utf8_lossy(&files.stdout).split_terminator('\0') {
        // A file that was deleted but not committed yet is still listed.
        if let Ok(content) = fs::read(crate::paths::root().join(file)) {
            digest.update(format!("{file}\0{}\0", content.len()));
            digest.update(content);
        }
    }
    Ok(hex::encode(digest.finalize()))
}

fn architecture() -> anyhow::Result<&'static str> {
    match ARCH {
        "x86_64" => Ok("x86_64"),
        "aarch64" => Ok("arm64"),
        other => anyhow::bail!("Lambda knows no {other} processors, so the functions cannot run here"),
    }
}

/// The programs of a built stack, by the names of their functions in `template.yaml`.
pub(crate) fn programs(built: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir(built).context("the functions are not built")? {
        let entry = entry?;
        let program = entry.path().join("bootstrap");
        if program.exists() {
            programs.insert(entry.file_name().to_string_lossy().into_owned(), program);
        }
    }
    ensure!(programs.len() == FUNCTIONS, "{} functions are built", programs.len());
    Ok(programs)
}

/// Where the stack is that is deployed here: each function in a directory of its name in `template.yaml`.
pub(crate) fn build_dir() -> PathBuf {
    crate::paths::home().join("stack")
}

/// Where SAM builds it.
pub(crate) fn release_dir() -> PathBuf {
    crate::paths::home().join("sam")
}

fn log(name: &str) -> PathBuf {
    crate::paths::home().join("logs").join(format!("sam-{name}.log"))
}
