//! The filter groups of CodeBuild's webhooks, as `builds` of the policy: the table of docs/threat-model.md ("What
//! starts a build"). What comes out lets in no event that the groups keep out; what cannot be said that way is named.

use std::collections::{BTreeMap, BTreeSet};

/// A filter of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// CodeBuild's word, such as `HEAD_REF`.
    pub kind: String,
    /// A regular expression, or the events of an `EVENT`.
    pub pattern: String,
    /// Whether what matches is kept out: `excludeMatchedPattern`.
    pub excludes: bool,
}

/// What the policy says instead of filter groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Translation {
    /// Fields of `builds` with their values, as YAML on one line.
    pub builds: Vec<(&'static str, String)>,
    /// What is not built that was, and why.
    pub lost: Vec<String>,
}

/// More globs than this of one pattern are nobody's.
const MOST: usize = 20;
const PULLS: [(&str, &str); 3] = [
    ("PULL_REQUEST_CREATED", "pull-request-created"),
    ("PULL_REQUEST_UPDATED", "pull-request-updated"),
    ("PULL_REQUEST_REOPENED", "pull-request-reopened"),
];

/// What a group lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parsed {
    push: bool,
    pulls: BTreeSet<&'static str>,
    tag: bool,
    /// Globs by the policy's field, those that exclude with `!`.
    globs: BTreeMap<&'static str, Vec<String>>,
}

/// Says filter groups in the policy's words, for a repository with this default branch. No group at all is every push
/// and pull request, as it is for the policy.
#[must_use]
pub fn translate(groups: &[Vec<Filter>], default_branch: &str) -> Translation {
    let mut lost = Vec::new();
    if groups.is_empty() {
        return Translation::default();
    }
    let mut parsed: Vec<Parsed> = Vec::new();
    for (at, group) in groups.iter().enumerate() {
        match parse(group) {
            Ok((of_group, ignored)) => {
                lost.extend(ignored);
                parsed.extend(of_group);
            }
            Err(why) => lost.push(format!("filter group {} starts nothing: {why}", at + 1)),
        }
    }
    let (tags, others): (Vec<Parsed>, Vec<Parsed>) = parsed.into_iter().partition(|group| group.tag);
    let is_of_main = |group: &Parsed| {
        let only_main =
            group.globs.iter().all(|(key, globs)| *key == "branches" && *globs == [default_branch]);
        group.push && group.pulls.is_empty() && !group.globs.is_empty() && only_main
    };
    let (of_main, mut others): (Vec<Parsed>, Vec<Parsed>) = others.into_iter().partition(is_of_main);
    // Alternatives that differ in their events only are one; of others the first is taken, which lets in no more.
    let mut joined: Option<Parsed> = (!others.is_empty()).then(|| others.remove(0));
    if let Some(first) = &mut joined {
        for other in others {
            if other.globs == first.globs {
                first.push |= other.push;
                first.pulls.extend(other.pulls);
            } else {
                lost.push(
                    "of several filter groups with different patterns the first counts, as a policy is one group"
                        .to_owned(),
                );
            }
        }
    }
    let main_is_built = !of_main.is_empty();
    let mut all = joined.or_else(|| of_main.into_iter().next()).unwrap_or_else(|| Parsed {
        push: false,
        pulls: BTreeSet::new(),
        tag: false,
        globs: BTreeMap::new(),
    });
    if all.globs.contains_key("paths") || all.globs.contains_key("skip-paths") {
        if !all.push {
            lost.push("FILE_PATH of pull requests: no forge reports their files".to_owned());
            all.pulls.clear();
        } else if !all.pulls.is_empty() {
            lost.push(
                "pull requests are not built: no forge reports their files, which FILE_PATH asks for"
                    .to_owned(),
            );
            all.pulls.clear();
        }
    }
    // Of tags only their names are asked here; a group that asks for more has been refused.
    let mut names: Vec<String> = Vec::new();
    for group in &tags {
        names.extend(group.globs.get("tags").cloned().unwrap_or_else(|| vec!["*".to_owned()]));
    }
    if !tags.is_empty() && all.globs.keys().any(|key| ["actors", "messages"].contains(key)) {
        lost.push("of tags actors and messages are asked, too, as of everything else".to_owned());
    }
    finish(all, &names, main_is_built, default_branch, lost)
}

