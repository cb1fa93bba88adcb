//! Rules for projects that a policy does not serve yet, written into its text: comments and layout stay as they are.

use std::fmt::Write as _;

use wildmatch::WildMatch;

use crate::names::{Branch, ProjectName, Repository};
use crate::policy::Policy;

/// A rule to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// A project, or a glob over projects.
    pub name: String,
    /// Its git repository; of a glob's with `{project}`.
    pub repository: String,
    /// Its default branch, where the forge does not tell it or the project names it.
    pub default_branch: Option<Branch>,
    /// Fields of `builds` with their values.
    pub builds: Vec<(&'static str, String)>,
}

impl Rule {
    /// What a policy of this rule alone would be refused for.
    #[must_use]
    pub fn refused(&self) -> Option<String> {
        let text = format!("version: 1\nprojects:\n{}", self.text("  "));
        Policy::parse("its rule", &text).err().map(|mistakes| mistakes.to_string())
    }

    fn text(&self, indent: &str) -> String {
        let name =
            if self.name.contains(['*', '?']) { format!("\"{}\"", self.name) } else { self.name.clone() };
        let mut text = format!("{indent}- name: {name}\n{indent}  repository: {}\n", self.repository);
        if let Some(branch) = &self.default_branch {
            let _ = writeln!(text, "{indent}  default-branch: {}", serde_json::Value::from(branch.as_str()));
        }
        if !self.builds.is_empty() {
            let _ = writeln!(text, "{indent}  builds:");
            for (key, value) in &self.builds {
                let _ = writeln!(text, "{indent}    {key}: {value}");
            }
        }
        text
    }
}

/// One rule for all of these projects, where their names and repositories allow it: `host/owner/<project>` for each,
/// and the same builds.
#[must_use]
pub fn joined(glob: &str, rules: &[(ProjectName, Rule)]) -> Option<Rule> {
    let (first, more) = rules.split_first()?;
    let owner = |(name, rule): &(ProjectName, Rule)| {
        rule.repository.strip_suffix(name.as_str())?.strip_suffix('/').map(str::to_owned)
    };
    let of_first = owner(first)?;
    let is_same = |rule: &(ProjectName, Rule)| {
        owner(rule).as_deref() == Some(of_first.as_str())
            && rule.1.builds == first.1.builds
            && rule.1.default_branch == first.1.default_branch
    };
    let matches = |(name, _): &(ProjectName, Rule)| WildMatch::new(glob).matches(name.as_str());
    (!more.is_empty() && glob.contains(['*', '?']) && more.iter().all(is_same) && rules.iter().all(matches))
        .then(|| {
            let repository = format!("{of_first}/{{project}}");
            Rule { name: glob.to_owned(), repository, ..first.1.clone() }
        })
}

/// Writes a rule into a policy, before the first glob that would take its project; the reason where it cannot be done.
///
/// `served` are the projects that the rule is for. What the policy said of all others it says afterwards, too.
pub fn insert(text: &str, rule: &Rule, served: &[(ProjectName, Repository)]) -> Result<String, String> {
    let before = Policy::parse("the policy", text).map_err(|mistakes| mistakes.to_string())?;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let key = lines
        .iter()
        .position(|line| line.trim_end().split('#').next().unwrap_or_default().trim_end() == "projects:");
    let new = match key {
        Some(key) => into_list(&lines, key, rule, served),
        None if lines.iter().any(|line| line.starts_with("projects:")) => {
            return Err(
                "its `projects` are on one line: write them as a list, or add the rule by hand".to_owned()
            );
        }
        None => {
            let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            format!("{text}{end}projects:\n{}", rule.text("  "))
        }
    };
    let after = Policy::parse("the policy with the rule", &new).map_err(|mistakes| mistakes.to_string())?;
    for (name, repository) in served {
        if after.project(name).is_none_or(|project| project.repository != *repository) {
            return Err(format!("another rule of the policy takes {name}: add it by hand, before that"));
        }
    }
    let others = before
        .named_projects()
        .into_iter()
        .filter(|project| !served.iter().any(|(name, _)| *name == project.name));
    for project in others {
        if after.project(&project.name) != before.project(&project.name) {
            return Err(format!(
                "the rule would change what holds for {}: add it by hand, after that",
                project.name
            ));
        }
    }
    Ok(new)
}

