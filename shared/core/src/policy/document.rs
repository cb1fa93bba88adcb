//! YAML with places: what was wrong where, and reading fields so that nothing wrong goes by.

use std::collections::HashSet;
use std::error::Error;
use std::fmt;

use saphyr::{LoadableYamlNode as _, MarkedYaml, Marker, Scalar, YamlData};

use super::pattern::PROJECT;

/// Largest document, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Deepest indentation, in columns, of all but comments. Bounds the nesting, and with it the stack that the
/// YAML parser takes.
pub const MAX_INDENT: usize = 40;
/// No field's name comes close; the distance to longer ones is not worth its time.
const LONGEST_GUESS: usize = 40;
/// What to do about `{project}/caches`, which YAML takes for fields.
const BRACES: &str = "; a value that starts with `{` has to be in quotes";

/// One thing that is wrong with a document, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The field, such as `projects[1].warm.stale-after`; empty for the document itself.
    pub path: String,
    /// What is wrong, and what would be right.
    pub text: String,
}

/// All that is wrong with a document, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    source: String,
    all: Vec<Mistake>,
}

impl Mistakes {
    pub(super) fn new(source: &str, mut all: Vec<Mistake>) -> Self {
        all.sort_by_key(|mistake| (mistake.line, mistake.column));
        Self { source: source.to_owned(), all }
    }

    /// The mistakes, in the order of the document.
    pub fn iter(&self) -> std::slice::Iter<'_, Mistake> {
        self.all.iter()
    }
}

impl<'m> IntoIterator for &'m Mistakes {
    type Item = &'m Mistake;
    type IntoIter = std::slice::Iter<'m, Mistake>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Mistake { line, column, path, text } in &self.all {
            let colon = if path.is_empty() { "" } else { ": " };
            writeln!(f, "{}:{line}:{column}: {path}{colon}{text}", self.source)?;
        }
        match self.all.len() {
            1 => f.write_str("1 mistake: the policy is not used until it is corrected"),
            n => write!(f, "{n} mistakes: the policy is not used until all are corrected"),
        }
    }
}

impl Error for Mistakes {}

/// A place in the document.
#[derive(Debug, Clone)]
pub(super) struct Place {
    line: usize,
    column: usize,
    path: String,
}

impl Place {
    /// Somewhere in the document itself.
    pub(super) fn at(line: usize, column: usize) -> Self {
        Self { line, column, path: String::new() }
    }

    fn marked(marker: Marker, path: String) -> Self {
        Self { line: marker.line(), column: marker.col() + 1, path }
    }

    /// The same place, seen as that of a field.
    pub(super) fn field(&self, name: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self { path: format!("{}{dot}{name}", self.path), ..self.clone() }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn mistake(&self, text: impl Into<String>) -> Mistake {
        let Self { line, column, path } = self.clone();
        Mistake { line, column, path, text: text.into() }
    }
}

/// A value and its place.
#[derive(Debug)]
pub(super) struct Node<'y> {
    pub(super) place: Place,
    data: &'y YamlData<'y, MarkedYaml<'y>>,
}

impl<'y> Node<'y> {
    pub(super) fn root(yaml: &'y MarkedYaml<'y>) -> Self {
        Self::new(yaml, String::new())
    }

    fn new(yaml: &'y MarkedYaml<'y>, path: String) -> Self {
        Self { place: Place::marked(yaml.span.start, path), data: &yaml.data }
    }

    /// A list is written here, and nothing is in it.
    pub(super) fn is_empty_list(&self) -> bool {
        matches!(self.data, YamlData::Sequence(items) if items.is_empty())
    }

    /// Nothing is written here, which YAML reads as null.
    fn is_empty(&self) -> bool {
        matches!(self.data, YamlData::Value(Scalar::Null))
    }

    pub(super) fn integer(&self) -> Option<i64> {
        self.data.as_integer()
    }

