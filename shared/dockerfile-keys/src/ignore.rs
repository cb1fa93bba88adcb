//! `.dockerignore`, as `moby/patternmatcher` reads it. It is no `.gitignore`: a pattern counts from the context's root,
//! the last one that matches decides, and what lies in a directory that matches is matched with it.

use crate::glob::Glob;
use crate::key::{Key, Maker};

/// The patterns of a `.dockerignore`, or of `COPY --exclude`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignore {
    patterns: Vec<Pattern>,
    fingerprint: Key,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    glob: Glob,
    /// It takes back what an earlier one ignores: `!`.
    takes_back: bool,
}

/// Which patterns a directory matched, for what lies in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Matched(Vec<bool>);

/// A pattern cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: `{pattern}` is no pattern")]
pub struct IgnoreError {
    /// Its line, from 1.
    pub line: usize,
    /// The pattern.
    pub pattern: String,
}

impl Default for Ignore {
    fn default() -> Self {
        Self { patterns: Vec::new(), fingerprint: Maker::new("ignore").key() }
    }
}

impl Ignore {
    /// Reads a `.dockerignore`.
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().zip(1..).filter(|(line, _)| !line.starts_with('#'));
        Self::new(lines.map(|(line, number)| (line.trim(), number)))
    }

    /// Makes patterns of the values of `--exclude`.
    pub(crate) fn excludes<'a>(patterns: impl Iterator<Item = &'a str>) -> Result<Self, IgnoreError> {
        Self::new(patterns.map(|pattern| (pattern, 1)))
    }

    fn new<'a>(lines: impl Iterator<Item = (&'a str, usize)>) -> Result<Self, IgnoreError> {
        let mut patterns = Vec::new();
        let mut fingerprint = Maker::new("ignore");
        for (text, line) in lines.filter(|(text, _)| !text.is_empty()) {
            let error = || IgnoreError { line, pattern: text.to_owned() };
            let (takes_back, bare) = text.strip_prefix('!').map_or((false, text), |bare| (true, bare.trim()));
            let clean = clean(bare).ok_or_else(error)?;
            fingerprint.bool(takes_back).text(&clean);
            patterns.push(Pattern { glob: Glob::ignore(&clean).ok_or_else(error)?, takes_back });
        }
        Ok(Self { patterns, fingerprint: fingerprint.key() })
    }

    /// Tells these patterns from others.
    pub(crate) fn fingerprint(&self) -> Key {
        self.fingerprint
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether something in a directory that is ignored may come back.
    pub(crate) fn takes_back(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.takes_back)
    }

    /// Whether a path is ignored, given what its directory matched.
    pub(crate) fn ignores(&self, path: &str, parent: &Matched) -> (bool, Matched) {
        let mut ignored = false;
        let mut matched = Vec::with_capacity(self.patterns.len());
        for (i, pattern) in self.patterns.iter().enumerate() {
            let inherited = parent.0.get(i).copied().unwrap_or_default();
            // A pattern that would change nothing is not looked at: what lies below may match it anew.
            let matches = inherited || (pattern.takes_back == ignored && pattern.glob.matches(path));
            matched.push(matches);
            if matches {
                ignored = !pattern.takes_back;
            }
        }
        (ignored, Matched(matched))
    }

    /// Whether a path is ignored, asked of every directory on the way.
    #[must_use]
    pub fn is_ignored(&self, path: &str) -> bool {
        self.matched(path).0
    }

    pub(crate) fn matched(&self, path: &str) -> (bool, Matched) {
        let mut result = (false, Matched::default());
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends.filter(|_| !path.is_empty()) {
            result = self.ignores(path.split_at(end).0, &result.1);
        }
        result
    }
}

/// Go's `filepath.Clean`, without a leading `/`. Nothing is left of a mere `!`.
fn clean(pattern: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if pattern.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    match parts.join("/") {
        clean if !clean.is_empty() => Some(clean),
        _ if pattern.is_empty() => None,
        _ if pattern.starts_with('/') => Some("/".to_owned()),
        _ => Some(".".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, ignored: &[&str], kept: &[&str]) {
        let ignore = Ignore::parse(text).unwrap();
        for path in ignored {
            assert!(ignore.is_ignored(path), "{path} is kept");
        }
        for path in kept {
            assert!(!ignore.is_ignored(path), "{path} is ignored");
        }
    }

    #[test]
    fn patterns_count_from_the_root() {
        check(
            "node_modules\n*.log\n",
            &["node_modules", "node_modules/a/b", "a.log"],
            &["x/a.log", "x/node_modules"],
        );
        check("**/*.log\n/target/\n./tmp", &["x/y/a.log", "target/x", "tmp"], &["x/target"]);
        check("", &[], &["a"]);
        check("# a\n#b\n\n  c  \n", &["c"], &["a", "#b"]);
    }

    #[test]
    fn the_last_pattern_that_matches_decides() {
        check("*\n!src\n!Cargo.*\n", &["README.md", ".git/HEAD"], &["src", "src/a/b.rs", "Cargo.toml"]);
        check("*.md\n!README*.md\nREADME-secret.md", &["a.md", "README-secret.md"], &["README-1.md"]);
        check("*.md\nREADME-secret.md\n!README*.md", &["a.md"], &["README-secret.md"]);
        check("docs\n!docs/a.md", &["docs", "docs/b.md"], &["docs/a.md"]);
        check("*\n!src\n**/*.snap", &["src/x.snap", "src/a/x.snap"], &["src/x"]);
    }

    #[test]
    fn what_is_no_pattern_is_named_with_its_line() {
        let error = Ignore::parse("a\n[b\n").unwrap_err();
        assert_eq!(error.to_string(), "line 2: `[b` is no pattern");
        assert!(Ignore::parse("!").is_err());
    }

    #[test]
    fn the_fingerprint_is_that_of_the_patterns() {
        let of = |text: &str| Ignore::parse(text).unwrap().fingerprint();
        assert_eq!(of("a\n"), of("# comment\n./a/\n"));
        assert_ne!(of("a\nb"), of("b\na"));
        assert_ne!(of("a"), of("!a"));
        assert_eq!(Ignore::default().fingerprint(), of(""));
    }
}
