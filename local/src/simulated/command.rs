//! The part of the `docker` command line that is understood.

/// A command line is not understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("`docker {0}` is not understood")]
    Unknown(String),
    #[error("flag `{0}` is not understood")]
    Flag(String),
    #[error("flag `{0}` needs a value")]
    NoValue(String),
    #[error("`{flag} {value}`: {problem}")]
    Value { flag: &'static str, value: String, problem: String },
    #[error("`docker buildx build` needs exactly one context")]
    Context,
}

/// A command.
#[derive(Debug)]
pub(super) enum Command {
    /// A build.
    Build(Box<Build>),
    /// `docker buildx bake` of a file on standard input.
    Bake,
    /// An answer that needs no work.
    Say(String),
    /// `docker login`.
    Login,
}

/// `docker buildx build`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Build {
    pub(super) file: Option<String>,
    pub(super) context: String,
    pub(super) tags: Vec<String>,
    pub(super) cache_from: Vec<String>,
    pub(super) cache_to: Vec<CacheTo>,
    pub(super) args: Vec<(String, String)>,
    pub(super) target: Option<String>,
    pub(super) platform: Option<String>,
    pub(super) network: Option<String>,
    pub(super) no_cache: bool,
    pub(super) push: bool,
}

/// Where a cache is exported to, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CacheTo {
    pub(super) reference: String,
    pub(super) all_stages: bool,
    pub(super) ignore_error: bool,
}

impl Command {
    /// Reads a command line, without `docker`.
    pub(super) fn parse(arguments: &[String]) -> Result<Self, CommandError> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let say = |text: &str| Ok(Self::Say(text.to_owned()));
        match words[..] {
            ["buildx", "build" | "b", ..] => Ok(Self::Build(Box::new(Build::parse(&arguments[2..])?))),
            ["build", ..] => Ok(Self::Build(Box::new(Build::parse(&arguments[1..])?))),
            ["buildx", "bake", "--file" | "-f", "-"] => Ok(Self::Bake),
            ["version" | "--version" | "-v", ..] => say("Docker version 0.0.0, simulated by stoker-local"),
            ["info", ..] => say("Server Version: 0.0.0 (simulated by stoker-local)\nStorage Driver: none"),
            ["buildx", "version", ..] => say("github.com/docker/buildx v0.0.0 simulated by stoker-local"),
            ["buildx", "create", ..] => say("simulated"),
            ["buildx", "use" | "rm", ..] => say("simulated builder"),
            ["buildx", "inspect" | "ls", ..] => say("Name:   simulated\nDriver: simulated\nStatus: running"),
            ["login", ..] => Ok(Self::Login),
            ["push" | "tag", ..] => say("simulated docker: there are no images, nothing is done"),
            _ => Err(CommandError::Unknown(words.iter().take(2).copied().collect::<Vec<_>>().join(" "))),
        }
    }
}

