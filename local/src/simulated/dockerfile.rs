//! The part of the Dockerfile language that is understood.

use std::collections::BTreeMap;

/// A Dockerfile is not understood.
#[derive(Debug, thiserror::Error)]
#[error("dockerfile line {line}: {problem}")]
pub(super) struct DockerfileError {
    line: usize,
    problem: String,
}

/// A Dockerfile.
#[derive(Debug)]
pub(super) struct Dockerfile {
    pub(super) stages: Vec<Stage>,
}

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) name: Option<String>,
    pub(super) base: Base,
    /// The `FROM` as it is told.
    pub(super) text: String,
    pub(super) steps: Vec<Step>,
    env: Variables,
}

/// What a stage starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Base {
    Scratch,
    Image(String),
    Stage(usize),
}

/// An instruction that makes a layer.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) text: String,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Run { command: String, variables: Variables },
    Copy { from: From, sources: Vec<String>, flags: Vec<String>, to: String },
    Workdir,
}

/// Where a `COPY` copies from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum From {
    Context,
    Stage(usize),
    Image(String),
}

pub(super) type Variables = BTreeMap<String, String>;

impl Dockerfile {
    /// Reads a Dockerfile.
    pub(super) fn parse(text: &str, build_args: &[(String, String)]) -> Result<Self, DockerfileError> {
        let mut reader = Reader {
            stages: Vec::new(),
            global: Variables::new(),
            args: Variables::new(),
            build_args: build_args.iter().cloned().collect(),
        };
        for (line, text) in instructions(text) {
            reader.read(&text).map_err(|problem| DockerfileError { line, problem })?;
        }
        if reader.stages.is_empty() {
            return Err(DockerfileError { line: 1, problem: "there is no FROM".to_owned() });
        }
        Ok(Self { stages: reader.stages })
    }

    /// A stage by its name or number; the last one without.
    pub(super) fn target(&self, name: Option<&str>) -> Option<usize> {
        match name {
            None => self.stages.len().checked_sub(1),
            Some(name) => find(&self.stages, name),
        }
    }
}

fn find(stages: &[Stage], name: &str) -> Option<usize> {
    let named = |stage: &Stage| stage.name.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(name));
    let number = || name.parse().ok().filter(|number| *number < stages.len());
    stages.iter().position(named).or_else(number)
}

/// The instructions with their lines; comments are gone, continued lines joined.
fn instructions(text: &str) -> Vec<(usize, String)> {
    let mut all = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (i, line) in text.lines().enumerate() {
        let bare = line.trim();
        if bare.starts_with('#') || bare.is_empty() {
            continue;
        }
        let (part, goes_on) = match bare.strip_suffix('\\') {
            Some(part) => (part, true),
            None => (bare, false),
        };
        let (_, joined) = open.get_or_insert_with(|| (i + 1, String::new()));
        joined.push_str(part);
        if !goes_on && let Some(done) = open.take() {
            all.push(done);
        }
    }
    all.extend(open);
    all
}

struct Reader {
    stages: Vec<Stage>,
    /// The arguments before the first `FROM`.
    global: Variables,
    /// The arguments of the stage.
    args: Variables,
    build_args: Variables,
}

impl Reader {
    fn read(&mut self, text: &str) -> Result<(), String> {
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let (name, rest) = (name.to_ascii_uppercase(), rest.trim());
        if rest.contains("<<") && ["RUN", "COPY"].contains(&name.as_str()) {
            return Err("here-documents are not understood".to_owned());
        }
        match name.as_str() {
            "FROM" => self.from(rest),
            "ARG" => self.arg(rest),
            _ if self.stages.is_empty() => Err(format!("{name} comes before the first FROM")),
            "ENV" => self.env(rest),
            "RUN" => {
                let mut variables = self.args.clone();
                variables.extend(self.stage()?.env.clone());
                let kind = Kind::Run { command: rest.to_owned(), variables };
                self.step(format!("RUN {rest}"), kind)
            }
            "WORKDIR" => {
                let path = self.expand(rest)?;
                self.step(format!("WORKDIR {path}"), Kind::Workdir)
            }
            "COPY" => self.copy(rest),
            // They change the image's description only.
            "CMD" | "ENTRYPOINT" | "EXPOSE" | "LABEL" => Ok(()),
            other => Err(format!("{other} is not understood")),
        }
    }

