//! Where a cache is: `registry/repository:tag` or `registry/repository@sha256:...`, as Docker writes it.

use std::fmt;
use std::str::FromStr;

use stoker_core::names::{Digest, Tag};

/// The registry behind Docker's short names, and the name under which Docker knows it.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
const DOCKER_HUB_LOGIN: &str = "https://index.docker.io/v1/";

/// A parsed reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reference {
    registry: String,
    /// The repository's whole path.
    pub(crate) repository: String,
    /// What of the repository is meant.
    pub(crate) version: Version,
}

/// A tag, or a digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    Tag(String),
    Digest(Digest),
}

/// A repository as a whole: a reference without tag or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repository(Reference);

/// Text is no reference.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAReference {
    #[error("write it without `{0}`, as in registry.example/app/cache:main")]
    HasScheme(String),
    #[error("`{0}` is not a registry's host name")]
    Host(String),
    #[error(
        "`{0}` is not a repository: expected lower-case letters and digits, with single `.`, `_`, `-` and `/` \
         between them"
    )]
    Repository(String),
    #[error("`{0}` is not a tag: expected 1 to 128 letters, digits, `.`, `_` and `-`")]
    Tag(String),
    #[error("`{0}` is not a digest: expected `sha256:` and 64 hexadecimal digits")]
    Digest(String),
    #[error("write the repository only, without `{0}`, as in registry.example/app/cache")]
    HasVersion(String),
}

impl Reference {
    /// The host to talk to.
    pub(crate) fn host(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_HOST } else { &self.registry }
    }

    /// The name under which Docker keeps the registry's credentials.
    pub(crate) fn login(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_LOGIN } else { &self.registry }
    }

    /// The repository that it is in.
    pub(crate) fn whole_repository(&self) -> Repository {
        Repository(self.clone())
    }

    /// Something else in its repository.
    pub(crate) fn beside(&self, digest: Digest) -> Self {
        Self { version: Version::Digest(digest), ..self.clone() }
    }

    /// The tag, if it is one.
    pub(crate) fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }
}

impl FromStr for Reference {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, NotAReference> {
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(NotAReference::HasScheme(format!("{scheme}://")));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let digest = Digest::new(digest).map_err(|_| NotAReference::Digest(digest.to_owned()))?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        let (registry, path) = match name.split_once('/') {
            // Docker's rule for telling a host from the first part of a short name.
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => (DOCKER_HUB, name),
        };
        let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
        let (repository, tag) = path.split_once(':').unwrap_or((path, "latest"));
        if !is_host(registry) {
            return Err(NotAReference::Host(registry.to_owned()));
        }
        let is_official = registry == DOCKER_HUB && !repository.contains('/');
        let whole = if is_official { format!("library/{repository}") } else { repository.to_owned() };
        if !is_repository(&whole) {
            return Err(NotAReference::Repository(repository.to_owned()));
        }
        if !is_tag(tag) {
            return Err(NotAReference::Tag(tag.to_owned()));
        }
        // As for Docker, a digest beside a tag is what counts.
        let version = digest.map_or_else(|| Version::Tag(tag.to_owned()), Version::Digest);
        Ok(Self { registry: registry.to_ascii_lowercase(), repository: whole, version })
    }
}

impl Repository {
    /// A reference in it, to know the registry by.
    pub(crate) fn any(&self) -> &Reference {
        &self.0
    }

    /// Its path in the registry.
    pub(crate) fn path(&self) -> &str {
        &self.0.repository
    }

    /// A tag of it.
    pub(crate) fn at(&self, tag: &Tag) -> Reference {
        Reference { version: Version::Tag(tag.to_string()), ..self.0.clone() }
    }
}

