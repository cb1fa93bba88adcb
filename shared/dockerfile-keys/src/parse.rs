//! A Dockerfile's instructions, line by line as `BuildKit` cuts them (`frontend/dockerfile/parser`).
//!
//! An instruction that nobody knows is kept, so that whoever replays a history can name its line and go on.

use crate::words;

/// A Dockerfile, cut into instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The character that continues lines and escapes others: `\`, or a backtick where a directive says so.
    pub escape: char,
    /// The instructions, in their order.
    pub instructions: Vec<Instruction>,
}

/// One instruction, with its continued lines joined and comments inside it left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// The line on which it begins, from 1.
    pub line: usize,
    /// The line on which it ends, here-documents included.
    pub end: usize,
    /// Its name in capitals, such as `RUN`.
    pub name: String,
    /// Its flags, such as `--from=build`, unexpanded.
    pub flags: Vec<String>,
    /// What follows the flags.
    pub rest: String,
    /// The here-documents that its line opens.
    pub here_documents: Vec<HereDocument>,
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HereDocument {
    /// The word that ends it.
    pub name: String,
    /// Whether variables are expanded in it: its name is not quoted.
    pub expand: bool,
    /// Whether leading tabs are dropped: `<<-`.
    pub chomp: bool,
    /// The file descriptor before `<<`, mostly empty.
    pub descriptor: String,
    /// Its lines.
    pub content: String,
}

impl Instruction {
    /// The whole instruction on one line, and its here-documents after that.
    #[must_use]
    pub fn text(&self) -> String {
        let words = [&self.name].into_iter().chain(&self.flags).chain([&self.rest]);
        let mut text = words.map(String::as_str).collect::<Vec<_>>().join(" ");
        for document in &self.here_documents {
            text.extend(["\n", &document.content, &document.name]);
        }
        text
    }
}

impl HereDocument {
    /// The content without leading tabs, if its operator says so.
    #[must_use]
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// A Dockerfile cannot be cut into instructions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The directive `# escape=` names another character than `\` and the backtick.
    #[error("line {line}: `{value}` cannot be the escape character")]
    Escape {
        /// The line.
        line: usize,
        /// The directive's value.
        value: String,
    },
    /// The file ends before a here-document does.
    #[error("line {line}: the here-document `{name}` does not end")]
    HereDocument {
        /// The line that opens it.
        line: usize,
        /// The word that would end it.
        name: String,
    },
    /// There is no instruction in the file.
    #[error("there is no instruction in it")]
    Empty,
}

/// Cuts a Dockerfile into instructions.
pub fn parse(text: &str) -> Result<Dockerfile, ParseError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape(text)?;
    let mut lines = text.split_inclusive('\n').zip(1..);
    let mut instructions = Vec::new();
    while let Some((first, line)) = lines.next() {
        let first = without_newline(first).trim_start();
        if is_comment(first) {
            continue;
        }
        let (mut joined, mut goes_on) = continued(first, escape);
        if joined.is_empty() {
            continue;
        }
        let mut end = line;
        while goes_on {
            let Some((next, number)) = lines.next() else { break };
            end = number;
            let next = without_newline(next);
            if is_comment(next) || next.trim().is_empty() {
                continue;
            }
            let (part, again) = continued(next, escape);
            joined.push_str(&part);
            goes_on = again;
        }
        let mut instruction = split(&joined, line, escape);
        for mut document in opened(&instruction, &joined) {
            loop {
                let Some((next, number)) = lines.next() else {
                    return Err(ParseError::HereDocument { line, name: document.name });
                };
                end = number;
                let bare = without_newline(next);
                if document.name == if document.chomp { bare.trim_start_matches('\t') } else { bare } {
                    break;
                }
                document.content.push_str(next);
            }
            instruction.here_documents.push(document);
        }
        instruction.end = end;
        instructions.push(instruction);
    }
    if instructions.is_empty() {
        return Err(ParseError::Empty);
    }
    Ok(Dockerfile { escape, instructions })
}

/// The one instruction that an `ONBUILD` holds.
pub(crate) fn trigger(instruction: &Instruction, escape: char) -> Instruction {
    let inner = split(&instruction.rest, instruction.line, escape);
    Instruction { end: instruction.end, here_documents: instruction.here_documents.clone(), ..inner }
}

/// What the directives at the top say of the escape character. They end with the first line that is none.
fn escape(text: &str) -> Result<char, ParseError> {
    for (line, number) in text.lines().zip(1..) {
        let Some((name, value)) = line.trim().strip_prefix('#').and_then(|rest| rest.split_once('=')) else {
            break;
        };
        let name = name.trim();
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            break;
        }
        if name.eq_ignore_ascii_case("escape") {
            return match value.trim() {
                "\\" => Ok('\\'),
                "`" => Ok('`'),
                value => Err(ParseError::Escape { line: number, value: value.to_owned() }),
            };
        }
    }
    Ok('\\')
}

fn without_newline(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// The line without the character that continues it, and whether there was one. An escaped one continues nothing.
fn continued(line: &str, escape: char) -> (String, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => (before.to_owned(), true),
        _ => (line.to_owned(), false),
    }
}

fn split(joined: &str, line: usize, escape: char) -> Instruction {
    let joined = joined.trim();
    let (name, rest) = joined.split_once(char::is_whitespace).unwrap_or((joined, ""));
    let (flags, rest) = flags(rest, escape);
    Instruction {
        line,
        end: line,
        name: name.to_ascii_uppercase(),
        flags,
        rest: rest.to_owned(),
        here_documents: Vec::new(),
    }
}

