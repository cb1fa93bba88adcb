//! The commands that the documentation tells, as they stand there.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// The documents beside those in `docs/`.
const DOCUMENTS: [&str; 5] =
    ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "functions/README.md", "cli/README.md"];
/// What commands begin with.
const TOOLS: [&str; 9] = ["aws", "cargo", "docker", "earthly", "finch", "git", "pip", "sam", "stoker"];
/// The languages of blocks that are commands.
const SHELLS: [&str; 3] = ["bash", "console", "sh"];

/// A command of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reported {
    /// The document, by its path in the checkout.
    pub(super) document: String,
    /// Its line there.
    pub(super) line: usize,
    /// The command, or a whole block of them.
    pub(super) text: String,
}

/// Every command of every document; within a document each once.
pub(super) fn all() -> anyhow::Result<Vec<Reported>> {
    let mut documents = DOCUMENTS.map(str::to_owned).to_vec();
    for entry in fs::read_dir(crate::paths::root().join("docs"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
            documents.push(format!("docs/{name}"));
        }
    }
    documents[DOCUMENTS.len()..].sort();
    let mut reported = Vec::new();
    for document in documents {
        let text = fs::read_to_string(crate::paths::root().join(&document))
            .with_context(|| format!("cannot read {document}"))?;
        reported.extend(of(&document, &text)?);
    }
    Ok(reported)
}

fn of(document: &str, text: &str) -> anyhow::Result<Vec<Reported>> {
    let mut reported: Vec<Reported> = Vec::new();
    // The language of the block that is open, its line, and what is in it.
    let mut open: Option<(String, usize, String)> = None;
    let line_of = |place: usize| text[..place].matches('\n').count() + 1;
    let mut tell = |line: usize, command: &str| {
        let is_known = reported.iter().any(|reported| reported.text == command);
        if !is_known {
            reported.push(Reported { document: document.to_owned(), line, text: command.to_owned() });
        }
    };
    for (event, place) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        match (event, &mut open) {
            (Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))), _) => {
                open = Some((language.into_string(), line_of(place.start), String::new()));
            }
            (Event::Text(part), Some((.., content))) => content.push_str(&part),
            (Event::End(TagEnd::CodeBlock), _) => {
                let Some((language, line, content)) = open.take() else { continue };
                if language == "console" {
                    for (nth, command) in content.lines().enumerate() {
                        let command = command.strip_prefix("$ ");
                        let command =
                            command.with_context(|| format!("{document}:{line}: who checks the output?"))?;
                        tell(line + 1 + nth, command);
                    }
                } else if SHELLS.contains(&language.as_str()) {
                    tell(line + 1, content.trim_end());
                }
            }
            (Event::Code(code), None) if is_command(&code) => tell(line_of(place.start), &code),
            _ => {}
        }
    }
    ensure!(open.is_none(), "{document} ends within a block");
    Ok(reported)
}

/// Whether it is a tool with something after it, and not only the tool's name.
fn is_command(code: &str) -> bool {
    let is_variable = |word: &&str| {
        word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    };
    let mut words = code.split_whitespace().skip_while(is_variable);
    words.next().is_some_and(|tool| TOOLS.contains(&tool)) && words.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_wherever_they_stand() {
        let text = "Run `aws s3\nls`, not `aws` or `a b`.\n\n| `stoker a\\|b` |\n|---|\n| `N=1 cargo x` |\n\n\
                    ```console\n$ git pull # now\n$ sam build\n```\n\n1. So:\n\n   ```sh\n   f() \
                    {\n     g\n   }\n   ```\n\n\
                    ```json\n{}\n```\n";
        let reported = of("page", text).unwrap();
        let reported: Vec<(usize, &str)> =
            reported.iter().map(|reported| (reported.line, reported.text.as_str())).collect();
        let expected = [
            (1, "aws s3 ls"),
            (4, "stoker a|b"),
            (6, "N=1 cargo x"),
            (9, "git pull # now"),
            (10, "sam build"),
            (16, "f() {\n  g\n}"),
        ];
        assert_eq!(reported, expected);
        assert!(of("page", "```console\n$ a\nb\n```\n").is_err());
    }
}
