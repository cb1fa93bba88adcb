//! What a release consists of: the functions and the command line for both processors, what they are made of,
//! and checksums.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use crate::{process, tools};

/// The processors, in Lambda's words, and cargo's.
const ARCHITECTURES: [(&str, &str); 2] =
    [("arm64", "aarch64-unknown-linux-gnu"), ("x86_64", "x86_64-unknown-linux-gnu")];
/// The functions.
const FUNCTIONS: [&str; 7] = [
    "enforce-retention",
    "promote-cache",
    "receive-codecommit",
    "receive-webhook",
    "resolve-cache",
    "start-build",
    "warm-main",
];

/// What a release can be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only for this processor; for both unless given
    #[arg(long, value_parser = ARCHITECTURES.map(|(name, _)| name))]
    architecture: Option<String>,
}

/// Makes all files of a release, and says which.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    tools::install()?;
    let dir = crate::paths::root().join("target/release-artefacts");
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir)?;
    let mut files = BTreeSet::new();
    for (name, target) in ARCHITECTURES {
        if args.architecture.as_ref().is_none_or(|asked| asked == name) {
            println!("building for {name}; the first time takes minutes");
            compile(name, target, &dir, &mut files)?;
        }
    }
    materials(&dir, &mut files)?;
    let mut sums = String::new();
    for file in &files {
        let content = fs::read(dir.join(file))?;
        writeln!(sums, "{}  {file}", hex::encode(Sha256::digest(&content)))?;
        println!("  {file:<34} {:>6} kB", content.len() / 1000);
    }
    fs::write(dir.join("SHA256SUMS"), sums)?;
    println!("and their SHA256SUMS, in {}", dir.display());
    Ok(())
}

/// Each function as the archive that Lambda takes, and the command line as a program.
fn compile(name: &str, target: &str, dir: &Path, files: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let built = crate::paths::home().join("release").join(name);
    drop(fs::remove_dir_all(&built));
    for (what, arguments) in [
        ("functions", ["--output-format", "zip"].as_slice()),
        (
            "stoker",
            // What cargo-lambda would add is Lambda's processors alone; the rest is in the profile.
            &["--disable-optimizations", "--package", "stoker-cli", "--bin", "stoker"],
        ),
    ] {
        let mut command = tools::cargo_lambda()?;
        command
            .current_dir(crate::paths::root())
            .args(["lambda", "build", "--release", "--target", target, "--lambda-dir"])
            .arg(&built)
            .args(arguments)
            .env("CARGO_TARGET_DIR", crate::paths::root().join("target"));
        process::run(&mut command, "compiling", &log(&format!("{what}-{name}")), |_| None)?;
    }
    for function in FUNCTIONS {
        let file = format!("{function}-{name}.zip");
        take(&built.join(function).join("bootstrap.zip"), &dir.join(&file))?;
        files.insert(file);
    }
    let file = format!("stoker-linux-{name}");
    take(&built.join("stoker/bootstrap"), &dir.join(&file))?;
    files.insert(file);
    Ok(())
}

/// A `CycloneDX` bill of materials for each program. Both processors' are made of the same.
fn materials(dir: &Path, files: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let cyclonedx = tools::cargo_cyclonedx()?;
    // The commit's time, so that the same commit has the same bills.
    let time =
        Command::new("git").current_dir(crate::paths::root()).args(["log", "-1", "--format=%ct"]).output()?;
    ensure!(time.status.success(), "`git log` failed: {}", String::from_utf8_lossy(&time.stderr));
    let mut command = Command::new(cyclonedx);
    command
        .current_dir(crate::paths::root())
        .args(["cyclonedx", "--format", "json", "--spec-version", "1.5", "--no-build-deps", "--quiet"])
        .args(["--target", ARCHITECTURES[0].1])
        .env("SOURCE_DATE_EPOCH", String::from_utf8_lossy(&time.stdout).trim());
    process::run(&mut command, "listing what it is made of", &log("materials"), |_| None)?;
    // It writes beside every manifest of the workspace, and into the packages' names where this checkout is.
    let here = format!("path+file://{}", crate::paths::root().display());
    let functions = FUNCTIONS.map(|function| (function, format!("functions/{function}"), function));
    for (package, place, name) in functions.into_iter().chain([("stoker-cli", "cli".to_owned(), "stoker")]) {
        let written = crate::paths::root().join(place).join(format!("{package}.cdx.json"));
        let bill = fs::read_to_string(&written)
            .with_context(|| format!("cargo-cyclonedx has not written {}", written.display()))?;
        let file = format!("{name}.cdx.json");
        fs::write(dir.join(&file), bill.replace(&here, "path+file:///stoker"))?;
        files.insert(file);
    }
    // All that it has written beside manifests.
    let mut clean = Command::new("git");
    clean.current_dir(crate::paths::root()).args(["clean", "-qfx", "--", "*.cdx.json", ":(exclude)target"]);
    process::run(&mut clean, "removing what lies beside the manifests", &log("clean"), |_| None)
}

fn take(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("{} has not been built", from.display()))?;
    Ok(())
}

fn log(name: &str) -> PathBuf {
    crate::paths::home().join(format!("logs/release-{name}.log"))
}
