//! Changes of a Dockerfile that advice is checked with.

use dockerfile_keys::{Instruction, parse};

/// A change of a Dockerfile's text. Older commits' Dockerfiles to which it does not apply stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Edit {
    /// `ARG`s and `ENV`s of these names come right before the first instruction of their stage that names them.
    ArgumentsLate { names: Vec<String> },
    /// A copy of everything comes after the command that installs packages, which gets a copy of what it reads instead.
    InstallFirst { run: String, copy: String, manifests: Vec<String> },
}

impl Edit {
    /// The changed text, or nothing if the change does not apply.
    pub(super) fn apply(&self, text: &str) -> Option<String> {
        let file = parse(text).ok()?;
        let first = file.instructions.first()?.line;
        let lines: Vec<&str> = text.lines().collect();
        let mut chunks: Vec<Chunk<'_>> = Vec::new();
        for instruction in &file.instructions {
            let text = lines.get(instruction.line - 1..instruction.end.min(lines.len()))?.join("\n");
            chunks.push(Chunk { instruction: Some(instruction), text });
        }
        let is_changed = match self {
            Self::ArgumentsLate { names } => names.iter().any(|name| late(&mut chunks, name)),
            Self::InstallFirst { run, copy, manifests } => install(&mut chunks, run, copy, manifests),
        };
        // Directives stand before the first instruction.
        let head = lines.get(..first - 1)?.iter().map(|line| (*line).to_owned());
        let all: Vec<String> = head.chain(chunks.into_iter().map(|chunk| chunk.text)).collect();
        is_changed.then(|| all.join("\n") + "\n")
    }
}

/// An instruction with its lines; one that was added has lines only.
struct Chunk<'a> {
    instruction: Option<&'a Instruction>,
    text: String,
}

impl Chunk<'_> {
    fn is(&self, name: &str) -> bool {
        self.instruction.is_some_and(|instruction| instruction.name == name)
    }
}

/// Moves the `ARG`s and `ENV`s of a name down in every stage; whether one moved.
fn late(chunks: &mut Vec<Chunk<'_>>, name: &str) -> bool {
    let mut is_changed = false;
    let mut at = chunks.iter().position(|chunk| chunk.is("FROM")).unwrap_or(chunks.len());
    while at < chunks.len() {
        let is_it =
            chunks.get(at).is_some_and(|chunk| (chunk.is("ARG") || chunk.is("ENV")) && declares(chunk, name));
        if is_it {
            let rest = chunks.iter().enumerate().skip(at + 1);
            let end = rest.clone().find(|(_, chunk)| chunk.is("FROM") || names(&chunk.text, name));
            let to = end.map_or(chunks.len(), |(place, _)| place) - 1;
            if to > at {
                let chunk = chunks.remove(at);
                chunks.insert(to, chunk);
                is_changed = true;
                // What stands here now has not been looked at.
                continue;
            }
        }
        at += 1;
    }
    is_changed
}

fn declares(chunk: &Chunk<'_>, name: &str) -> bool {
    let rest = chunk.instruction.map_or("", |instruction| instruction.rest.as_str());
    rest.split('=').next() == Some(name) && !rest.contains(char::is_whitespace)
}

/// Whether a text names a variable.
fn names(text: &str, variable: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(variable).any(|(at, _)| {
        let (before, after) = text.split_at(at);
        let after = after.split_at(variable.len()).1;
        !before.ends_with(is_word) && !after.starts_with(is_word)
    })
}

/// Puts an install before the copy that holds it up; whether it was found behind one.
fn install(chunks: &mut Vec<Chunk<'_>>, run: &str, copy: &str, manifests: &[String]) -> bool {
    let is = |chunk: &Chunk<'_>, name: &str, rest: &str| {
        chunk.instruction.is_some_and(|instruction| instruction.name == name && instruction.rest == rest)
    };
    let Some(from) = chunks.iter().position(|chunk| is(chunk, "RUN", run)) else { return false };
    let before = chunks.iter().take(from).rposition(|chunk| is(chunk, "COPY", copy));
    let Some(to) = before else { return false };
    let Some(destination) = copy.split_whitespace().last() else { return false };
    let slash = if destination.ends_with('/') { "" } else { "/" };
    // The last character as a class makes a pattern of a name: an older commit may not have the file.
    let patterns: Vec<String> = manifests.iter().map(|manifest| optional(manifest)).collect();
    let text = format!("COPY {} {destination}{slash}", patterns.join(" "));
    let wide = chunks.remove(to);
    chunks.insert(from, wide);
    // What needs nothing of it comes first without any copy.
    if manifests.is_empty() {
        return true;
    }
    chunks.insert(to, Chunk { instruction: None, text });
    true
}

fn optional(path: &str) -> String {
    let mut pattern = path.to_owned();
    match pattern.pop() {
        Some(last) => format!("{pattern}[{last}]"),
        None => pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_come_right_before_what_names_them() {
        let edit = Edit::ArgumentsLate { names: vec!["SHA".to_owned()] };
        let head = "# escape=\\\nARG SHA\nFROM a\n";
        let text = format!("{head}ARG SHA\nRUN x\nRUN y \\\n  z\nENV V=$SHA\nFROM b\nARG SHA=1\nRUN c\n");
        let expected = format!("{head}RUN x\nRUN y \\\n  z\nARG SHA\nENV V=$SHA\nFROM b\nRUN c\nARG SHA=1\n");
        assert_eq!(edit.apply(&text).as_ref(), Some(&expected));
        assert_eq!(edit.apply(&expected), None);
        assert_eq!(edit.apply("FROM a\nARG SHA\nRUN x SHA\n"), None);
        assert!(!names("$SHAPE XSHA", "SHA"));
    }

    #[test]
    fn an_install_comes_before_the_copy_of_everything() {
        let edit = Edit::InstallFirst {
            run: "npm ci".to_owned(),
            copy: ". .".to_owned(),
            manifests: vec!["package.json".to_owned()],
        };
        let text = "FROM a\nCOPY . .\nENV CI=1\nRUN npm ci\nRUN build\n";
        let expected = "FROM a\nCOPY package.jso[n] ./\nENV CI=1\nRUN npm ci\nCOPY . .\nRUN build\n";
        assert_eq!(edit.apply(text).as_deref(), Some(expected));
        assert_eq!(edit.apply("FROM a\nRUN npm ci\nCOPY . .\n"), None);
    }
}
