//! Files of a project's source, where its checkout is at hand. What is in them is as hostile as what CodeBuild says.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::problem::Problem;
use crate::text::plain;

/// CodeBuild takes shorter ones only.
pub(crate) const LONGEST: usize = 256 * 1024;

/// What `docker buildx bake` reads where no file is named.
const DEFAULTS: [&str; 2] = ["docker-bake.hcl", "docker-bake.json"];

/// A checkout of a project's source.
#[derive(Debug, Clone)]
pub(crate) struct Checkout(PathBuf);

impl Checkout {
    /// The directory that `--checkout` names.
    pub(crate) fn open(directory: &Path) -> Result<Self, Problem> {
        let path = fs::canonicalize(directory).ok().filter(|path| path.is_dir());
        path.map(Self).ok_or_else(|| {
            Problem::usage(
                format!("{} is no directory that can be read", plain(&directory.display().to_string())),
                "--checkout takes the directory that `git clone` made of the project's source",
            )
        })
    }

    /// A file of it, by its path in it; `None` for what is not in it, is too long, or no text.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        let file = fs::canonicalize(self.0.join(path)).ok()?;
        let is_short = fs::metadata(&file).is_ok_and(|file| file.is_file() && file.len() <= LONGEST as u64);
        if !file.starts_with(&self.0) || !is_short {
            return None;
        }
        fs::read_to_string(file).ok()
    }

    /// The names of the targets that bake files define, and of the files that say so; `None` where one cannot be read.
    pub(crate) fn bake_targets(&self, files: &[&str]) -> Option<(BTreeSet<String>, String)> {
        let read = |file: &&str| self.read(file).map(|text| (file.to_string(), text));
        let texts: Vec<(String, String)> = match files {
            [] => DEFAULTS.iter().filter_map(read).collect(),
            files => files.iter().map(read).collect::<Option<_>>()?,
        };
        let (files, texts): (Vec<String>, Vec<String>) = texts.into_iter().unzip();
        let names: Vec<BTreeSet<String>> = texts.iter().map(|text| targets(text)).collect::<Option<_>>()?;
        (!files.is_empty()).then(|| (names.into_iter().flatten().collect(), files.join(" and ")))
    }
}

/// The names of a bake file's targets, be it JSON or HCL; `None` where a name is not plain.
fn targets(text: &str) -> Option<BTreeSet<String>> {
    if text.trim_start().starts_with('{') {
        let file: Value = serde_json::from_str(text).ok()?;
        return Some(file["target"].as_object()?.keys().cloned().collect());
    }
    let is_comment = |line: &&str| !line.starts_with('#') && !line.starts_with("//");
    let lines = text.lines().map(str::trim_start).filter(is_comment);
    let named: Vec<&str> = lines.filter_map(|line| line.strip_prefix("target ")).collect();
    let name = |rest: &&str| {
        let rest = rest.trim_start();
        let name =
            rest.strip_prefix('"').map_or_else(|| rest.split([' ', '{']).next(), |r| r.split('"').next());
        name.filter(|name| !name.is_empty() && !name.contains('$')).map(str::to_owned)
    };
    // A target of a matrix has names that are made.
    let is_made = text.lines().any(|line| line.trim_start().starts_with("matrix"));
    (!named.is_empty() && !is_made).then(|| named.iter().map(name).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_from_both_kinds_of_file() {
        let of = |text: &str| targets(text).map(|names| names.into_iter().collect::<Vec<_>>().join(" "));
        let hcl = "group \"default\" { targets = [\"api\"] }\n# target \"no\" {\ntarget \"api\" {\n}\n  target \
             worker{}\n";
        assert_eq!(of(hcl).as_deref(), Some("api worker"));
        assert_eq!(of(r#"{"target": {"a": {}, "b": {}}}"#).as_deref(), Some("a b"));
        for unknown in ["", "{", "{}", "target \"a-${os}\" {}", "target \"a\" {\n  matrix = {}\n}", "target"]
        {
            assert_eq!(of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn attack_a_path_that_leads_out_of_the_checkout() {
        let dir = std::env::temp_dir().join(format!("stoker-checkout-{}", std::process::id()));
        fs::create_dir_all(dir.join("source")).unwrap();
        fs::write(dir.join("secret"), "no").unwrap();
        fs::write(dir.join("source/docker-bake.hcl"), "target \"api\" {}").unwrap();
        std::os::unix::fs::symlink(dir.join("secret"), dir.join("source/link")).unwrap();
        let checkout = Checkout::open(&dir.join("source")).unwrap();
        for path in ["../secret", "link", "/etc/hostname", "", ".", "a\0b"] {
            assert_eq!(checkout.read(path), None, "{path}");
        }
        let (names, files) = checkout.bake_targets(&[]).unwrap();
        assert_eq!((names.first().map(String::as_str), files.as_str()), (Some("api"), "docker-bake.hcl"));
        fs::remove_dir_all(dir).unwrap();
    }
}
