//! The build context: what a `COPY` takes from it, as one digest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use wildmatch::WildMatch;

/// The context does not hold what is asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContextError {
    #[error("`{}` cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{0}` is not in the build context")]
    Missing(String),
    #[error(".dockerignore: `{0}` is not understood")]
    Ignore(String),
}

/// A build context.
#[derive(Debug)]
pub(super) struct Context {
    /// The files that are not ignored, by their path from the root: `/`-separated, without a leading one.
    files: BTreeMap<String, PathBuf>,
}

impl Context {
    /// Lists a directory.
    pub(super) fn open(root: &Path) -> Result<Self, ContextError> {
        let ignored = ignored(root)?;
        let mut files = BTreeMap::new();
        list(root, "", &ignored, &mut files)?;
        Ok(Self { files })
    }

    /// The digest of what these sources name, contents and names.
    pub(super) fn digest(&self, sources: &[String]) -> Result<String, ContextError> {
        let mut hash = Sha256::new();
        for source in sources {
            let pattern = source.trim_start_matches("./").trim_matches('/');
            let mut found = false;
            for (name, path) in &self.files {
                let Some(inside) = below(name, pattern) else { continue };
                found = true;
                let content = std::fs::read(path).map_err(read(path))?;
                let mode = executable(path);
                hash.update(format!("{inside}\0{mode}\0{}\0", content.len()));
                hash.update(&content);
            }
            // An empty directory is fine; a name that is not there is not.
            if !found && !pattern.is_empty() && pattern != "." {
                return Err(ContextError::Missing(source.clone()));
            }
        }
        Ok(format!("sha256:{}", hex::encode(hash.finalize())))
    }
}

/// The name of a file as the copy will know it: a directory's contents are copied, not the directory.
fn below<'a>(name: &'a str, pattern: &str) -> Option<&'a str> {
    if pattern.is_empty() || pattern == "." {
        return Some(name);
    }
    let mut rest = name;
    let mut last = name;
    for part in pattern.split('/') {
        if rest.is_empty() {
            return None;
        }
        let (segment, after) = rest.split_once('/').unwrap_or((rest, ""));
        if !WildMatch::new(part).matches(segment) {
            return None;
        }
        last = segment;
        rest = after;
    }
    Some(if rest.is_empty() { last } else { rest })
}

fn list(
    root: &Path,
    prefix: &str,
    ignored: &[String],
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<(), ContextError> {
    let dir = root.join(prefix);
    for entry in std::fs::read_dir(&dir).map_err(read(&dir))? {
        let entry = entry.map_err(read(&dir))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if ignored.iter().any(|pattern| is_ignored(&name, pattern)) {
            continue;
        }
        if entry.file_type().map_err(read(&dir))?.is_dir() {
            list(root, &format!("{name}/"), ignored, files)?;
        } else {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

fn ignored(root: &Path) -> Result<Vec<String>, ContextError> {
    let text = std::fs::read_to_string(root.join(".dockerignore")).unwrap_or_default();
    let mut patterns = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with('!') {
            return Err(ContextError::Ignore(line.to_owned()));
        }
        patterns.push(line.trim_start_matches("./").trim_matches('/').to_owned());
    }
    Ok(patterns)
}

fn is_ignored(name: &str, pattern: &str) -> bool {
    if let Some(anywhere) = pattern.strip_prefix("**/") {
        return name.split('/').any(|segment| WildMatch::new(anywhere).matches(segment));
    }
    let parts = pattern.split('/').count();
    name.split('/').count() == parts
        && pattern
            .split('/')
            .zip(name.split('/'))
            .all(|(part, segment)| WildMatch::new(part).matches(segment))
}

fn executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|data| data.permissions().mode() & 0o111 != 0)
}

fn read(path: &Path) -> impl Fn(std::io::Error) -> ContextError {
    move |source| ContextError::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_depends_on_what_it_copies_only() {
        let dir = std::env::temp_dir().join(format!("context-{}", uuid::Uuid::new_v4()));
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("a/src", "1");
        write("a/deps", "1");
        write("target/x", "1");
        write(".dockerignore", "target\n**/*.log\n");
        let digest = |source: &str| Context::open(&dir).unwrap().digest(&[source.to_owned()]);
        let [all, src, deps, glob] = [".", "a/src", "a", "a/d*"].map(|source| digest(source).unwrap());
        write("target/x", "2");
        write("a/new.log", "2");
        assert_eq!(digest(".").unwrap(), all);
        write("a/src", "2");
        assert_ne!(digest(".").unwrap(), all);
        assert_ne!(digest("a/src").unwrap(), src);
        assert_ne!(digest("a").unwrap(), deps);
        assert_eq!(digest("./a/d*").unwrap(), glob);
        assert!(matches!(digest("b"), Err(ContextError::Missing(_))));
        assert!(matches!(digest("target"), Err(ContextError::Missing(_))));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
