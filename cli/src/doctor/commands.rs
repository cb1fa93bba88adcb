//! What the commands of a buildspec do that a word in them does not tell: which builder builds, and what a flag becomes.

use serde_json::Value;
use stoker::policy::Project;

use super::Finding;
use crate::text::plain;

/// The text of a buildspec, line by line: of one in JSON, what its strings say. In those `\n` ends a line.
pub(super) fn text(buildspec: &str) -> String {
    let Ok(Value::Object(document)) = serde_json::from_str(buildspec) else { return buildspec.to_owned() };
    let mut text = String::new();
    spell(&Value::Object(document), &mut text);
    text
}

fn spell(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let is_word = !value.is_object() && !value.is_array();
                *text += &format!("{key}:{}", if is_word { " " } else { "\n" });
                spell(value, text);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| spell(item, text)),
        Value::String(word) => *text += &format!("{word}\n"),
        other => *text += &format!("{other}\n"),
    }
}

/// Mistakes in the commands of a buildspec, given without comments and with continued lines joined.
pub(super) fn check(project: &Project, text: &str, is_forks: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(quoted(text));
    findings.extend(chosen(text).filter(|_| !is_forks));
    findings.extend(platforms(text));
    findings.extend(bake_targets(project, text));
    findings
}

/// `"$STOKER_CACHE_FLAGS"` is one word to the shell: a flag that nobody knows, or an empty context.
fn quoted(text: &str) -> Option<Finding> {
    const FLAGS: &str = "STOKER_CACHE_FLAGS";
    let is_quoted = |at: usize| {
        let before = text[..at].trim_end_matches('{');
        let rest =
            text[at + FLAGS.len()..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let rest = rest.trim_start_matches(['}', '\\', '-', ':']);
        before.strip_suffix('$').is_some_and(|before| before.ends_with('"')) && rest.starts_with('"')
    };
    text.match_indices(FLAGS).any(|(at, _)| is_quoted(at)).then(|| {
        Finding::wrong(
            "quotes",
            "\"$STOKER_CACHE_FLAGS\" in quotes is one word, which Docker takes for an unknown flag, or for the context",
            "write it without quotes: its words are the flags",
        )
    })
}

/// Whether the builder that is made is the one that builds, where the commands tell: the last that is chosen before.
fn chosen(text: &str) -> Option<Finding> {
    let (mut makes, mut chooses) = (false, None);
    for line in text.lines() {
        let words: Vec<&str> = line.split(|c: char| c.is_whitespace() || "\"';|&()".contains(c)).collect();
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let is_builder = |word: &&str| word.starts_with("--builder") || word.contains("BUILDX_BUILDER");
        if words.iter().any(is_builder) {
            return None;
        }
        for (n, word) in words.iter().enumerate() {
            if *word != "buildx" {
                continue;
            }
            let after = words.get(n + 1..).unwrap_or_default();
            match after {
                ["create", options @ ..] => {
                    makes = true;
                    let is_used = options.iter().any(|option| matches!(*option, "--use" | "--use=true"));
                    chooses = if is_used { Some("the one that is made") } else { chooses };
                }
                ["use", options @ ..] => {
                    let name = options.iter().find(|option| !option.starts_with("--"));
                    chooses = if name == Some(&"default") { Some("default") } else { Some("another") };
                }
                ["build" | "bake" | "b", ..] if makes && matches!(chooses, None | Some("default")) => {
                    let found = match chooses {
                        None => {
                            "a builder is made, and none is chosen: Docker's own builds, and exports no registry cache"
                        }
                        Some(_) => {
                            "a builder is made, and `docker buildx use default` chooses Docker's own, which exports no registry cache"
                        }
                    };
                    let mend = "give `docker buildx create` the flag --use, and choose no other after it";
                    return Some(Finding::wrong("chosen builder", found, mend));
                }
                _ => {}
            }
        }
    }
    None
}

/// Platforms that are built by one command share its flags, and so one cache.
fn platforms(text: &str) -> Option<Finding> {
    let of_several = |line: &&str| {
        let value =
            line.split("--platform").nth(1).unwrap_or_default().trim_start_matches(['=', ' ', '"', '\'']);
        let value = value.split(|c: char| c.is_whitespace() || "\"'".contains(c)).next().unwrap_or_default();
        value.contains(',') && line.contains("STOKER_CACHE_")
    };
    let line = text.lines().find(of_several)?;
    let value = line.split("--platform").nth(1).unwrap_or_default().trim();
    Some(Finding::warn(
        "platforms",
        format!(
            "one command builds several platforms ({}): they share one cache, and the last that is exported is all of it",
            plain(value.split_whitespace().next().unwrap_or_default())
        ),
        "name the platforms in the policy (`targets: [{ platforms: [linux/amd64, linux/arm64] }]`) and build each by a command of \
         its own with its own flags, then join the images by `docker buildx imagetools create`; a builder of several native nodes \
         needs the same, as each command runs on one",
    ))
}

/// `STOKER_BAKE` sets caches of targets by their names, which have the platform in them where the policy names one.
fn bake_targets(project: &Project, text: &str) -> Option<Finding> {
    let mut names = project.targets.iter().filter(|target| target.platform.is_some());
    let name = names.next().filter(|_| text.contains("STOKER_BAKE"))?.bake_name();
    Some(Finding::unknown(
        "bake targets",
        format!(
            "$STOKER_BAKE sets the caches of `{name}` and its like: a bake file with one target for several platforms has none"
        ),
        format!(
            "see that the bake file has a target `{name}` for each platform of the policy, each with one platform"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{State, projects};
    use super::*;

    fn told(keys: &str, commands: &str) -> Vec<(&'static str, State)> {
        let found = check(&projects(keys).remove(0), commands, false);
        found.iter().map(|finding| (finding.check, finding.state)).collect()
    }

    const CREATE: &str = "docker buildx create --use $STOKER_BUILDER_FLAGS\n";
    const BUILD: &str = "docker buildx build $STOKER_CACHE_FLAGS -t $IMAGE --push .\n";

    #[test]
    fn strings_of_json_are_lines() {
        let spec = r#"{"version":"0.2","env":{"shell":"bash"},"phases":{"build":{"commands":["set -eu\ndocker buildx build \\\n ."]}}}"#;
        let text = text(spec);
        for line in ["env:", "shell: bash", "set -eu", "docker buildx build \\", " ."] {
            assert!(text.lines().any(|of| of == line), "{line}: {text}");
        }
        for other in ["version: 0.2", "{", "[\"a\"]", "\"a\""] {
            assert_eq!(super::text(other), other);
        }
    }

    #[test]
    fn flags_in_quotes_are_one_word() {
        let wrong = [("quotes", State::Wrong)];
        for flags in [
            "\"$STOKER_CACHE_FLAGS\"",
            "\"${STOKER_CACHE_FLAGS_API}\"",
            "\"${STOKER_CACHE_FLAGS:-}\"",
            "\\\"$STOKER_CACHE_FLAGS\\\"",
        ] {
            assert_eq!(told("", &format!("{CREATE}docker buildx build {flags} .\n")), wrong, "{flags}");
        }
        for line in [
            "\"docker buildx build $STOKER_CACHE_FLAGS .\"",
            "docker buildx build ${STOKER_CACHE_FLAGS-} -t \"$IMAGE\" .",
        ] {
            assert_eq!(told("", &format!("{CREATE}{line}\n")), [], "{line}");
        }
    }

    #[test]
    fn the_builder_that_is_made_is_the_one_that_builds_or_it_is_told() {
        let wrong = [("chosen builder", State::Wrong)];
        let create = "docker buildx create --name b --driver docker-container\n";
        assert_eq!(told("", &format!("{create}{BUILD}")), wrong);
        assert_eq!(told("", &format!("{CREATE}docker buildx use default\n{BUILD}")), wrong);
        assert_eq!(told("", &format!("{CREATE}docker buildx use --global default && {BUILD}")), wrong);
        assert_eq!(told("", &format!("{create}docker buildx use b\n{BUILD}")), []);
        assert_eq!(told("", &format!("{create}docker buildx build --builder b $STOKER_CACHE_FLAGS .\n")), []);
        assert_eq!(told("", &format!("{create}export BUILDX_BUILDER=b\n{BUILD}")), []);
        assert_eq!(told("", &format!("docker buildx use default\n{CREATE}{BUILD}")), []);
        assert_eq!(told("", BUILD), [], "that none is made is told elsewhere");
        let forks = check(&projects("").remove(0), &format!("{create}{BUILD}"), true);
        assert!(forks.is_empty(), "Docker's own is enough to read");
    }

    #[test]
    fn platforms_of_one_command_share_a_cache() {
        for flag in ["--platform linux/amd64,linux/arm64", "--platform=\"linux/amd64,linux/arm64\""] {
            let line = format!("{CREATE}docker buildx build {flag} $STOKER_CACHE_FLAGS .\n");
            assert_eq!(told("", &line), [("platforms", State::Warn)], "{flag}");
        }
        assert_eq!(
            told("", &format!("{CREATE}docker buildx build --platform linux/arm64 $STOKER_CACHE_FLAGS .\n")),
            []
        );
    }

    #[test]
    fn bake_is_given_names_that_its_file_may_not_have() {
        let bake = format!("{CREATE}docker buildx bake -f docker-bake.hcl -f $STOKER_BAKE\n");
        let with_platforms =
            "    targets: [{ name: api, platforms: [linux/amd64, linux/arm64] }, { name: worker }]\n";
        assert_eq!(told(with_platforms, &bake), [("bake targets", State::Unknown)]);
        assert_eq!(told("    targets: [{ name: api }, { name: worker }]\n", &bake), []);
    }
}