    pub(super) fn expected(&self, what: &str) -> Mistake {
        let (seen, trigger) = match self.data {
            YamlData::Value(Scalar::Null) => ("nothing", ""),
            YamlData::Value(Scalar::Boolean(_)) => ("a boolean", "; put it in quotes"),
            YamlData::Value(Scalar::Integer(_) | Scalar::FloatingPoint(_)) => {
                ("a number", "; put it in quotes")
            }
            YamlData::Value(Scalar::String(_)) | YamlData::Representation(..) => ("text", ""),
            YamlData::Sequence(_) => ("a list", ""),
            YamlData::Mapping(_) => ("fields", BRACES),
            YamlData::Tagged(..) | YamlData::Alias(_) | YamlData::BadValue => {
                ("a tagged value", "; a value that starts with `!` has to be in quotes")
            }
        };
        let trigger = if what == "text" { trigger } else { "" };
        self.place.mistake(format!("expected {what}, found {seen}{trigger}"))
    }

    fn text(&self) -> Result<&'y str, Mistake> {
        match self.data {
            YamlData::Value(Scalar::String(text)) => Ok(text),
            _ => Err(self.expected("text")),
        }
    }

    fn flag(&self) -> Result<bool, Mistake> {
        match self.data {
            YamlData::Value(Scalar::Boolean(value)) => Ok(*value),
            YamlData::Value(Scalar::String(text)) => Err(self.place.mistake(no_flag(text))),
            _ => Err(self.expected("`true` or `false`")),
        }
    }

    /// The entries of a list; one with nothing in it is empty.
    pub(super) fn list(&self, found: &mut Vec<Mistake>) -> Vec<Node<'y>> {
        let YamlData::Sequence(items) = self.data else {
            if !self.is_empty() {
                found.push(self.expected("a list"));
            }
            return Vec::new();
        };
        let item = |(i, yaml)| Node::new(yaml, format!("{}[{i}]", self.place.path));
        items.iter().enumerate().map(item).collect()
    }

    /// The entries of a list that has no more than `most`.
    pub(super) fn short_list(&self, most: usize, found: &mut Vec<Mistake>) -> Vec<Node<'y>> {
        let mut entries = self.list(found);
        if entries.len() > most {
            found.push(self.place.mistake(format!("{} entries, more than {most}", entries.len())));
            entries.truncate(most);
        }
        entries
    }

    /// The values of a list of at most so many texts, each of which is there once.
    pub(super) fn texts<T>(
        &self,
        most: usize,
        parse: impl Fn(&str) -> Result<T, String>,
        found: &mut Vec<Mistake>,
    ) -> Vec<T> {
        let mut seen = HashSet::new();
        let mut values = Vec::new();
        for entry in self.short_list(most, found) {
            match entry.text() {
                Ok(text) if !seen.insert(text) => {
                    found.push(entry.place.mistake(format!("`{}` is there twice", shown(text))));
                }
                _ => values.extend(read(&entry, &parse, found)),
            }
        }
        values
    }

    /// The fields of a section; one with nothing in it has none.
    pub(super) fn fields(&self, known: &[&str], found: &mut Vec<Mistake>) -> Fields<'y> {
        let mut fields = Fields { place: self.place.clone(), entries: Vec::new(), is_wrong: false };
        let YamlData::Mapping(mapping) = self.data else {
            fields.is_wrong = !self.is_empty();
            if fields.is_wrong {
                found.push(self.expected("fields"));
            }
            return fields;
        };
        for (key, value) in mapping {
            let key = Node::new(key, self.place.path.clone());
            match key.text() {
                Ok(name) if known.contains(&name) => {
                    fields.entries.push((name, Node::new(value, self.place.field(name).path)));
                }
                Ok(name) => found.push(key.place.mistake(unknown_field(name, known))),
                Err(_) => found.push(key.expected("the name of a field")),
            }
        }
        fields
    }
}

