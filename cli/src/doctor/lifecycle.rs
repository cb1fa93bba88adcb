//! ECR's own lifecycle rules of a repository: would they take a cache that Stoker keeps?

use jiff::SignedDuration;
use serde::Deserialize;
use stoker_core::names::{CacheRepository, Scope};
use stoker_core::policy::Project;

use super::finding::{Finding, State};
use crate::text::plain;

/// What a repository is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// The lines, and nothing that builds write.
    Lines,
    /// What builds write.
    Exports,
    /// Everything.
    Both,
}

impl Holds {
    pub(super) fn lines(self) -> bool {
        self != Self::Exports
    }

    pub(super) fn of(repository: &CacheRepository, projects: &[Project]) -> Self {
        let has_lines = projects.iter().any(|project| project.cache_repository == *repository);
        let has_exports = projects.iter().any(|project| project.exports() == repository);
        match (has_lines, has_exports) {
            (true, true) => Self::Both,
            (true, false) => Self::Lines,
            (false, _) => Self::Exports,
        }
    }
}

const CHECK: &str = "lifecycle";
/// ECR takes no longer policies.
const LONGEST: usize = 64 * 1024;
/// No tag is longer, so a longer pattern is none of ECR's.
const LONGEST_PATTERN: usize = 256;
/// The nightly reconciliation promotes what builds of so many days have exported.
const SWEPT_DAYS: u64 = 2;