impl FromStr for Repository {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, NotAReference> {
        // A colon before the last slash is that of a port.
        let path = text.rfind('/').map_or(0, |slash| slash + 1);
        match text.find('@').or_else(|| text[path..].find(':').map(|colon| path + colon)) {
            Some(end) if !text.contains("://") => Err(NotAReference::HasVersion(text[end..].to_owned())),
            _ => text.parse().map(Self),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.registry, self.0.repository)
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c));
    let is_v6 = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    (is_name || is_v6) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Words of lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_repository(path: &str) -> bool {
    let is_word_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |s: &str| ["", ".", "_", "__"].contains(&s) || s.chars().all(|c| c == '-');
    path.len() <= 255
        && path.split('/').all(|part| {
            part.starts_with(is_word_char)
                && part.ends_with(is_word_char)
                && part.split(is_word_char).all(is_separator)
        })
}

fn is_tag(tag: &str) -> bool {
    let is_word_char = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=128).contains(&tag.len())
        && tag.starts_with(is_word_char)
        && tag.chars().all(|c| is_word_char(c) || ".-".contains(c))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.tag().is_some() { ':' } else { '@' };
        write!(f, "{}/{}{separator}{}", self.registry, self.repository, self.version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, NotAReference> {
        text.parse::<Reference>().map(|reference| reference.to_string())
    }

    #[test]
    fn references_are_read_as_docker_reads_them() {
        let digest = Digest::of(b"");
        for (text, whole) in [
            ("registry.example/app/cache:main".to_owned(), "registry.example/app/cache:main".to_owned()),
            ("registry.example/app".to_owned(), "registry.example/app:latest".to_owned()),
            ("localhost/app:x".to_owned(), "localhost/app:x".to_owned()),
            ("localhost:5000/app:x".to_owned(), "localhost:5000/app:x".to_owned()),
            ("[::1]:5000/a__b--c.d/e".to_owned(), "[::1]:5000/a__b--c.d/e:latest".to_owned()),
            ("alpine".to_owned(), "docker.io/library/alpine:latest".to_owned()),
            ("team/app:Main_1.x-y".to_owned(), "docker.io/team/app:Main_1.x-y".to_owned()),
            ("index.docker.io/team/app".to_owned(), "docker.io/team/app:latest".to_owned()),
            (format!("team/app:x@{digest}"), format!("docker.io/team/app@{digest}")),
            (
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:a".to_owned(),
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:a".to_owned(),
            ),
        ] {
            assert_eq!(parse(&text), Ok(whole), "{text}");
        }
        let hub: Reference = "alpine".parse().unwrap();
        assert_eq!((hub.host(), hub.login()), (DOCKER_HUB_HOST, DOCKER_HUB_LOGIN));
    }

    #[test]
    fn a_repository_has_no_tag() {
        for (text, whole) in [
            ("registry.example/app/cache", "registry.example/app/cache"),
            ("localhost:5000/app", "localhost:5000/app"),
            ("team/app", "docker.io/team/app"),
        ] {
            assert_eq!(text.parse::<Repository>().unwrap().to_string(), whole);
        }
        for (text, version) in [
            ("localhost:5000/app:main", ":main"),
            ("app:main", ":main"),
            ("registry.example/app:x@sha256:12", "@sha256:12"),
        ] {
            let refused = Err(NotAReference::HasVersion(version.to_owned()));
            assert_eq!(text.parse::<Repository>(), refused);
        }
        assert!(matches!("https://a.example/b".parse::<Repository>(), Err(NotAReference::HasScheme(_))));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "https://registry.example/app",
            "registry.example/",
            "registry.example/App",
            "registry.example/a//b",
            "registry.example/a/../b",
            "registry.example/a.-b",
            "registry.example/app:",
            "registry.example/app:.x",
            "registry.example/app:a b",
            "registry.example/app@sha256:12",
            "registry.example/app@md5:12",
            "regis\ttry.example/app",
            "user@registry.example/app",
            "registry.example:99999/app",
            "[::g]:1/app",
            "",
            "-",
        ] {
            assert!(parse(text).is_err(), "{text}: {:?}", parse(text));
        }
    }
}
