//! The part of `CodeBuild`'s buildspec that is understood here, and the shell script that runs it.
//!
//! All commands run in one shell, as they do in `CodeBuild`: variables and the working directory last. A command that
//! fails ends its phase; after `build`, failed or not, comes `post_build`. The script tells its progress by marks on
//! its output, which the machine takes out.

use std::fmt::Write as _;

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};

use crate::build::Phase;

/// A buildspec is not understood.
#[derive(Debug, thiserror::Error)]
pub enum BuildspecError {
    /// It is not YAML.
    #[error("the buildspec is not valid YAML")]
    Yaml(#[source] saphyr::ScanError),
    /// A field is missing, wrong, or not understood here.
    #[error("buildspec: `{field}` {problem}")]
    Field {
        /// Where.
        field: String,
        /// What is wrong.
        problem: String,
    },
}

fn wrong<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, BuildspecError> {
    Err(BuildspecError::Field { field: field.into(), problem: problem.into() })
}

/// A buildspec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buildspec {
    /// `sh` or `bash`.
    pub shell: String,
    /// Variables that hold unless the build has them.
    pub variables: Vec<(String, String)>,
    /// Variables whose values are reported.
    pub exported: Vec<String>,
    /// The commands of `install`, `pre_build`, `build` and `post_build`.
    pub commands: [Vec<String>; 4],
}

/// The phases of a buildspec.
pub const PHASES: [Phase; 4] = [Phase::Install, Phase::PreBuild, Phase::Build, Phase::PostBuild];
const NAMES: [&str; 4] = ["install", "pre_build", "build", "post_build"];

impl Buildspec {
    /// Reads a buildspec.
    pub fn parse(text: &str) -> Result<Self, BuildspecError> {
        let documents = Yaml::load_from_str(text).map_err(BuildspecError::Yaml)?;
        let [document] = &documents[..] else {
            return wrong("version", "is missing");
        };
        let mut spec = Self {
            shell: "sh".to_owned(),
            variables: Vec::new(),
            exported: Vec::new(),
            commands: Default::default(),
        };
        let mut version = None;
        let mut has_phases = false;
        for (name, value) in mapping("the document", document)? {
            match name {
                "version" => version = Some(text_of("version", value)?),
                "env" => spec.env(value)?,
                "phases" => {
                    has_phases = true;
                    spec.phases(value)?;
                }
                other => return wrong(other, "is not understood here"),
            }
        }
        match version.as_deref() {
            Some("0.2") if has_phases => Ok(spec),
            Some("0.2") => wrong("phases", "is missing"),
            Some(_) => wrong("version", "must be 0.2"),
            None => wrong("version", "is missing"),
        }
    }

    fn env(&mut self, env: &Yaml<'_>) -> Result<(), BuildspecError> {
        for (name, value) in mapping("env", env)? {
            match name {
                "shell" => {
                    self.shell = text_of("env.shell", value)?;
                    if !["sh", "bash"].contains(&self.shell.as_str()) {
                        return wrong("env.shell", "must be sh or bash");
                    }
                }
                "variables" => {
                    for (name, value) in mapping("env.variables", value)? {
                        let value = text_of(&format!("env.variables.{name}"), value)?;
                        self.variables.push((name.to_owned(), value));
                    }
                }
                "exported-variables" => {
                    self.exported = list("env.exported-variables", value)?;
                    let legal = |name: &&String| {
                        !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') || name.is_empty()
                    };
                    if let Some(name) = self.exported.iter().find(legal) {
                        return wrong("env.exported-variables", format!("has `{name}`, which is no name"));
                    }
                }
                other => return wrong(format!("env.{other}"), "is not understood here"),
            }
        }
        Ok(())
    }