/// The words at the front that begin with `--`, and the rest. `--` alone ends them.
fn flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim();
    while rest.starts_with("--") {
        let mut flag = String::new();
        let mut quote = None;
        let mut end = rest.len();
        let mut chars = rest.char_indices();
        while let Some((at, c)) = chars.next() {
            if c == escape && quote != Some('\'') {
                flag.extend(chars.next().map(|(_, escaped)| escaped));
                continue;
            }
            match quote {
                Some(open) if c == open => quote = None,
                None if c == '"' || c == '\'' => quote = Some(c),
                None if c.is_whitespace() => {
                    end = at;
                    break;
                }
                _ => {}
            }
            flag.push(c);
        }
        let (_, after) = rest.split_at(end);
        rest = after.trim_start();
        if flag == "--" {
            break;
        }
        flags.push(flag);
    }
    (flags, rest)
}

/// The here-documents that an instruction's line opens, without their content.
fn opened(instruction: &Instruction, joined: &str) -> Vec<HereDocument> {
    let may = ["RUN", "COPY", "ADD", "ONBUILD"].contains(&instruction.name.as_str());
    if !may || !joined.contains("<<") {
        return Vec::new();
    }
    words::raw(joined).iter().filter_map(|word| operator(word)).collect()
}

/// Reads a word such as `<<EOF`, `<<-"EOF"` or `3<<EOF`.
pub(crate) fn operator(word: &str) -> Option<HereDocument> {
    let descriptor_end = word.find(|c: char| !c.is_ascii_digit())?;
    let (descriptor, rest) = word.split_at(descriptor_end);
    let rest = rest.strip_prefix("<<")?;
    let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let name = words::unquoted(rest);
    let quotes = |text: &str| text.chars().filter(|c| ['"', '\''].contains(c)).count();
    let expand = quotes(&name) == quotes(rest);
    Some(HereDocument { name, expand, chomp, descriptor: descriptor.to_owned(), content: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Instruction {
        let mut all = parse(text).unwrap().instructions;
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    #[test]
    fn comments_and_empty_lines_inside_an_instruction_are_no_part_of_it() {
        let run = one("RUN a \\\n  # why\n\n  && b\n");
        assert_eq!((run.name.as_str(), run.rest.as_str()), ("RUN", "a   && b"));
        assert_eq!((run.line, run.end), (1, 4));
    }

    #[test]
    fn an_escaped_escape_continues_nothing() {
        let all = parse("RUN a\\\\\nRUN b").unwrap().instructions;
        assert_eq!(all[0].rest, "a\\\\");
        assert_eq!(all[1].rest, "b");
    }

    #[test]
    fn the_escape_character_is_what_the_directive_says() {
        let file = parse("# syntax=docker/dockerfile:1\n# escape=`\nRUN a `\n b\\\nRUN c").unwrap();
        assert_eq!(file.instructions[0].rest, "a  b\\");
        assert_eq!(file.instructions.len(), 2);
        let wrong = parse("# escape=x\nRUN a").unwrap_err();
        assert_eq!(wrong.to_string(), "line 1: `x` cannot be the escape character");
        // After an ordinary comment it is a comment, too.
        assert_eq!(parse("# hello\n# escape=`\nRUN a").unwrap().escape, '\\');
    }

    #[test]
    fn flags_end_with_the_first_word_that_is_none() {
        let copy = one("copy --from=a --chown=\"x y\" a --b c");
        assert_eq!(copy.name, "COPY");
        assert_eq!(copy.flags, ["--from=a", "--chown=\"x y\""]);
        assert_eq!(copy.rest, "a --b c");
        assert_eq!(one("RUN -- --a").rest, "--a");
    }

    #[test]
    fn here_documents_are_read_with_their_names() {
        let run = one("RUN <<A cat <<-'B' > /x\na # kept\n\nA\n\tb\n\tB\n");
        assert_eq!(run.here_documents.len(), 2);
        assert_eq!(run.here_documents[0].content, "a # kept\n\n");
        assert!(run.here_documents[0].expand);
        assert!(!run.here_documents[1].expand);
        assert_eq!(run.here_documents[1].text(), "b\n");
        assert_eq!(run.end, 6);
        let open = parse("FROM a\nRUN <<EOF\nx\n").unwrap_err();
        assert_eq!(open.to_string(), "line 2: the here-document `EOF` does not end");
        assert!(one("RUN a << EOF").here_documents.is_empty());
        assert!(one("RUN a <<< EOF").here_documents.is_empty());
        assert_eq!(one("ONBUILD RUN <<EOF\nx\nEOF").here_documents.len(), 1);
    }

    #[test]
    fn what_is_unknown_is_kept_with_its_line() {
        let file = parse("FROM a\n\nFETCH b\nRUN c").unwrap();
        assert_eq!((file.instructions[1].name.as_str(), file.instructions[1].line), ("FETCH", 3));
        assert_eq!(parse("# nothing\n\n"), Err(ParseError::Empty));
    }

    #[test]
    fn windows_line_ends_and_a_byte_order_mark_change_nothing() {
        let one = parse("\u{feff}FROM a\r\nRUN b \\\r\n  c\r\n").unwrap();
        assert_eq!(one, parse("FROM a\nRUN b \\\n  c\n").unwrap());
    }
}
