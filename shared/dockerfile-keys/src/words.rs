//! Words, quotes and variables, as `frontend/dockerfile/shell` has them.

use crate::glob::Glob;

/// Variables in the order in which they were set; one that is set again moves to the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Variables(Vec<(String, String)>);

impl Variables {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Expands variables and takes quotes away.
pub(crate) fn expand(text: &str, variables: &Variables, escape: char) -> Result<String, String> {
    Reader::new(text, variables, escape).until(None)
}

/// Expands the variables of a here-document, in which quotes are characters like any other.
pub(crate) fn expand_document(text: &str, variables: &Variables) -> Result<String, String> {
    Reader { keeps_quotes: true, ..Reader::new(text, variables, '\\') }.until(None)
}

/// Cuts at white space outside quotes; quotes and escapes stay.
pub(crate) fn raw(text: &str) -> Vec<String> {
    split(text, '\\')
}

/// Cuts at white space outside quotes; quotes and escapes stay.
pub(crate) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == escape && quote != Some('\'') {
            word.push(c);
            word.extend(chars.next());
            continue;
        }
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// A word without its quotes and escapes.
pub(crate) fn unquoted(word: &str) -> String {
    let none = Variables::default();
    let reader = Reader { keeps_unset: true, ..Reader::new(word, &none, '\\') };
    reader.until(None).unwrap_or_else(|_| word.to_owned())
}

/// A list of strings in JSON, or nothing if it is none: then the text is for a shell.
pub(crate) fn json(text: &str) -> Option<Vec<String>> {
    let mut chars = text.trim().strip_prefix('[')?.chars().peekable();
    let mut words = Vec::new();
    loop {
        while chars.next_if(char::is_ascii_whitespace).is_some() {}
        match chars.next()? {
            ']' if words.is_empty() => break,
            '"' => words.push(json_string(&mut chars)?),
            _ => return None,
        }
        while chars.next_if(char::is_ascii_whitespace).is_some() {}
        match chars.next()? {
            ',' => {}
            ']' => break,
            _ => return None,
        }
    }
    chars.next().is_none().then_some(words)
}

fn json_string(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    let mut string = String::new();
    loop {
        match chars.next()? {
            '"' => return Some(string),
            '\\' => string.push(match chars.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'u' => {
                    let digits: String = chars.by_ref().take(4).collect();
                    char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?
                }
                c @ ('"' | '\\' | '/') => c,
                _ => return None,
            }),
            c if u32::from(c) < 0x20 => return None,
            c => string.push(c),
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    variables: &'a Variables,
    escape: char,
    /// Quotes are no quotes.
    keeps_quotes: bool,
    /// A variable that is not set stays as it is written.
    keeps_unset: bool,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, variables: &'a Variables, escape: char) -> Self {
        let chars = text.chars().peekable();
        Self { text, chars, variables, escape, keeps_quotes: false, keeps_unset: false }
    }

    fn open(&self, what: &str) -> String {
        format!("`{}` has a {what} that is not closed", self.text)
    }

    fn until(mut self, stop: Option<char>) -> Result<String, String> {
        self.read(stop)
    }

    fn read(&mut self, stop: Option<char>) -> Result<String, String> {
        let mut out = String::new();
        loop {
            let Some(c) = self.chars.next() else {
                return if stop.is_some() { Err(self.open("brace")) } else { Ok(out) };
            };
            match c {
                c if Some(c) == stop => return Ok(out),
                '\'' if !self.keeps_quotes => self.single(&mut out)?,
                '"' if !self.keeps_quotes => self.double(&mut out)?,
                '$' => self.dollar(&mut out)?,
                c if c == self.escape => out.extend(self.chars.next()),
                c => out.push(c),
            }
        }
    }

    fn single(&mut self, out: &mut String) -> Result<(), String> {
        loop {
            match self.chars.next() {
                None => return Err(self.open("quote")),
                Some('\'') => return Ok(()),
                Some(c) => out.push(c),
            }
        }
    }

    fn double(&mut self, out: &mut String) -> Result<(), String> {
        loop {
            match self.chars.next() {
                None => return Err(self.open("quote")),
                Some('"') => return Ok(()),
                Some('$') => self.dollar(out)?,
                Some(c) if c == self.escape => match self.chars.next() {
                    None => out.push(c),
                    Some(next) if next == '"' || next == '$' || next == self.escape => out.push(next),
                    Some(next) => out.extend([c, next]),
                },
                Some(c) => out.push(c),
            }
        }
    }

    fn dollar(&mut self, out: &mut String) -> Result<(), String> {
        if self.chars.next_if_eq(&'{').is_some() {
            return self.braced(out);
        }
        let name = self.name();
        match (name.as_str(), self.variables.get(&name)) {
            ("", _) => out.push('$'),
            (_, Some(value)) => out.push_str(value),
            (_, None) if self.keeps_unset => out.extend(["$", &name]),
            (_, None) => {}
        }
        Ok(())
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        if let Some(c) = self.chars.next_if(|c| c.is_ascii_alphabetic() || *c == '_') {
            name.push(c);
            while let Some(c) = self.chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                name.push(c);
            }
        } else if let Some(c) = self.chars.next_if(|c| c.is_ascii_digit() || "@*#?-!".contains(*c)) {
            // The shell's own, which a Dockerfile never sets.
            name.push(c);
        }
        name
    }