    fn phases(&mut self, phases: &Yaml<'_>) -> Result<(), BuildspecError> {
        for (name, phase) in mapping("phases", phases)? {
            let Some(place) = NAMES.iter().position(|known| *known == name) else {
                return wrong(format!("phases.{name}"), "is not a phase");
            };
            for (field, value) in mapping(&format!("phases.{name}"), phase)? {
                let path = format!("phases.{name}.{field}");
                if field == "commands" {
                    self.commands[place] = list(&path, value)?;
                } else {
                    return wrong(path, "is not understood here");
                }
            }
        }
        Ok(())
    }

    /// The scripts of a build: the main one, and the one of `post_build`, which the main one reads from the path
    /// `post`. Marks begin with `token`. Exported variables are written to files in the directory `exports`.
    #[must_use]
    pub fn scripts(&self, token: &str, post: &str, exports: &str) -> (String, String) {
        let mut main = format!("__mark() {{ printf '%s %s\\n' {} \"$*\"; }}\n", quoted(token));
        main.push_str("__exports() {\n");
        for name in &self.exported {
            let file = quoted(&format!("{exports}/{name}"));
            let _ = writeln!(main, "  printf '%s' \"${{{name}-}}\" > {file}");
        }
        main.push_str("  :\n}\n");
        // A command that leaves the shell ends its phase too; what has to come after a build still comes.
        let _ = writeln!(
            main,
            "export CODEBUILD_BUILD_SUCCEEDING=1\n\
             __left() {{ __mark end \"$__phase\" \"$__code\"; CODEBUILD_BUILD_SUCCEEDING=0; }}\n\
             trap '__code=$?; trap - EXIT; [ -z \"$__phase\" ] || __left; \
             if [ \"$__phase\" = 2 ]; then __phase=3; . {}; fi; __exports' EXIT",
            quoted(post)
        );
        for place in 0..3 {
            main.push_str(&self.phase(place));
            if place < 2 {
                main.push_str("[ \"$__code\" -eq 0 ] || exit 1\n");
            }
        }
        let _ = writeln!(main, ". {}", quoted(post));
        (main, self.phase(3))
    }

    fn phase(&self, place: usize) -> String {
        let mut script = format!("__phase={place}; __code=0; __mark start {place} 0\nfor __once in 1; do\n");
        for (i, command) in self.commands[place].iter().enumerate() {
            let _ = writeln!(
                script,
                "__mark run {place} {i}\neval {}\n__code=$?; [ \"$__code\" -eq 0 ] || break",
                quoted(command)
            );
        }
        let _ = writeln!(
            script,
            ":\ndone\n__mark end {place} \"$__code\"\n\
             [ \"$__code\" -eq 0 ] || CODEBUILD_BUILD_SUCCEEDING=0\n__phase="
        );
        script
    }
}

/// What the script tells of its progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// A phase starts.
    Start(usize),
    /// A command of a phase starts.
    Run(usize, usize),
    /// A phase ends, with the exit code of its last command.
    End(usize, i32),
}

impl Mark {
    /// Finds a mark in a line of output; also returns what stands before it.
    #[must_use]
    pub fn find<'a>(line: &'a str, token: &str) -> Option<(&'a str, Self)> {
        let (before, mark) = line.split_once(token)?;
        let mut words = mark.split_whitespace();
        let (kind, place, number) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        let mark = match kind {
            "start" => Self::Start(place),
            "run" => Self::Run(place, number.parse().ok()?),
            "end" => Self::End(place, number.parse().ok()?),
            _ => return None,
        };
        (place < PHASES.len()).then_some((before, mark))
    }
}

/// A word that a shell takes as it is.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn mapping<'a>(field: &str, yaml: &'a Yaml<'_>) -> Result<Vec<(&'a str, &'a Yaml<'a>)>, BuildspecError> {
    let Some(mapping) = yaml.as_mapping() else {
        return wrong(field, "must be a mapping");
    };
    mapping
        .iter()
        .map(|(name, value)| match name.as_str() {
            Some(name) => Ok((name, value)),
            None => wrong(field, "has a key that is no text"),
        })
        .collect()
}

fn list(field: &str, yaml: &Yaml<'_>) -> Result<Vec<String>, BuildspecError> {
    let Some(items) = yaml.as_sequence() else {
        return wrong(field, "must be a list");
    };
    items.iter().map(|item| text_of(field, item)).collect()
}