fn into_list(lines: &[&str], key: usize, rule: &Rule, served: &[(ProjectName, Repository)]) -> String {
    let indent_of = |line: &str| line.len() - line.trim_start().len();
    let is_item = |line: &str| line.trim_start().starts_with("- ");
    let is_text = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let rest = &lines[key + 1..];
    let indent =
        rest.iter().find(|line| is_text(line)).filter(|line| is_item(line)).map_or(2, |line| indent_of(line));
    // The list goes on until a line that is further out.
    let belongs = |line: &str| {
        !is_text(line) || indent_of(line) > indent || (indent_of(line) == indent && is_item(line))
    };
    let end = key + 1 + rest.iter().take_while(|line| belongs(line)).count();
    let items: Vec<usize> =
        (key + 1..end).filter(|&at| is_text(lines[at]) && indent_of(lines[at]) == indent).collect();
    // What is behind the last rule's last line is the next thing's comment.
    let last = (key + 1..end).rev().find(|&at| is_text(lines[at])).unwrap_or(key);
    let is_taken = |at: &usize| {
        let next = items.iter().find(|item| *item > at).copied().unwrap_or(end);
        let name = lines[*at..next].iter().find_map(|line| {
            line.trim_start().trim_start_matches("- ").trim_start().strip_prefix("name:").map(str::trim)
        });
        let name = name.unwrap_or_default().trim_matches(['"', '\'']);
        let takes =
            |name: &str| served.iter().any(|(project, _)| WildMatch::new(name).matches(project.as_str()));
        name.contains(['*', '?']) && takes(name)
    };
    let at = items.iter().find(|at| is_taken(at)).copied().unwrap_or(last + 1);
    let mut text: String = lines[..at].concat();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text += &rule.text(&" ".repeat(indent));
    text + &lines[at..].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str) -> (Rule, Vec<(ProjectName, Repository)>) {
        let repository = format!("github.com/example/{name}");
        let served = vec![(ProjectName::new(name).unwrap(), Repository::new(repository.as_str()).unwrap())];
        let builds = vec![("on", "[push]".to_owned())];
        (Rule { name: name.to_owned(), repository, default_branch: None, builds }, served)
    }

    fn inserted(text: &str, name: &str) -> Result<String, String> {
        let (rule, served) = rule(name);
        insert(text, &rule, &served)
    }

    #[test]
    fn a_rule_is_added_at_the_end_and_before_the_glob_that_would_take_it() {
        const NEW: &str =
            "  - name: web\n    repository: github.com/example/web\n    builds:\n      on: [push]\n";
        const APP: &str = "  - name: app # ours\n    repository: github.com/example/app\n";
        let head = "version: 1\nprojects:\n";
        for (before, after) in [
            (format!("{head}{APP}\n# The end\n"), format!("{head}{APP}{NEW}\n# The end\n")),
            (
                format!(
                    "{head}{APP}  # All others\n  - name: \"*\"\n    repository: github.com/example/{{project}}\n"
                ),
                format!(
                    "{head}{APP}  # All others\n{NEW}  - name: \"*\"\n    repository: github.com/example/{{project}}\n"
                ),
            ),
            ("version: 1\n".to_owned(), format!("version: 1\nprojects:\n{NEW}")),
            (format!("{head}{}", APP.trim_end()), format!("{head}{APP}{NEW}")),
            (
                format!("version: 1\nprojects:\n{APP}defaults:\n  promotion: rebuild\n"),
                format!("version: 1\nprojects:\n{APP}{NEW}defaults:\n  promotion: rebuild\n"),
            ),
        ] {
            assert_eq!(inserted(&before, "web"), Ok(after));
        }
        let shipped = include_str!("../../../../policy/stoker.yaml");
        let with = inserted(shipped, "web").unwrap();
        assert_eq!(with.replace(NEW, ""), shipped);
    }

    #[test]
    fn what_would_change_others_or_cannot_be_written_is_refused() {
        for (text, word) in [
            ("version: 1\nprojects: [{ name: app, repository: github.com/example/app }]\n", "on one line"),
            ("version: 2\n", "version"),
            ("version: 1\nprojects:\n  - name: web\n    repository: github.com/other/web\n", "web"),
        ] {
            let refused = inserted(text, "web").unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
    }

    #[test]
    fn projects_whose_names_are_their_repositories_are_one_rule() {
        let of = |name: &str| (ProjectName::new(name).unwrap(), rule(name).0);
        let both = [of("team-a"), of("team-b")];
        let one = joined("team-*", &both).unwrap();
        assert_eq!((one.name.as_str(), one.repository.as_str()), ("team-*", "github.com/example/{project}"));
        let mut other = both.clone();
        other[1].1.repository = "github.com/example/else".to_owned();
        assert_eq!(joined("team-*", &other), None);
        assert_eq!(joined("team-*", &both[..1]), None);
        assert_eq!(joined("other-*", &both), None);
    }
}