/// The known fields of a section.
#[derive(Debug)]
pub(super) struct Fields<'y> {
    pub(super) place: Place,
    entries: Vec<(&'y str, Node<'y>)>,
    /// Something else is written here, and has been reported.
    is_wrong: bool,
}

impl<'y> Fields<'y> {
    pub(super) fn get(&self, name: &str) -> Option<&Node<'y>> {
        self.entries.iter().find(|(own, _)| *own == name).map(|(_, node)| node)
    }

    /// The place of a field in the sections of this one, such as `builds.forks.build`, if it is written there.
    pub(super) fn place_of(&self, path: &str) -> Option<Place> {
        let mut names = path.split('.');
        let first = self.get(names.next()?)?;
        let mut place = first.place.clone();
        let mut data = first.data;
        for name in names {
            let YamlData::Mapping(mapping) = data else { return None };
            let is_field = |key: &MarkedYaml<'_>| key.data.as_str() == Some(name);
            let (_, value) = mapping.iter().find(|(key, _)| is_field(key))?;
            place = Place::marked(value.span.start, place.field(name).path);
            data = &value.data;
        }
        Some(place)
    }

    /// The field that must be there.
    pub(super) fn require(&self, name: &str, found: &mut Vec<Mistake>) -> Option<&Node<'y>> {
        let field = self.get(name);
        if field.is_none() && !self.is_wrong {
            found.push(self.place.mistake(format!("the field `{name}` is missing")));
        }
        field
    }

    /// The fields of a section in this one.
    pub(super) fn section(&self, name: &str, known: &[&str], found: &mut Vec<Mistake>) -> Fields<'y> {
        match self.get(name) {
            Some(node) => node.fields(known, found),
            None => Fields { place: self.place.field(name), entries: Vec::new(), is_wrong: false },
        }
    }

    /// Puts a field's value into `target`, if the field is there and right.
    pub(super) fn set<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
        target: &mut T,
        found: &mut Vec<Mistake>,
    ) {
        if let Some(value) = self.get(name).and_then(|node| read(node, parse, found)) {
            *target = value;
        }
    }

    /// As [`Fields::set`], for `true` and `false`.
    pub(super) fn set_flag(&self, name: &str, target: &mut bool, found: &mut Vec<Mistake>) {
        match self.get(name).map(Node::flag) {
            Some(Ok(value)) => *target = value,
            Some(Err(mistake)) => found.push(mistake),
            None => {}
        }
    }

    /// As [`Fields::set`], for a number of at least `least` and at most a million.
    pub(super) fn set_count(&self, name: &str, least: u32, target: &mut u32, found: &mut Vec<Mistake>) {
        const MOST: u32 = 1_000_000;
        let Some(node) = self.get(name) else { return };
        let number = node.integer().and_then(|number| u32::try_from(number).ok());
        match number.filter(|number| (least..=MOST).contains(number)) {
            Some(number) => *target = number,
            None => found.push(node.expected(&format!("a whole number from {least} to {MOST}"))),
        }
    }

    /// As [`Fields::set`], for a list of at most so many texts: it replaces the whole list.
    pub(super) fn set_list<T>(
        &self,
        name: &str,
        most: usize,
        parse: impl Fn(&str) -> Result<T, String>,
        target: &mut Vec<T>,
        found: &mut Vec<Mistake>,
    ) {
        if let Some(node) = self.get(name) {
            *target = node.texts(most, parse, found);
        }
    }
}

/// The value of a field that is text.
pub(super) fn read<T>(
    node: &Node<'_>,
    parse: impl FnOnce(&str) -> Result<T, String>,
    found: &mut Vec<Mistake>,
) -> Option<T> {
    let value = node.text().and_then(|text| parse(text).map_err(|wrong| node.place.mistake(wrong)));
    value.map_err(|mistake| found.push(mistake)).ok()
}

/// The start of a text, safe to print.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