impl Build {
    fn parse(arguments: &[String]) -> Result<Self, CommandError> {
        let mut build = Self::default();
        let mut contexts = Vec::new();
        let mut rest = arguments.iter();
        while let Some(word) = rest.next() {
            if !word.starts_with('-') || word == "-" {
                contexts.push(word.clone());
                continue;
            }
            let (flag, given) = match word.split_once('=').filter(|_| word.starts_with("--")) {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            if build.switch(flag) {
                continue;
            }
            let mut value =
                || given.clone().or_else(|| rest.next().cloned()).ok_or(CommandError::NoValue(word.clone()));
            match flag {
                "-f" | "--file" => build.file = Some(value()?),
                "-t" | "--tag" => build.tags.push(value()?),
                "--cache-from" => build.cache_from.push(cache_from(&value()?)?),
                "--cache-to" => build.cache_to.push(cache_to(&value()?)?),
                "--build-arg" => {
                    let value = value()?;
                    let (name, value) = match value.split_once('=') {
                        Some((name, value)) => (name.to_owned(), value.to_owned()),
                        None => (value.clone(), std::env::var(&value).unwrap_or_default()),
                    };
                    build.args.push((name, value));
                }
                "--target" => build.target = Some(value()?),
                "--platform" => {
                    let value = value()?;
                    if value.contains(',') {
                        let problem = "one platform at a time".to_owned();
                        return Err(CommandError::Value { flag: "--platform", value, problem });
                    }
                    build.platform = Some(value);
                }
                "--network" => build.network = Some(value()?),
                // What they ask for makes no difference here.
                "--progress" | "--output" | "-o" | "--provenance" | "--sbom" | "--builder" | "--label" => {
                    value()?;
                }
                other => return Err(CommandError::Flag(other.to_owned())),
            }
        }
        let [context] = &contexts[..] else { return Err(CommandError::Context) };
        build.context.clone_from(context);
        Ok(build)
    }

    fn switch(&mut self, flag: &str) -> bool {
        match flag {
            "--push" => self.push = true,
            "--no-cache" => self.no_cache = true,
            "--load" | "--pull" | "--quiet" | "-q" => {}
            _ => return false,
        }
        true
    }
}

fn fields(value: &str) -> impl Iterator<Item = (&str, &str)> {
    value.split(',').map(|field| field.split_once('=').unwrap_or((field, "true")))
}

fn cache_from(value: &str) -> Result<String, CommandError> {
    let wrong =
        |problem: String| CommandError::Value { flag: "--cache-from", value: value.to_owned(), problem };
    let mut reference = (!value.contains('=')).then(|| value.to_owned());
    if reference.is_none() {
        for field in fields(value) {
            match field {
                ("type", "registry") => {}
                ("type", other) => return Err(wrong(format!("type `{other}` is not understood"))),
                ("ref", text) => reference = Some(text.to_owned()),
                (other, _) => return Err(wrong(format!("`{other}` is not understood"))),
            }
        }
    }
    reference.ok_or_else(|| wrong("`ref` is missing".to_owned()))
}

fn cache_to(value: &str) -> Result<CacheTo, CommandError> {
    let wrong =
        |problem: String| CommandError::Value { flag: "--cache-to", value: value.to_owned(), problem };
    let mut reference = None;
    let mut to = CacheTo { reference: String::new(), all_stages: false, ignore_error: false };
    for field in fields(value) {
        match field {
            ("type", "registry")
            | ("image-manifest" | "oci-mediatypes", "true")
            | ("compression" | "compression-level" | "force-compression", _) => {}
            ("ref", text) => reference = Some(text.to_owned()),
            ("mode", "max") => to.all_stages = true,
            ("mode", "min") => to.all_stages = false,
            ("ignore-error", text) => to.ignore_error = text == "true",
            (name, text) => return Err(wrong(format!("`{name}={text}` is not understood"))),
        }
    }
    to.reference = reference.ok_or_else(|| wrong("`ref` is missing".to_owned()))?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(line: &str) -> Result<Build, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        match Command::parse(&words) {
            Ok(Command::Build(build)) => Ok(*build),
            Ok(_) => Err("no build".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_build_line_is_read() {
        let line = "buildx build --cache-from type=registry,ref=127.0.0.1:1/a@sha256:00 --cache-to \
                    type=registry,ref=127.0.0.1:1/a:x,mode=max,image-manifest=true,oci-mediatypes=true,\
                    ignore-error=true --build-arg=A=1=2 -t app --push --file Dockerfile.x .";
        let expected = Build {
            file: Some("Dockerfile.x".to_owned()),
            context: ".".to_owned(),
            tags: vec!["app".to_owned()],
            cache_from: vec!["127.0.0.1:1/a@sha256:00".to_owned()],
            cache_to: vec![CacheTo {
                reference: "127.0.0.1:1/a:x".to_owned(),
                all_stages: true,
                ignore_error: true,
            }],
            args: vec![("A".to_owned(), "1=2".to_owned())],
            push: true,
            ..Build::default()
        };
        assert_eq!(build(line), Ok(expected));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        assert_eq!(build("buildx build --ssh default ."), Err("flag `--ssh` is not understood".to_owned()));
        assert_eq!(build("run x"), Err("`docker run x` is not understood".to_owned()));
        assert_eq!(build("build --file"), Err("flag `--file` needs a value".to_owned()));
        assert!(build("build --cache-from type=gha .").unwrap_err().contains("type `gha`"));
        assert!(build("build --cache-to type=registry .").unwrap_err().contains("`ref` is missing"));
    }
}
