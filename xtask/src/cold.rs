//! What cold starts cost: builds what is measured, and starts the benchmark.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::{process, stack, tools};

/// What the functions are measured beside.
const BESIDE: [&str; 3] = ["empty", "bare", "calls"];

/// Builds the functions as they are deployed, the programs beside them in the same way, and measures them all.
pub(crate) fn run() -> anyhow::Result<()> {
    stack::build_for_release()?;
    let target = crate::paths::root().join("target");
    let mut build = tools::cargo_lambda()?;
    build
        .current_dir(crate::paths::root())
        .args(["lambda", "build", "--release", "--package", "cold"])
        .args(BESIDE.iter().flat_map(|name| ["--bin", name]))
        .env("CARGO_TARGET_DIR", &target);
    process::run(&mut build, "compiling", &log("build"), |_| None)?;

    let mut bench = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    bench
        .current_dir(crate::paths::root())
        // Only what it starts is measured; itself it need not be fast.
        .args(["bench", "--quiet", "--package", "cold", "--bench", "cold", "--profile", "dev"])
        .env("STOKER_COLD_FUNCTIONS", stack::release_dir())
        .env("STOKER_COLD_BESIDE", target.join("lambda"))
        .env("STOKER_COLD_DIRECTORY", crate::paths::home().join("cold"))
        .env("STOKER_COLD_EMULATOR", tools::emulator()?)
        // It has boto3 because SAM has.
        .env("STOKER_COLD_PYTHON", tools::sam_python()?.get_program());
    match node() {
        Ok(script) => {
            bench.env("STOKER_COLD_NODE", script);
        }
        Err(error) => println!("  no Node: {error:#}"),
    }
    ensure!(bench.status().context("cannot run cargo")?.success(), "a bound is broken");
    Ok(())
}

/// The script for Node, beside the SDK that it imports.
fn node() -> anyhow::Result<PathBuf> {
    for program in ["node", "npm"] {
        let version = Command::new(program).arg("--version").stdout(Stdio::null()).status();
        ensure!(version.is_ok_and(|status| status.success()), "there is no `{program}`");
    }
    let directory = crate::paths::home().join("node");
    fs::create_dir_all(&directory)?;
    let from = Path::new(crate::paths::root()).join("tests/cold");
    for file in ["package.json", "start-build.mjs"] {
        fs::copy(from.join(file), directory.join(file))?;
    }
    let mut install = Command::new("npm");
    install.current_dir(&directory).args(["install", "--no-audit", "--no-fund"]);
    process::run(&mut install, "installing the AWS SDK for JavaScript", &log("node"), |_| None)?;
    Ok(directory.join("start-build.mjs"))
}

fn log(name: &str) -> PathBuf {
    crate::paths::home().join("logs").join(format!("cold-{name}.log"))
}