/// What is wrong with a text in the place of `true` or `false`.
fn no_flag(text: &str) -> String {
    let right = match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "y" | "on" => "`true`",
        "false" | "no" | "n" | "off" => "`false`",
        _ => "`true` or `false`",
    };
    format!("`{}` is text; write {right}, without quotes", shown(text))
}

fn unknown_field(name: &str, known: &[&str]) -> String {
    let guesses = known.iter().filter(|_| name.len() <= LONGEST_GUESS);
    let near =
        guesses.map(|field| (edits(name, field), field)).filter(|(edits, field)| *edits <= field.len() / 2);
    match near.min() {
        Some((_, field)) => format!("there is no field `{}` here; did you mean `{field}`?", shown(name)),
        None => format!("there is no field `{}` here, only `{}`", shown(name), known.join("`, `")),
    }
}

/// How many characters have to be put in, taken out or replaced to make one text the other.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Loads the one document in a text.
pub(super) fn load(text: &str) -> Result<MarkedYaml<'_>, Mistake> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    check_bounds(text)?;
    let documents = MarkedYaml::load_from_str(text).map_err(|error| {
        let place = Place::marked(*error.marker(), String::new());
        let line = text.lines().nth(place.line.saturating_sub(1)).unwrap_or_default();
        let before: String = line.chars().take(place.column - 1).collect();
        let trigger = match line.chars().nth(place.column - 1) {
            Some('*') => "; a value that starts with `*` has to be in quotes",
            _ if before.trim_end().ends_with(PROJECT) => BRACES,
            _ => "",
        };
        place.mistake(format!("this is not a YAML document: {}{trigger}", error.info()))
    })?;
    if let Some(second) = documents.get(1) {
        let place = Place::marked(second.span.start, String::new());
        return Err(place.mistake("a second document starts before this; a policy is one document"));
    }
    match documents.into_iter().next() {
        Some(yaml) if yaml.data.is_mapping() && !matches!(yaml.data, YamlData::Tagged(..)) => Ok(yaml),
        Some(yaml) if !Node::root(&yaml).is_empty() => Err(Node::root(&yaml).expected("fields")),
        _ => Err(Place::at(1, 1).mistake("the document is empty; it starts with `version: 1`")),
    }
}

/// Refuses what would take the YAML parser more memory or stack than a policy is worth.
///
/// The parser recurses over nested collections and copies every anchored one as it goes, each without a limit that
/// holds. Blocks nest by indentation, and flow collections to a depth that the parser does limit.
fn check_bounds(text: &str) -> Result<(), Mistake> {
    if text.len() > MAX_BYTES {
        let wrong = format!("the document has {} bytes, more than {MAX_BYTES}", text.len());
        return Err(Place::at(1, 1).mistake(wrong));
    }
    for (line, content) in (1..).zip(text.split('\n')) {
        if content.contains('\0') || content.trim_end_matches('\r').contains('\r') {
            return Err(Place::at(line, 1).mistake("this line has a control character in it"));
        }
        let indent = content.chars().take_while(|c| " \t-?:".contains(*c)).count();
        if indent > MAX_INDENT && !content.trim_start_matches([' ', '\t']).starts_with('#') {
            return Err(Place::at(line, 1).mistake(format!("indented by more than {MAX_INDENT} columns")));
        }
        if let Some(column) = anchor_in(content) {
            let wrong =
                "`&` before a word is an anchor in YAML, and a policy has none: write the value again";
            return Err(Place::at(line, column).mistake(wrong));
        }
    }
    Ok(())
}

/// The column of what may be an anchor: comments and quotes are not told apart, so that none is overlooked.
fn anchor_in(line: &str) -> Option<usize> {
    let mut before = ' ';
    let mut chars = line.chars().zip(line.chars().skip(1)).zip(1..);
    let starts_a_name = |((c, after), column): ((char, char), usize)| {
        let is_anchor = c == '&' && !before.is_alphanumeric() && !after.is_whitespace();
        before = c;
        is_anchor.then_some(column)
    };
    chars.find_map(starts_a_name)
}