#[derive(Debug, Deserialize)]
struct Document {
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    #[serde(default, rename = "rulePriority")]
    priority: u64,
    selection: Selection,
    action: Action,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selection {
    tag_status: String,
    #[serde(default)]
    tag_prefix_list: Vec<String>,
    #[serde(default)]
    tag_pattern_list: Vec<String>,
    count_type: String,
    #[serde(default)]
    count_number: u64,
}

#[derive(Debug, Deserialize)]
struct Action {
    #[serde(rename = "type")]
    kind: String,
}

/// What the policy of Stoker promises of the caches in a repository.
#[derive(Debug)]
pub(super) struct Promises {
    scopes: Vec<Scope>,
    lease: u64,
    /// `None` keeps caches without a tag for ever.
    orphans: Option<u64>,
}

impl Promises {
    /// Those to all projects that share the repository.
    pub(super) fn of(projects: &[Project]) -> Self {
        let orphans = projects.iter().map(|project| project.retention.orphans.map(days));
        Self {
            scopes: projects.iter().flat_map(Project::scopes).cloned().collect(),
            lease: projects.iter().map(|project| days(project.retention.lease)).max().unwrap_or(1),
            orphans: orphans.collect::<Option<Vec<u64>>>().map(|days| days.into_iter().max().unwrap_or(1)),
        }
    }
}

/// Whole days, none of which is too short.
fn days(duration: SignedDuration) -> u64 {
    u64::try_from(duration.as_hours()).unwrap_or(0) / 24 + 1
}

/// Judges a repository's lifecycle policy, by the rule.
pub(super) fn check(repository: &str, text: Option<&str>, holds: Holds, promises: &Promises) -> Vec<Finding> {
    let Some(text) = text else {
        return vec![Finding::ok(CHECK, "no rules: nobody but Stoker deletes")];
    };
    let document = if text.len() > LONGEST { Err("they are too long".to_owned()) } else { read(text) };
    let document = match document {
        Ok(document) => document,
        Err(why) => {
            let found = format!("the rules cannot be read: {}", plain(&why));
            return vec![Finding::unknown(CHECK, found, repair(repository, "look at them"))];
        }
    };
    // An image is the business of the first rule that selects it, by their priority: no later one deletes it.
    let mut rules: Vec<&Rule> = document.rules.iter().collect();
    rules.sort_by_key(|rule| rule.priority);
    let judged = rules.iter().enumerate().filter_map(|(n, rule)| {
        let (state, what, how) = judge(rule, rules.get(..n).unwrap_or_default(), holds, promises)?;
        let found = format!("rule {} {what}", rule.priority);
        let how = how.replace("{rule}", &rule.priority.to_string());
        Some(Finding { check: CHECK, state, found, repair: Some(repair(repository, &how)) })
    });
    let judged: Vec<Finding> = judged.collect();
    if judged.is_empty() {
        let rules = crate::text::count(document.rules.len(), "rule");
        return vec![Finding::ok(
            CHECK,
            format!(
                "{rules}: none selects what Stoker keeps, but for exports and caches without a tag, late enough"
            ),
        )];
    }
    judged
}

fn read(text: &str) -> Result<Document, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn repair(repository: &str, how: &str) -> String {
    format!(
        "{how}: aws ecr get-lifecycle-policy --repository-name {repository} --query lifecyclePolicyText \
         --output text > \
         rules.json; edit it; aws ecr put-lifecycle-policy --repository-name {repository} --lifecycle-policy-text \
         file://rules.json"
    )
}

/// What is bad about a rule, and what to do. `earlier` are the rules that come before it.
fn judge(
    rule: &Rule,
    earlier: &[&Rule],
    holds: Holds,
    promises: &Promises,
) -> Option<(State, String, String)> {
    let Selection { tag_status, count_type, count_number, .. } = &rule.selection;
    let does = match rule.action.kind.as_str() {
        "expire" => "deletes",
        "transition" => "archives",
        other => return Some(not_known("does", other)),
    };
    let by_age = match count_type.as_str() {
        "imageCountMoreThan" => false,
        "sinceImagePushed" | "sinceImagePulled" | "sinceImageTransitioned" => true,
        other => return Some(not_known("counts by", other)),
    };
    let is_left = |tag: &String| !earlier.iter().any(|rule| rule.selection.covers(tag));
    let scopes = promises.scopes.iter();
    let lines: Vec<String> =
        scopes.clone().flat_map(of_line).filter(|tag| holds.lines() && is_left(tag)).collect();
    let (what, takes_lines) = match tag_status.as_str() {
        "any" => ("any image", !lines.is_empty()),
        "tagged" => {
            let takes_lines = rule.selection.takes_lines(&lines);
            let exports: Vec<String> =
                scopes.map(|scope| format!("{scope}.export.*")).filter(is_left).collect();
            if !takes_lines && !rule.selection.may_select(&exports) {
                return None;
            }
            ("tagged images", takes_lines)
        }
        "untagged" if earlier.iter().any(|rule| rule.selection.tag_status == "untagged") => return None,
        "untagged" => ("untagged images", false),
        other => return Some(not_known("selects images that are", other)),
    };
    if takes_lines {
        let after = if by_age { "by age" } else { "by their number" };
        return Some((
            State::Wrong,
            format!(
                "{does} {what} {after}, main's cache among them: a line that nobody pushes is old, and not useless"
            ),
            "delete rule {rule}, or let it select `\"tagPatternList\": [\"*.export.*\"]` alone".to_owned(),
        ));
    }
    let is_untagged = tag_status == "untagged";
    if !by_age {
        let state = if is_untagged && holds.lines() { State::Wrong } else { State::Warn };
        let why = format!(
            "{does} {what} by their number, however young: builds may hold them, or be about to be promoted"
        );
        return Some((
            state,
            why,
            format!("count days in rule {{rule}}, {} at least", promises.lease.max(SWEPT_DAYS)),
        ));
    }
    let least = if is_untagged { promises.lease } else { promises.lease.max(SWEPT_DAYS) };
    if *count_number < least {
        let why = format!(
            "{does} {what} after {count_number} days: builds may still hold them, or the night has yet to promote them"
        );
        return Some((State::Wrong, why, format!("set countNumber of rule {{rule}} to {least} at least")));
    }
    match promises.orphans {
        _ if !is_untagged || !holds.lines() => None,
        None => {
            let why =
                format!("{does} {what} after {count_number} days, and `retention.orphans: none` keeps them");
            Some((State::Warn, why, "delete rule {rule}, or set `retention.orphans`".to_owned()))
        }
        Some(orphans) if *count_number < orphans => {
            let why = format!(
                "{does} {what} after {count_number} days, before `retention.orphans` ({orphans} days) does"
            );
            Some((State::Warn, why, format!("set countNumber of rule {{rule}} to {orphans} at least")))
        }
        Some(_) => None,
    }
}

fn not_known(verb: &str, word: &str) -> (State, String, String) {
    let what = format!("{verb} `{}`, which is not known here", plain(word));
    (State::Unknown, what, "see what rule {rule} selects, and that it is no line".to_owned())
}

impl Selection {
    fn patterns(&self) -> impl Iterator<Item = String> {
        let prefixes = self.tag_prefix_list.iter().map(|prefix| format!("{prefix}*"));
        self.tag_pattern_list.iter().cloned().chain(prefixes)
    }