    fn stage(&mut self) -> Result<&mut Stage, String> {
        self.stages.last_mut().ok_or_else(|| "there is no FROM".to_owned())
    }

    fn step(&mut self, text: String, kind: Kind) -> Result<(), String> {
        self.stage()?.steps.push(Step { text, kind });
        Ok(())
    }

    fn from(&mut self, rest: &str) -> Result<(), String> {
        let rest = expand(rest, &[&self.global])?;
        let words: Vec<&str> = rest.split_whitespace().filter(|w| !w.starts_with("--platform=")).collect();
        let (base, name) = match words[..] {
            [base] => (base, None),
            [base, as_, name] if as_.eq_ignore_ascii_case("as") => (base, Some(name.to_owned())),
            _ => return Err(format!("FROM {rest} is not understood")),
        };
        let mut env = Variables::new();
        let base = if base == "scratch" {
            Base::Scratch
        } else if let Some(stage) = find(&self.stages, base).filter(|_| base.parse::<usize>().is_err()) {
            env.clone_from(&self.stages[stage].env);
            Base::Stage(stage)
        } else {
            Base::Image(base.to_owned())
        };
        let text = format!("FROM {}", words[0]);
        self.stages.push(Stage { name, base, text, steps: Vec::new(), env });
        self.args.clear();
        Ok(())
    }

    fn arg(&mut self, rest: &str) -> Result<(), String> {
        let (name, default) = match rest.split_once('=') {
            Some((name, value)) => (name, Some(unquoted(value))),
            None => (rest, None),
        };
        let given = self.build_args.get(name).cloned();
        let is_global = self.stages.is_empty();
        let global = self.global.get(name).cloned().filter(|_| !is_global);
        let value = match given {
            Some(value) => Some(value),
            None => default.map(|text| self.expand(text)).transpose()?.or(global),
        };
        if let Some(value) = value {
            let args = if is_global { &mut self.global } else { &mut self.args };
            args.insert(name.to_owned(), value);
        }
        Ok(())
    }

    fn env(&mut self, rest: &str) -> Result<(), String> {
        let pairs: Vec<(String, String)> = match rest.split_once(char::is_whitespace) {
            Some((name, value)) if !name.contains('=') => {
                vec![(name.to_owned(), unquoted(value.trim()).to_owned())]
            }
            _ => words(rest)?
                .into_iter()
                .map(|word| match word.split_once('=') {
                    Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
                    None => Err(format!("ENV {word} has no value")),
                })
                .collect::<Result<_, _>>()?,
        };
        for (name, value) in pairs {
            let value = self.expand(&value)?;
            self.stage()?.env.insert(name, value);
        }
        Ok(())
    }

    fn copy(&mut self, rest: &str) -> Result<(), String> {
        let rest = self.expand(rest)?;
        if rest.starts_with('[') {
            return Err("COPY with a JSON list is not understood".to_owned());
        }
        let mut from = From::Context;
        let mut flags = Vec::new();
        let mut paths = Vec::new();
        for word in rest.split_whitespace() {
            if let Some(source) = word.strip_prefix("--from=") {
                let stage = find(&self.stages[..self.stages.len() - 1], source);
                from = stage.map_or_else(|| From::Image(source.to_owned()), From::Stage);
            } else if ["--chown=", "--chmod=", "--link"].iter().any(|flag| word.starts_with(flag)) {
                flags.push(word.to_owned());
            } else if word.starts_with("--") {
                return Err(format!("COPY {word} is not understood"));
            } else {
                paths.push(word.to_owned());
            }
        }
        let to = paths.pop().filter(|_| !paths.is_empty()).ok_or("COPY needs a source and a target")?;
        self.step(format!("COPY {rest}"), Kind::Copy { from, sources: paths, flags, to })
    }