fn finish(
    mut all: Parsed,
    tags: &[String],
    main_is_built: bool,
    default_branch: &str,
    mut lost: Vec<String>,
) -> Translation {
    let mut on: Vec<&str> = Vec::new();
    on.extend(all.push.then_some("push"));
    on.extend(PULLS.iter().map(|(_, word)| *word).filter(|word| all.pulls.contains(word)));
    on.extend((!tags.is_empty()).then_some("tag"));
    if on.is_empty() {
        return Translation { builds: vec![("start", "false".to_owned())], lost };
    }
    if !all.push {
        let branches = all.globs.entry("branches").or_default();
        if main_is_built && branches.is_empty() {
            all.globs.remove("branches");
        } else {
            // Pushes of the default branch are built whatever `on` says.
            if !branches.iter().any(|glob| !glob.starts_with('!')) {
                branches.insert(0, "*".to_owned());
            }
            branches.push(format!("!{default_branch}"));
            if main_is_built {
                lost.push(format!("pushes of {default_branch} are built by warm-main, some minutes later"));
            }
        }
    }
    let list = |values: &[String]| {
        let quoted: Vec<String> = values.iter().map(|value| quoted(value)).collect();
        format!("[{}]", quoted.join(", "))
    };
    let mut builds = vec![("on", format!("[{}]", on.join(", ")))];
    if !tags.is_empty() && tags != ["*"] {
        builds.push(("tags", list(tags)));
    }
    for key in ["branches", "bases", "actors", "messages", "paths", "skip-paths"] {
        let Some(globs) = all.globs.get(key) else { continue };
        let includes = globs.iter().any(|glob| !glob.starts_with('!'));
        let mut globs = globs.clone();
        if !includes && key != "skip-paths" {
            globs.insert(0, "*".to_owned());
        }
        builds.push((key, list(&globs)));
        if key == "paths" {
            builds.push(("paths-unknown", "skip".to_owned()));
        }
    }
    Translation { builds, lost }
}

