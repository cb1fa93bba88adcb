//! Patterns of paths: Go's `filepath.Match`, the shell's, and those of a `.dockerignore`.

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// Any one character but `/`.
    One,
    /// Any one character.
    Any,
    /// Any number of characters but `/`.
    Name,
    /// Any number of characters.
    Deep,
    /// Nothing, or any number of characters and a `/`: the regular expression `(.*/)?`.
    Directories,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// Go's `filepath.Match`, in which `**` is the same as `*`. Nothing if the pattern is wrong.
    pub(crate) fn path(pattern: &str) -> Option<Self> {
        compile(pattern, false)
    }

    /// A pattern of a `.dockerignore`, in which `**` stands for any number of directories.
    pub(crate) fn ignore(pattern: &str) -> Option<Self> {
        // What follows a leading `**` without wildcards is a mere ending: `**b` matches `ab`.
        if let Some(ending) = pattern.strip_prefix("**")
            && !ending.starts_with('/')
            && !ending.contains(['*', '?', '[', ']', '\\'])
        {
            return Some(Self([Token::Deep].into_iter().chain(ending.chars().map(Token::Char)).collect()));
        }
        compile(pattern, true)
    }

    /// A pattern of the shell, in which `*` matches `/`, too.
    pub(crate) fn shell(pattern: &str) -> Self {
        let mut tokens = Vec::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Deep,
                '?' => Token::Any,
                '\\' => Token::Char(chars.next().unwrap_or('\\')),
                c => Token::Char(c),
            });
        }
        Self(tokens)
    }

    /// Whether the pattern matches the whole text.
    pub(crate) fn matches(&self, text: &str) -> bool {
        matches(&self.0, text)
    }
}

/// Whether a path has characters that make it a pattern.
pub(crate) fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => {
                chars.next();
            }
            _ => {}
        }
    }
    false
}

fn compile(pattern: &str, deep: bool) -> Option<Glob> {
    let mut tokens = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' if deep && chars.next_if_eq(&'*').is_some() => {
                chars.next_if_eq(&'/');
                if chars.peek().is_none() { Token::Deep } else { Token::Directories }
            }
            '*' => Token::Name,
            '?' => Token::One,
            '\\' => Token::Char(chars.next()?),
            '[' => class(&mut chars)?,
            c => Token::Char(c),
        });
    }
    Some(Glob(tokens))
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let first = match chars.next()? {
            ']' if !ranges.is_empty() => return Some(Token::Class { negated, ranges }),
            ']' | '-' => return None,
            '\\' => chars.next()?,
            c => c,
        };
        let mut last = first;
        if chars.next_if_eq(&'-').is_some() {
            last = match chars.next()? {
                ']' | '-' => return None,
                '\\' => chars.next()?,
                c => c,
            };
        }
        ranges.push((first, last));
    }
}

fn matches(tokens: &[Token], text: &str) -> bool {
    let Some((token, rest)) = tokens.split_first() else { return text.is_empty() };
    let tails = || text.char_indices().map(|(at, c)| (text.split_at(at).1, c));
    match token {
        Token::Deep => rest.is_empty() || matches(rest, "") || tails().any(|(tail, _)| matches(rest, tail)),
        Token::Name => {
            let mut at = text;
            loop {
                if matches(rest, at) {
                    return true;
                }
                match at.chars().next() {
                    Some(c) if c != '/' => at = at.split_at(c.len_utf8()).1,
                    _ => return false,
                }
            }
        }
        Token::Directories => {
            matches(rest, text) || tails().any(|(tail, c)| c == '/' && matches(rest, tail.split_at(1).1))
        }
        Token::Char(_) | Token::One | Token::Any | Token::Class { .. } => {
            let Some(c) = text.chars().next() else { return false };
            let fits = match token {
                Token::Char(wanted) => c == *wanted,
                Token::One => c != '/',
                Token::Class { negated, ranges } => {
                    c != '/' && ranges.iter().any(|(first, last)| (*first..=*last).contains(&c)) != *negated
                }
                _ => true,
            };
            fits && matches(rest, text.split_at(c.len_utf8()).1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_segment_by_segment() {
        for (pattern, path, expected) in [
            ("package*.json", "package-lock.json", true),
            ("*", "a", true),
            ("*", "a/b", false),
            ("a/*/c", "a/b/c", true),
            ("**", "a/b", false),
            ("[a-c]?", "bx", true),
            ("[^a]", "a", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
        ] {
            assert_eq!(Glob::path(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        }
        assert_eq!(Glob::path("[a"), None);
        assert_eq!(Glob::path("a\\"), None);
        assert!(has_wildcards("a*") && !has_wildcards("a\\*"));
    }

    #[test]
    fn ignore_patterns_match_directories_with_two_stars() {
        for (pattern, path, expected) in [
            ("**", "a/b", true),
            ("**/a", "a", true),
            ("**/a", "b/c/a", true),
            ("**/a", "ba", false),
            ("**a", "ba", true),
            ("**/*.log", "x/y.log", true),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a**b", "ax/b", true),
            ("a**b", "axb", false),
            ("a.c", "abc", false),
        ] {
            assert_eq!(Glob::ignore(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        }
    }
}