    fn braced(&mut self, out: &mut String) -> Result<(), String> {
        let name = self.name();
        let value = self.variables.get(&name).map(str::to_owned);
        let set = value.clone().unwrap_or_default();
        match self.chars.next() {
            Some('}') => match value {
                None if self.keeps_unset => out.extend(["${", &name, "}"]),
                _ => out.push_str(&set),
            },
            Some(':') => {
                let operator = self.chars.next().ok_or_else(|| self.open("brace"))?;
                let word = self.read(Some('}'))?;
                self.choose(operator, !set.is_empty(), &set, &word, out)?;
            }
            Some(operator @ ('-' | '+' | '?')) => {
                let word = self.read(Some('}'))?;
                self.choose(operator, value.is_some(), &set, &word, out)?;
            }
            Some(end @ ('#' | '%')) => {
                let longest = self.chars.next_if_eq(&end).is_some();
                let pattern = self.read(Some('}'))?;
                out.push_str(trimmed(&set, &Glob::shell(&pattern), end == '#', longest));
            }
            Some('/') => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let pattern = self.read(Some('/'))?;
                let by = self.read(Some('}'))?;
                out.push_str(&replaced(&set, &Glob::shell(&pattern), &by, all));
            }
            Some(other) => return Err(format!("`{other}` is no modifier of a variable in `{}`", self.text)),
            None => return Err(self.open("brace")),
        }
        Ok(())
    }

    fn choose(
        &self,
        operator: char,
        has: bool,
        value: &str,
        word: &str,
        out: &mut String,
    ) -> Result<(), String> {
        match (operator, has) {
            ('-' | '?', true) => out.push_str(value),
            ('-', false) | ('+', true) => out.push_str(word),
            ('+', false) => {}
            ('?', false) => return Err(format!("`{}` needs a variable that is not set", self.text)),
            _ => return Err(format!("`{operator}` is no modifier of a variable in `{}`", self.text)),
        }
        Ok(())
    }
}

/// Where a text can be cut: its characters' places, and its end.
fn cuts(text: &str) -> impl DoubleEndedIterator<Item = usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()])
}

/// The value without the shortest or longest match of a pattern at its front or end.
fn trimmed<'a>(value: &'a str, pattern: &Glob, front: bool, longest: bool) -> &'a str {
    let cut = |at: usize| {
        let (before, after) = value.split_at(at);
        let (matched, kept) = if front { (before, after) } else { (after, before) };
        pattern.matches(matched).then_some(kept)
    };
    // The longest match at the front, and the shortest at the end, are found from the end.
    let found = if front == longest { cuts(value).rev().find_map(cut) } else { cuts(value).find_map(cut) };
    found.unwrap_or(value)
}

fn replaced(value: &str, pattern: &Glob, by: &str, all: bool) -> String {
    let mut out = String::new();
    let mut rest = value;
    while let Some(c) = rest.chars().next() {
        let matched = cuts(rest).rev().filter(|at| *at > 0).find(|at| pattern.matches(rest.split_at(*at).0));
        if let Some(at) = matched {
            out.push_str(by);
            rest = rest.split_at(at).1;
            if !all {
                break;
            }
        } else {
            out.push(c);
            rest = rest.split_at(c.len_utf8()).1;
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        let mut all = Variables::default();
        for (name, value) in [("A", "1"), ("EMPTY", ""), ("FILE", "a.tar.gz"), ("P", "linux/arm64/v8")] {
            all.set(name, value);
        }
        all
    }

    fn expanded(text: &str) -> String {
        expand(text, &variables(), '\\').unwrap()
    }

    #[test]
    fn variables_are_expanded_as_the_reference_says() {
        for (text, expected) in [
            ("$A-${A}b", "1-1b"),
            ("$NONE|${NONE}", "|"),
            ("'$A' \"$A\" \\$A", "$A 1 $A"),
            ("\"a\\\"b\\c\"", "a\"b\\c"),
            ("${NONE:-x$A} ${EMPTY:-y} ${EMPTY-z}", "x1 y "),
            ("${A:+yes}${EMPTY:+no}${EMPTY+set}", "yesset"),
            ("${FILE%.*} ${FILE%%.*} ${FILE#*.} ${FILE##*.}", "a.tar a tar.gz gz"),
            ("${P//\\//-} ${P/\\//_}", "linux-arm64-v8 linux_arm64/v8"),
            ("100$", "100$"),
        ] {
            assert_eq!(expanded(text), expected, "{text}");
        }
        for wrong in ["${A", "'a", "\"a", "${NONE:?}", "${A!}"] {
            assert!(expand(wrong, &variables(), '\\').is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_variable_that_is_set_again_moves_to_the_end() {
        let mut all = variables();
        all.set("A", "2");
        assert_eq!(all.iter().last(), Some(("A", "2")));
        assert_eq!(all.get("A"), Some("2"));
    }

    #[test]
    fn a_list_is_json_or_the_text_is_for_a_shell() {
        assert_eq!(json(r#"["a", "b\n\u0041"]"#), Some(vec!["a".to_owned(), "b\nA".to_owned()]));
        assert_eq!(json("[]"), Some(Vec::new()));
        for shell in ["[ -e a ]", "['a']", r#"["a"] b"#, r#"["a""#, r#"["a",]"#] {
            assert_eq!(json(shell), None, "{shell}");
        }
    }

    #[test]
    fn words_are_cut_outside_quotes() {
        assert_eq!(split("a 'b c' d\\ e \"f g\"", '\\'), ["a", "'b c'", "d\\ e", "\"f g\""]);
        assert_eq!(unquoted("'E'O\"F\""), "EOF");
    }
}