/// A string of YAML.
fn quoted(text: &str) -> String {
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/_.-".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !["true", "false", "null", "yes", "no", "on", "off"].contains(&text.to_ascii_lowercase().as_str());
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// What a group lets in; `None` where that is nothing which Stoker ever builds. Also what is left out of it, or why
/// nobody can say it.
fn parse(group: &[Filter]) -> Result<(Option<Parsed>, Vec<String>), String> {
    let mut parsed = Parsed { push: false, pulls: BTreeSet::new(), tag: false, globs: BTreeMap::new() };
    let mut ignored = Vec::new();
    let mut is_event = false;
    for filter in group.iter().filter(|filter| filter.kind == "EVENT") {
        is_event = true;
        for event in filter.pattern.split(',').map(str::trim) {
            match PULLS.iter().find(|(name, _)| *name == event) {
                Some((_, word)) => {
                    parsed.pulls.insert(word);
                }
                None if event == "PUSH" => parsed.push = true,
                None => ignored.push(format!("{event} starts no build of Stoker's")),
            }
        }
    }
    if !is_event {
        return Err("it names no EVENT".to_owned());
    }
    if !parsed.push && parsed.pulls.is_empty() {
        return Ok((None, ignored));
    }
    for filter in group.iter().filter(|filter| filter.kind != "EVENT") {
        let (key, globs) = globs_of(filter, &mut parsed)?;
        if globs.is_empty() {
            continue;
        }
        let kept = parsed.globs.entry(key).or_default();
        let is_again =
            kept.iter().any(|glob| !glob.starts_with('!')) && !filter.excludes && key != "skip-paths";
        if is_again && !globs.iter().all(|glob| glob.starts_with('!')) {
            return Err(format!("two filters of {} both have to match", filter.kind));
        }
        kept.extend(globs);
    }
    if parsed.tag && (!parsed.push || parsed.globs.keys().any(|key| *key != "tags")) {
        return Err("of tags a policy asks no more than their names".to_owned());
    }
    if parsed.tag {
        parsed.pulls.clear();
    }
    if parsed.globs.contains_key("bases") && parsed.push {
        return Err("BASE_REF is of pull requests, and PUSH has none".to_owned());
    }
    Ok((Some(parsed), ignored))
}

/// The policy's field for a filter, and its globs, which begin with `!` where they keep out.
fn globs_of(filter: &Filter, parsed: &mut Parsed) -> Result<(&'static str, Vec<String>), String> {
    let Filter { kind, pattern, excludes } = filter;
    let unsaid = || format!("{kind} {pattern} is no pattern that globs can say");
    let pieces = pieces(pattern).ok_or_else(unsaid)?;
    let marked = |globs: Vec<String>| -> Vec<String> {
        globs.into_iter().map(|glob| if *excludes { format!("!{glob}") } else { glob }).collect()
    };
    Ok(match kind.as_str() {
        "HEAD_REF" | "BASE_REF" => {
            let of_tags = pieces.iter().all(|piece| piece.glob.starts_with("refs/tags/"));
            if of_tags && kind == "HEAD_REF" && !excludes {
                parsed.tag = true;
                let tags = pieces.iter().map(|piece| piece.after("refs/tags/"));
                return Ok(("tags", tags.collect::<Option<_>>().ok_or_else(unsaid)?));
            }
            let mut globs = Vec::new();
            for piece in &pieces {
                globs.push(piece.after("refs/heads/").ok_or_else(unsaid)?);
                // What is not anchored may be found in the middle of a name, too.
                if *excludes && !piece.from_start {
                    globs.push(piece.whole());
                }
            }
            (if kind == "HEAD_REF" { "branches" } else { "bases" }, marked(globs))
        }
        "TAG_NAME" => {
            parsed.tag = true;
            ("tags", marked(pieces.iter().map(Piece::whole).collect()))
        }
        "FILE_PATH" if *excludes => ("skip-paths", pieces.iter().map(Piece::whole).collect()),
        "FILE_PATH" => ("paths", pieces.iter().map(Piece::whole).collect()),
        "COMMIT_MESSAGE" => {
            let mut globs = marked(pieces.iter().map(Piece::whole).collect());
            // `*` spans lines, and `.*` does not.
            if !excludes && pieces.iter().any(|piece| piece.glob.contains(['*', '?'])) {
                globs.push("!*\n*".to_owned());
            }
            ("messages", globs)
        }
        "ACTOR_ACCOUNT_ID" => {
            let is_whole = |piece: &Piece| {
                let is_anchored = piece.from_start && piece.to_end;
                !piece.glob.contains(['*', '?']) && (is_anchored || !excludes)
            };
            if !pieces.iter().all(is_whole) {
                return Err(format!("{kind} {pattern} names no whole accounts, such as ^1234$"));
            }
            ("actors", marked(pieces.into_iter().map(|piece| piece.glob).collect()))
        }
        _ => return Err(format!("a policy has nothing like {kind}")),
    })
}

/// One alternative of a pattern.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Piece {
    from_start: bool,
    glob: String,
    to_end: bool,
}

impl Piece {
    /// The glob over a whole text.
    fn whole(&self) -> String {
        let end = |anchored: bool| if anchored { "" } else { "*" };
        format!("{}{}{}", end(self.from_start), self.glob, end(self.to_end)).replace("**", "*")
    }

    /// The glob over what follows a beginning that all texts have; `None` where the pattern does not say that
    /// beginning.
    fn after(&self, beginning: &str) -> Option<String> {
        let rest = self.glob.strip_prefix(beginning)?;
        let rest = format!("{rest}{}", if self.to_end { "" } else { "*" }).replace("**", "*");
        (!rest.is_empty() && !rest.starts_with('!')).then_some(rest)
    }
}

