//! What the tests asked of stand-ins for AWS, held against AWS's own models: a stand-in that takes more hides defects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::tools;

/// Names the file to which stand-ins write what they are asked.
pub(crate) const VARIABLE: &str = "STOKER_TEST_REQUESTS";

/// Where the recorder for the local AWS and the validator are.
pub(crate) fn scripts() -> PathBuf {
    crate::paths::root().join("xtask/src/requests")
}

/// The file of the tests that need only cargo, which is empty.
pub(crate) fn of_tests() -> anyhow::Result<PathBuf> {
    let file = crate::paths::home().join("requests.jsonl");
    fs::create_dir_all(crate::paths::home())?;
    fs::write(&file, "").with_context(|| format!("cannot empty {}", file.display()))?;
    Ok(file)
}

/// Whether the validator finds what it is made for.
pub(crate) fn check_validator() -> anyhow::Result<()> {
    validate(&["--breaches".as_ref()])
}

/// AWS would take all requests in these files, and there are some in each.
pub(crate) fn check(files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        let written = fs::metadata(file).map_or(0, |file| file.len());
        ensure!(written > 0, "nobody has written down what was asked: {} is empty", file.display());
    }
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    validate(&files)
}

fn validate(arguments: &[&Path]) -> anyhow::Result<()> {
    let mut command = Command::new(tools::world_bin().join("python"));
    let status = tools::without_aws_settings(&mut command)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(scripts().join("validate.py"))
        .args(arguments)
        .status();
    ensure!(status.context("cannot run the validator")?.success(), "AWS would refuse what was asked of it");
    Ok(())
}