fn text_of(field: &str, yaml: &Yaml<'_>) -> Result<String, BuildspecError> {
    match yaml {
        Yaml::Value(Scalar::String(text)) => Ok(text.clone().into_owned()),
        Yaml::Value(Scalar::Integer(number)) => Ok(number.to_string()),
        Yaml::Value(Scalar::Boolean(truth)) => Ok(truth.to_string()),
        Yaml::Value(Scalar::FloatingPoint(number)) => Ok(number.to_string()),
        _ => wrong(field, "must be a text"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const SPEC: &str = r#"
version: 0.2
env:
  variables:
    COUNT: 3
  exported-variables: [RESULT]
phases:
  pre_build:
    commands:
      - WORD="it's"
      - cd /
  build:
    commands:
      - |
        RESULT="$WORD $COUNT"
        echo "$RESULT in $(pwd)"
      - COMMAND
      - echo not reached
  post_build:
    commands:
      - echo "post $RESULT"
"#;

    fn run(shell: &str, command: &str) -> (Vec<String>, String) {
        let dir = std::env::temp_dir().join(format!("buildspec-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let spec = Buildspec::parse(&SPEC.replace("COMMAND", command)).unwrap();
        let (main, post) = spec.scripts("@@", &path("post"), dir.to_str().unwrap());
        std::fs::write(path("main"), main).unwrap();
        std::fs::write(path("post"), post).unwrap();
        let mut shell = Command::new(shell);
        shell.arg(path("main")).envs(spec.variables.iter().map(|(n, v)| (n, v)));
        let output = shell.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let result = std::fs::read_to_string(path("RESULT")).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let keep = |line: &&str| !line.starts_with("@@ run");
        (lines.lines().filter(keep).map(str::to_owned).collect(), result)
    }

    fn scenario(build: &[&str], code: i32) -> Vec<String> {
        let mut lines: Vec<String> =
            ["@@ start 0 0", "@@ end 0 0", "@@ start 1 0", "@@ end 1 0", "@@ start 2 0"]
                .map(str::to_owned)
                .to_vec();
        lines.push("it's 3 in /".to_owned());
        lines.extend(build.iter().map(|&l| l.to_owned()));
        lines.push(format!("@@ end 2 {code}"));
        lines.extend(["@@ start 3 0", "post it's 3", "@@ end 3 0"].map(str::to_owned));
        lines
    }

    #[test]
    fn phases_run_in_one_shell() {
        for shell in ["sh", "bash"] {
            assert_eq!(run(shell, "true"), (scenario(&["not reached"], 0), "it's 3".to_owned()), "{shell}");
        }
    }

    #[test]
    fn a_failing_command_ends_the_phase_and_post_build_still_runs() {
        for shell in ["sh", "bash"] {
            for (command, code) in [("false", 1), ("exit 7", 7), ("set -e; false; true", 1)] {
                assert_eq!(run(shell, command).0, scenario(&[], code), "{shell}: {command}");
            }
        }
    }

    #[test]
    fn mistakes_are_reported_with_their_place() {
        let problem = |text: &str| Buildspec::parse(text).unwrap_err().to_string();
        assert_eq!(problem("version: 0.1\nphases: {}"), "buildspec: `version` must be 0.2");
        assert_eq!(problem("version: 0.2"), "buildspec: `phases` is missing");
        let text = "version: 0.2\nphases: {build: {command: [a]}}";
        assert_eq!(problem(text), "buildspec: `phases.build.command` is not understood here");
        assert!(problem("a: [").contains("not valid YAML"));
    }

    #[test]
    fn marks_are_found_behind_unfinished_lines() {
        assert_eq!(Mark::find("text@@ end 2 7", "@@"), Some(("text", Mark::End(2, 7))));
        assert_eq!(Mark::find("@@ start 9 0", "@@"), None);
        assert_eq!(Mark::find("text", "@@"), None);
    }
}