    fn expand(&self, text: &str) -> Result<String, String> {
        match self.stages.last() {
            Some(stage) => expand(text, &[&stage.env, &self.args]),
            None => expand(text, &[&self.global]),
        }
    }
}

/// Replaces `$NAME`, `${NAME}` and `${NAME:-default}`.
fn expand(text: &str, scopes: &[&Variables]) -> Result<String, String> {
    let look = |name: &str| scopes.iter().find_map(|scope| scope.get(name)).map_or("", String::as_str);
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(braced) = after.strip_prefix('{') {
            let (name, after) =
                braced.split_once('}').ok_or_else(|| format!("`{text}` has a brace that is not closed"))?;
            match name.split_once(":-") {
                Some((name, default)) if look(name).is_empty() => expanded.push_str(default),
                Some((name, _)) => expanded.push_str(look(name)),
                None => expanded.push_str(look(name)),
            }
            rest = after;
        } else {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            expanded.push_str(if name.is_empty() { "$" } else { look(name) });
            rest = after;
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn unquoted(text: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote)) {
            return inner;
        }
    }
    text
}

/// Words, which quotes may hold together.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c.is_whitespace() => words.push(String::new()),
            _ => {
                if let Some(word) = words.last_mut() {
                    word.push(c);
                }
            }
        }
    }
    if quote.is_some() {
        return Err(format!("`{text}` has a quote that is not closed"));
    }
    words.retain(|word| !word.is_empty());
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# syntax=docker/dockerfile:1
ARG BASE=localhost/base:1
FROM ${BASE} AS deps
ARG V=1
ENV A=\"x y\" B=$V
WORKDIR /src/$B
COPY --chown=1:1 a b \\
  # a comment between
  /to/
RUN make && \\
    make install
FROM deps
COPY --from=deps /src /out
CMD [\"/out\"]
";

    #[test]
    fn stages_and_steps_are_read() {
        let file = Dockerfile::parse(FILE, &[("V".to_owned(), "2".to_owned())]).unwrap();
        assert_eq!(file.stages.len(), 2);
        assert_eq!(file.stages[0].base, Base::Image("localhost/base:1".to_owned()));
        assert_eq!(file.stages[1].base, Base::Stage(0));
        let texts: Vec<&str> = file.stages[0].steps.iter().map(|s| s.text.as_str()).collect();
        assert_eq!(texts, ["WORKDIR /src/2", "COPY --chown=1:1 a b /to/", "RUN make && make install"]);
        let Kind::Run { variables, .. } = &file.stages[0].steps[2].kind else { panic!() };
        assert_eq!(variables["A"], "x y");
        assert_eq!(variables["V"], "2");
        assert!(matches!(&file.stages[1].steps[0].kind, Kind::Copy { from: From::Stage(0), .. }));
        assert_eq!(file.target(Some("DEPS")), Some(0));
        assert_eq!(file.target(None), Some(1));
        assert_eq!(file.target(Some("x")), None);
    }

    #[test]
    fn what_is_not_understood_is_said_with_its_line() {
        let problem = |text: &str| Dockerfile::parse(text, &[]).unwrap_err().to_string();
        assert_eq!(problem("FROM a\n\nADD x /x"), "dockerfile line 3: ADD is not understood");
        assert_eq!(problem("RUN a"), "dockerfile line 1: RUN comes before the first FROM");
        assert!(problem("FROM a\nRUN <<EOF\nx\nEOF").contains("here-documents"));
        assert!(problem("FROM a\nCOPY --parents a b").contains("--parents"));
        assert!(problem("").contains("no FROM"));
    }
}