/// The alternatives of a regular expression made of characters, `.`, `.*`, `.+`, brackets with alternatives, and
/// anchors.
fn pieces(pattern: &str) -> Option<Vec<Piece>> {
    let mut all = Vec::new();
    for alternative in split(pattern)? {
        let (from_start, rest) = match alternative.strip_prefix('^') {
            Some(rest) => (true, rest),
            None => (false, alternative),
        };
        let is_end = rest.ends_with('$') && !rest.ends_with("\\$");
        let rest = if is_end { &rest[..rest.len() - 1] } else { rest };
        for glob in globs(rest)? {
            if glob.starts_with('!') || (glob.is_empty() && from_start && is_end) {
                return None;
            }
            all.push(Piece { from_start, glob, to_end: is_end });
        }
    }
    (all.len() <= MOST).then_some(all)
}

/// Cuts at the `|` that are in no brackets.
fn split(pattern: &str) -> Option<Vec<&str>> {
    let (mut depth, mut start, mut parts) = (0_usize, 0, Vec::new());
    let mut is_escaped = false;
    for (at, c) in pattern.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            '|' if depth == 0 => {
                parts.push(&pattern[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&pattern[start..]);
    (depth == 0 && !is_escaped).then_some(parts)
}

fn globs(pattern: &str) -> Option<Vec<String>> {
    let mut all = vec![String::new()];
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let mut choices = Vec::new();
        match c {
            '.' => {
                let (glob, quantifier) = match after.chars().next() {
                    Some('*') => ("*", 1),
                    Some('+') => ("?*", 1),
                    _ => ("?", 0),
                };
                choices.push(glob.to_owned());
                rest = &after[quantifier..];
            }
            '\\' => {
                let escaped =
                    after.chars().next().filter(|c| c.is_ascii_punctuation() && !"*?".contains(*c))?;
                choices.push(escaped.to_string());
                rest = &after[escaped.len_utf8()..];
            }
            '(' => {
                let end = closing(after)?;
                let inner = after[..end].strip_prefix("?:").unwrap_or(&after[..end]);
                for alternative in split(inner)? {
                    choices.extend(globs(alternative)?);
                }
                rest = &after[end + 1..];
            }
            '*' | '+' | '?' | '[' | ']' | '{' | '}' | '^' | '$' | ')' | '|' => return None,
            c => {
                choices.push(c.to_string());
                rest = after;
            }
        }
        if c != '.' && rest.starts_with(['*', '+', '?', '{'])
            || c == '.' && rest.starts_with(['?', '{', '+', '*'])
        {
            return None;
        }
        if all.len() * choices.len() > MOST {
            return None;
        }
        all = all.iter().flat_map(|start| choices.iter().map(move |end| format!("{start}{end}"))).collect();
    }
    Some(all)
}

/// Where the bracket closes that was opened before.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1_usize;
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '(' => depth += 1,
            ')' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(kind: &str, pattern: &str) -> Filter {
        let (pattern, excludes) =
            pattern.strip_prefix('!').map_or((pattern, false), |pattern| (pattern, true));
        Filter { kind: kind.to_owned(), pattern: pattern.to_owned(), excludes }
    }

    fn reported(groups: &[&[(&str, &str)]]) -> (String, Vec<String>) {
        let groups: Vec<Vec<Filter>> = groups
            .iter()
            .map(|group| group.iter().map(|(kind, pattern)| filter(kind, pattern)).collect())
            .collect();
        let Translation { builds, lost } = translate(&groups, "main");
        let builds: Vec<String> = builds.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        (builds.join(", "), lost)
    }

    #[test]
    fn what_people_write_is_said_in_the_policys_words() {
        const ALL: &str = "PUSH, PULL_REQUEST_CREATED, PULL_REQUEST_UPDATED, PULL_REQUEST_REOPENED";
        const PULL: &str = "PULL_REQUEST_CREATED, PULL_REQUEST_UPDATED, PULL_REQUEST_REOPENED";
        const PULLS: &str = "pull-request-created, pull-request-updated, pull-request-reopened";
        for (groups, builds) in [
            (&[&[("EVENT", ALL)][..]][..], format!("on: [push, {PULLS}]")),
            (
                &[&[("EVENT", "PUSH"), ("HEAD_REF", "^refs/heads/main$")]],
                "on: [push], branches: [main]".to_owned(),
            ),
            (
                &[&[("EVENT", "PUSH"), ("HEAD_REF", "^refs/heads/main$")], &[("EVENT", PULL)]],
                format!("on: [{PULLS}]"),
            ),
            (&[&[("EVENT", PULL)]], format!("on: [{PULLS}], branches: [\"*\", \"!main\"]")),
            (
                &[&[("EVENT", "PUSH"), ("HEAD_REF", "^refs/heads/(main|release/.*)$")]],
                "on: [push], branches: [main, \"release/*\"]".to_owned(),
            ),
            (
                &[&[("EVENT", "PUSH"), ("HEAD_REF", "!^refs/heads/dependabot/")]],
                "on: [push], branches: [\"*\", \"!dependabot/*\"]".to_owned(),
            ),
            (
                &[&[("EVENT", PULL), ("BASE_REF", "^refs/heads/main$")]],
                format!("on: [{PULLS}], branches: [\"*\", \"!main\"], bases: [main]"),
            ),
            (
                &[&[("EVENT", "PUSH"), ("FILE_PATH", "^src/"), ("FILE_PATH", "!\\.md$")]],
                "on: [push], paths: [\"src/*\"], paths-unknown: skip, skip-paths: [\"*.md\"]".to_owned(),
            ),
            (
                &[&[
                    ("EVENT", "PUSH"),
                    ("COMMIT_MESSAGE", "!\\[no image\\]"),
                    ("ACTOR_ACCOUNT_ID", "!^49699333$"),
                ]],
                "on: [push], actors: [\"*\", \"!49699333\"], messages: [\"*\", \"!*[no image]*\"]".to_owned(),
            ),
            (
                &[&[("EVENT", "PUSH"), ("HEAD_REF", "^refs/tags/v.*")]],
                "on: [tag], tags: [\"v*\"], branches: [\"*\", \"!main\"]".to_owned(),
            ),
            (&[&[("EVENT", "RELEASED")]], "start: false".to_owned()),
        ] {
            assert_eq!(reported(groups).0, builds, "{groups:?}");
        }
        assert_eq!(reported(&[]), (String::new(), Vec::new()));
    }

    #[test]
    fn what_cannot_be_said_is_named_and_starts_nothing() {
        for (filter, word) in [
            (("HEAD_REF", "^refs/heads/[a-z]+$"), "HEAD_REF"),
            (("HEAD_REF", "main"), "HEAD_REF"),
            (("ACTOR_ACCOUNT_ID", "!1234"), "whole accounts"),
            (("REPOSITORY_NAME", "app"), "REPOSITORY_NAME"),
            (("WORKFLOW_NAME", "ci"), "WORKFLOW_NAME"),
            (("HEAD_REF", "^refs/heads/(a"), "HEAD_REF"),
        ] {
            let (builds, lost) = reported(&[&[("EVENT", "PUSH"), filter]]);
            assert_eq!(builds, "start: false", "{filter:?}");
            assert!(lost.iter().any(|lost| lost.contains(word)), "{lost:?}");
        }
        let (builds, lost) = reported(&[
            &[("EVENT", "PUSH"), ("HEAD_REF", "^refs/heads/a$")],
            &[("EVENT", "PUSH"), ("HEAD_REF", "^refs/heads/b$")],
        ]);
        assert_eq!((builds.as_str(), lost.len()), ("on: [push], branches: [a]", 1));
    }
}