    /// Whether an image with some of these tags may be selected. ECR wants every pattern to match some tag of
    /// the image.
    fn may_select(&self, tags: &[String]) -> bool {
        !tags.is_empty() && self.patterns().all(|pattern| tags.iter().any(|tag| overlap(&pattern, tag)))
    }

    /// Whether an image that a line points to may be selected.
    fn takes_lines(&self, lines: &[String]) -> bool {
        // What an export's tag has and no line's has. It is in the history of a branch called `export`, too, which goes
        // long before a rule of the right age finds it.
        self.may_select(lines) && !self.patterns().any(|pattern| pattern.contains(".export."))
    }

    /// Whether every image with such a tag is selected.
    fn covers(&self, tag: &str) -> bool {
        match self.tag_status.as_str() {
            "any" => true,
            "tagged" => self.patterns().all(|pattern| matches(&pattern, tag, true)),
            _ => false,
        }
    }
}

/// The tags of a scope's lines, and those that the images of lines have beside them. `*` is a part without a dot.
pub(super) fn of_line(scope: &Scope) -> impl Iterator<Item = String> {
    [
        "main",
        "branch.*",
        "pr.*",
        "commit.*",
        "history.main.*Z-*",
        "history.branch.*.*Z-*",
        "history.pr.*.*Z-*",
    ]
    .map(|rest| format!("{scope}.{rest}"))
    .into_iter()
}

/// Whether some tag matches both: a pattern of ECR's, in which `*` is any characters, and one of Stoker's
/// tags, in which it is any but a dot.
pub(super) fn overlap(pattern: &str, tags: &str) -> bool {
    pattern.len() > LONGEST_PATTERN || matches(pattern, tags, false)
}

/// Whether a pattern matches some of these tags, or all of them.
fn matches(pattern: &str, tags: &str, all: bool) -> bool {
    if pattern.len() > LONGEST_PATTERN {
        return false;
    }
    let (a, b): (Vec<char>, Vec<char>) = (pattern.chars().collect(), tags.chars().collect());
    // `rest[j]`: whether what is left of the pattern matches what is left of the tags.
    let mut rest: Vec<bool> = (0..=b.len()).map(|j| b[j..].iter().all(|&c| c == '*' && !all)).collect();
    for &c in a.iter().rev() {
        let mut row = vec![false; b.len() + 1];
        row[b.len()] = c == '*' && rest[b.len()];
        for j in (0..b.len()).rev() {
            row[j] = match (c, b[j]) {
                ('*', _) => rest[j] || row[j + 1],
                (_, '*') if all => false,
                (c, '*') => row[j + 1] || (c != '.' && rest[j]),
                (c, tag) => c == tag && rest[j + 1],
            };
        }
        rest = row;
    }
    rest[0]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::projects;
    use super::*;

    fn promises(retention: &str) -> Promises {
        Promises::of(&projects(&format!(
            "    retention: {{ {retention} }}
"
        )))
    }

    fn rule(selection: &Value, action: &str) -> String {
        json!({"rules": [{"rulePriority": 7, "selection": selection, "action": {"type": action}}]})
            .to_string()
    }

    fn states(text: &str, holds: Holds, retention: &str) -> Vec<State> {
        let found = check("stoker/app", Some(text), holds, &promises(retention));
        found.iter().map(|finding| finding.state).collect()
    }

    fn state(selection: &Value, holds: Holds) -> State {
        states(&rule(selection, "expire"), holds, "mode: report")[0]
    }

    fn tagged(pattern: &str, days: u64) -> Value {
        json!({"tagStatus": "tagged", "tagPatternList": [pattern], "countType": "sinceImagePushed",
            "countUnit": "days", "countNumber": days})
    }

    fn untagged(days: u64) -> Value {
        json!({"tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": days})
    }

    #[test]
    fn patterns_overlap_with_tags_or_do_not() {
        for (pattern, tags, expected) in [
            ("*", "app.main", true),
            ("app.*", "app.main", true),
            ("app.main", "app.main", true),
            ("app.mai", "app.main", false),
            ("*main", "app.branch.*", true),
            ("*.v1", "app.branch.*", true),
            ("*.v1.0", "app.branch.*", false),
            ("*.b*.rel*", "app.branch.*", true),
            ("web.*", "app.branch.*", false),
            ("", "app.main", false),
            ("", "*", true),
            ("*.*.*.*", "app.branch.*", false),
            ("*.*.*", "app.branch.*", true),
        ] {
            assert_eq!(overlap(pattern, tags), expected, "{pattern} and {tags}");
        }
    }

    #[test]
    fn the_stacks_own_rules_are_right() {
        let text = json!({"rules": [
            {"rulePriority": 1, "selection": tagged("*.export.*", 30), "action": {"type": "expire"}},
            {"rulePriority": 2, "selection": untagged(30), "action": {"type": "expire"}},
        ]});
        for holds in [Holds::Lines, Holds::Exports, Holds::Both] {
            assert_eq!(states(&text.to_string(), holds, "mode: report"), [State::Ok], "{holds:?}");
        }
        assert_eq!(check("r", None, Holds::Both, &promises("mode: report"))[0].state, State::Ok);
    }

    #[test]
    fn what_selects_lines_is_wrong() {
        let any = |count: &str| json!({"tagStatus": "any", "countType": count, "countNumber": 500});
        for selection in [
            any("imageCountMoreThan"),
            any("sinceImagePushed"),
            any("sinceImagePulled"),
            tagged("*", 900),
            tagged("app.*", 900),
            tagged("*.branch.*", 900),
            tagged("*.history.*", 900),
            tagged("app.commit.*", 900),
            json!({"tagStatus": "tagged", "tagPrefixList": ["app.m"], "countType": "imageCountMoreThan",
                "countNumber": 9}),
            json!({"tagStatus": "tagged", "tagPatternList": ["app.*", "*.main"],
                "countType": "sinceImagePushed", "countNumber": 9}),
            json!({"tagStatus": "tagged", "countType": "sinceImagePushed", "countNumber": 900}),
        ] {
            assert_eq!(state(&selection, Holds::Lines), State::Wrong, "{selection}");
            assert_eq!(state(&selection, Holds::Both), State::Wrong, "{selection}");
            assert_ne!(state(&selection, Holds::Exports), State::Unknown, "{selection}");
        }
        assert_eq!(
            states(&rule(&any("sinceImagePushed"), "transition"), Holds::Lines, "mode: report"),
            [State::Wrong]
        );
        assert_eq!(state(&any("sinceImagePushed"), Holds::Exports), State::Ok);
        for selection in [tagged("v*", 1000), tagged("web.*", 1000), tagged("*.v1.0", 1000)] {
            assert_eq!(state(&selection, Holds::Lines), State::Ok, "{selection}");
        }
    }

    #[test]
    fn rules_of_other_tags_are_nobodys_business() {
        let prefix = |prefix: &str, count: &str| {
            json!({"tagStatus": "tagged", "tagPrefixList": [prefix],
            "countType": count, "countUnit": "days", "countNumber": 1})
        };
        let rule = |priority: u8, selection: Value| {
            json!({"rulePriority": priority, "selection": selection,
            "action": {"type": "expire"}})
        };
        let rules = json!({"rules": [
            rule(1, prefix("v", "imageCountMoreThan")),
            rule(2, prefix("pr-", "sinceImagePushed")),
        ]});
        for holds in [Holds::Lines, Holds::Exports, Holds::Both] {
            assert_eq!(states(&rules.to_string(), holds, "mode: report"), [State::Ok], "{holds:?}");
        }
        for mine in ["a", "app.", "app.main"] {
            assert_eq!(state(&prefix(mine, "imageCountMoreThan"), Holds::Lines), State::Wrong, "{mine}");
        }
    }

    #[test]
    fn an_image_is_the_business_of_the_first_rule_that_selects_it() {
        let rule = |priority: u8, selection: Value, action: &str| {
            json!({"rulePriority": priority,
            "selection": selection, "action": {"type": action}})
        };
        let any = json!({"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 500});
        let of = |rules: Value| states(&json!({"rules": rules}).to_string(), Holds::Lines, "mode: report");
        let covered = json!([rule(2, any.clone(), "expire"), rule(1, tagged("app.*", 3650), "expire")]);
        assert_eq!(
            of(covered),
            [State::Wrong, State::Warn],
            "rule 1 takes lines itself; by number, rule 2 takes others"
        );
        let only_main = json!([rule(1, tagged("app.main", 3650), "expire"), rule(2, any.clone(), "expire")]);
        assert_eq!(of(only_main), [State::Wrong, State::Wrong], "branches are left to rule 2");
        let late = json!([rule(1, any, "expire"), rule(2, tagged("app.main", 900), "expire")]);
        assert_eq!(of(late), [State::Wrong], "nothing is left to rule 2");
        let untagged_twice = json!([rule(1, untagged(30), "expire"), rule(2, untagged(1), "expire")]);
        assert_eq!(of(untagged_twice), [State::Ok]);
    }

    #[test]
    fn what_is_too_early_is_reported() {
        assert_eq!(state(&untagged(1), Holds::Lines), State::Wrong, "the lease is 24 h");
        assert_eq!(state(&untagged(5), Holds::Lines), State::Warn, "orphans stay for 7 days");
        assert_eq!(state(&untagged(8), Holds::Lines), State::Ok);
        assert_eq!(state(&untagged(5), Holds::Exports), State::Ok, "untagged exports are nobody's");
        assert_eq!(state(&tagged("*.export.*", 1), Holds::Both), State::Wrong);
        assert_eq!(state(&tagged("*.export.*", 2), Holds::Both), State::Ok);
        assert_eq!(states(&rule(&untagged(30), "expire"), Holds::Lines, "orphans: none"), [State::Warn]);
        assert_eq!(states(&rule(&untagged(5), "expire"), Holds::Both, "lease: 10d"), [State::Wrong]);
        let by_number = |status: &str| {
            json!({"tagStatus": status, "tagPatternList": ["*.export.*"],
            "countType": "imageCountMoreThan", "countNumber": 9})
        };
        assert_eq!(state(&by_number("untagged"), Holds::Lines), State::Wrong);
        assert_eq!(state(&by_number("tagged"), Holds::Both), State::Warn);
    }

    #[test]
    fn what_cannot_be_read_is_not_said_to_be_right() {
        let long = format!("{{\"rules\": [{}]}}", "[".repeat(200_000));
        for text in ["", "{}", "[]", "{\"rules\": 1}", "\u{1b}[31m", &"[".repeat(100_000), &long] {
            assert_eq!(states(text, Holds::Both, "mode: report"), [State::Unknown]);
        }
        let odd = json!({"tagStatus": "\u{1b}[2Jsome", "countType": "sinceImagePushed", "countNumber": 900});
        let found = check("r", Some(&rule(&odd, "expire")), Holds::Both, &promises("mode: report"));
        assert_eq!(found[0].state, State::Unknown);
        assert!(!found[0].found.contains('\u{1b}'), "{}", found[0].found);
        let far = json!({"tagStatus": "untagged", "countType": "sinceImagePushed", "countNumber": u64::MAX});
        assert_eq!(state(&far, Holds::Both), State::Ok);
        let long_pattern = tagged(&"x".repeat(5000), 900);
        assert_eq!(state(&long_pattern, Holds::Both), State::Wrong, "nobody knows what it matches");
    }
}
