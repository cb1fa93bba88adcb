//! What provenance of `mode=max` says of a build: its operations, from which the digests of records follow exactly
//! (`CacheMap` in `solver/llbsolver/ops/exec.go`).

use std::collections::BTreeMap;
use std::fmt;

use buildkit_cache::Digest;
use dockerfile_keys::record_of;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// More operations than any build has are not read.
const MOST_OPERATIONS: usize = 20_000;

/// The operations of a build.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Llb {
    pub(crate) commands: Vec<Command>,
    /// The parameters of the frontend, such as `build-arg:VERSION` and `no-cache`.
    pub(crate) parameters: BTreeMap<String, String>,
}

/// A `RUN`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Command {
    /// Its line in the Dockerfile, from 1.
    pub(crate) line: Option<usize>,
    /// The digests of its vertices.
    pub(crate) vertices: Vec<String>,
    exec: Ordered,
    platform: [String; 3],
}

/// The networks that a command may have, as people call them, and BuildKit's number for each.
pub(crate) const NETWORKS: [(&str, u8); 3] = [("default", 0), ("host", 1), ("none", 2)];

impl Llb {
    /// Reads provenance: an in-toto statement, or its predicate. Nothing if it has no operations, as with `mode=min`.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let ordered: Ordered = serde_json::from_str(text).ok()?;
        let is_statement = value.get("predicate").is_some();
        let (value, ordered) =
            if is_statement { (&value["predicate"], ordered.get("predicate")?) } else { (&value, &ordered) };
        let at = |paths: [&str; 2]| paths.into_iter().find_map(|path| value.pointer(path));
        let config = ordered
            .get("buildConfig")
            .or_else(|| ordered.get("buildDefinition")?.get("internalParameters")?.get("buildConfig"))?;
        let locations = at([
            "/metadata/https:~1~1mobyproject.org~1buildkit@v1#metadata/source/locations",
            "/runDetails/metadata/buildkit_metadata/source/locations",
        ]);
        let line = |id: &str| {
            let line = locations?.get(id)?.pointer("/locations/0/ranges/0/start/line")?.as_u64()?;
            usize::try_from(line).ok()
        };
        let mut vertices: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (digest, id) in config.get("digestMapping").map_or(&[][..], Ordered::entries) {
            vertices.entry(id.text().unwrap_or_default()).or_default().push(digest.clone());
        }
        let Ordered::List(operations) = config.get("llbDefinition")? else { return None };
        let mut commands = Vec::new();
        for operation in operations.iter().take(MOST_OPERATIONS) {
            let Some(id) = operation.get("id").and_then(Ordered::text) else { continue };
            let Some(op) = operation.get("op") else { continue };
            let Some(exec) = op.get("Op").and_then(|op| op.get("exec")) else { continue };
            let part = |name| {
                let platform = op.get("platform");
                platform.and_then(|it| it.get(name)).and_then(Ordered::text).unwrap_or_default().to_owned()
            };
            let vertices = vertices.remove(id).unwrap_or_default();
            let platform = ["OS", "Architecture", "Variant"].map(part);
            commands.push(Command { line: line(id), vertices, exec: keyed(exec), platform });
        }
        let parameters =
            at(["/invocation/parameters/args", "/buildDefinition/externalParameters/request/args"]);
        let parameters = parameters.and_then(Value::as_object).into_iter().flatten();
        let parameters =
            parameters.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect();
        Some(Self { commands, parameters })
    }
}

/// What of a command is part of its key.
fn keyed(exec: &Ordered) -> Ordered {
    let mut exec = exec.clone();
    if let Some(meta) = exec.get_mut("meta") {
        meta.remove("proxy_env");
    }
    let mut is_plain = false;
    if let Some(Ordered::List(mounts)) = exec.get_mut("mounts") {
        for mount in mounts.iter_mut() {
            mount.remove("selector");
        }
        is_plain = matches!(mounts.as_slice(), [one] if one.get("dest").and_then(Ordered::text) == Some("/"));
    }
    // As it was before mounts were part of the key.
    if is_plain {
        exec.remove("mounts");
    }
    exec
}

impl Command {
    /// The digest of its record.
    pub(crate) fn record(&self) -> String {
        self.record_with(&self.exec)
    }

    /// The digests that its record would have on other networks, with their names.
    pub(crate) fn on_other_networks(&self) -> Vec<(&'static str, String)> {
        let own = self.exec.get("network").and_then(Ordered::number).unwrap_or(0);
        let others = NETWORKS.into_iter().filter(|(_, number)| u64::from(*number) != own);
        let with = |number: u8| {
            let mut exec = self.exec.clone();
            exec.remove("network");
            if let (Ordered::Map(fields), true) = (&mut exec, number > 0) {
                let place = fields.iter().position(|(name, _)| !["meta", "mounts"].contains(&name.as_str()));
                let place = place.unwrap_or(fields.len());
                fields.insert(place, ("network".to_owned(), Ordered::Other(Value::from(number))));
            }
            self.record_with(&exec)
        };
        others.map(|(name, number)| (name, with(number))).collect()
    }

    /// The network that it has.
    pub(crate) fn network(&self) -> &'static str {
        let own = self.exec.get("network").and_then(Ordered::number).unwrap_or(0);
        NETWORKS.iter().find(|(_, number)| u64::from(*number) == own).map_or("another", |(name, _)| name)
    }

    /// The digest that its record would have with another value of a variable; nothing if it has no such variable.
    pub(crate) fn with_variable(&self, name: &str, value: &str) -> Option<String> {
        let mut exec = self.exec.clone();
        let Ordered::List(variables) = exec.get_mut("meta")?.get_mut("env")? else { return None };
        let is_it =
            |it: &&mut Ordered| it.text().and_then(|it| it.split_once('=')).is_some_and(|it| it.0 == name);
        *variables.iter_mut().find(is_it)? = Ordered::Other(Value::from(format!("{name}={value}")));
        Some(self.record_with(&exec))
    }

    /// Whether it has this variable.
    pub(crate) fn has_variable(&self, name: &str) -> bool {
        self.with_variable(name, "").is_some()
    }

    fn record_with(&self, exec: &Ordered) -> String {
        let [os, architecture, variant] = &self.platform;
        let text = |text: &str| Ordered::Other(Value::from(text));
        let mut fields = vec![
            ("Type".to_owned(), text("buildkit.exec.v0")),
            ("Exec".to_owned(), exec.clone()),
            ("OS".to_owned(), text(os)),
            ("Arch".to_owned(), text(architecture)),
        ];
        if !variant.is_empty() {
            fields.push(("Variant".to_owned(), text(variant)));
        }
        let json = Ordered::Map(fields).as_go_writes_it();
        record_of(&Digest::of(json.as_bytes()).to_string())
    }
}

/// JSON whose fields keep their order, as digests depend on it.
#[derive(Debug, Clone, PartialEq)]
enum Ordered {
    Map(Vec<(String, Ordered)>),
    List(Vec<Ordered>),
    Other(Value),
}

impl Ordered {
    fn entries(&self) -> &[(String, Self)] {
        if let Self::Map(fields) = self { fields } else { &[] }
    }

    fn get(&self, name: &str) -> Option<&Self> {
        self.entries().iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut Self> {
        let Self::Map(fields) = self else { return None };
        fields.iter_mut().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn remove(&mut self, name: &str) {
        if let Self::Map(fields) = self {
            fields.retain(|(known, _)| known != name);
        }
    }

    fn text(&self) -> Option<&str> {
        if let Self::Other(value) = self { value.as_str() } else { None }
    }

    fn number(&self) -> Option<u64> {
        if let Self::Other(value) = self { value.as_u64() } else { None }
    }

    /// Go escapes what HTML could mistake for markup.
    fn as_go_writes_it(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        [
            ('<', "\\u003c"),
            ('>', "\\u003e"),
            ('&', "\\u0026"),
            ('\u{2028}', "\\u2028"),
            ('\u{2029}', "\\u2029"),
        ]
        .into_iter()
        .fold(text, |text, (from, to)| text.replace(from, to))
    }

    fn write(&self, to: &mut String) {
        match self {
            Self::Map(fields) => {
                to.push('{');
                for (number, (name, value)) in fields.iter().enumerate() {
                    to.push_str(if number == 0 { "" } else { "," });
                    to.push_str(&Value::from(name.as_str()).to_string());
                    to.push(':');
                    value.write(to);
                }
                to.push('}');
            }
            Self::List(values) => {
                to.push('[');
                for (number, value) in values.iter().enumerate() {
                    to.push_str(if number == 0 { "" } else { "," });
                    value.write(to);
                }
                to.push(']');
            }
            Self::Other(value) => to.push_str(&value.to_string()),
        }
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Ordered;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Ordered::Map(fields))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ordered, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Ordered::List(values))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Ordered, E> {
                Ok(Ordered::Other(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Ordered, E> {
                Ok(Ordered::Other(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Ordered, E> {
                Ok(Ordered::Other(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Ordered, E> {
                Ok(Ordered::Other(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Ordered, E> {
                Ok(Ordered::Other(value.into()))
            }

            fn visit_unit<E>(self) -> Result<Ordered, E> {
                Ok(Ordered::Other(Value::Null))
            }
        }
        input.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As BuildKit 0.13 wrote it, and the records that it exported.
    const EXEC: &str = r#"{"buildConfig":{"llbDefinition":[{"id":"step8","op":{"Op":{"exec":{"meta":{"args":["/bin/sh","-c",
        "echo why16697 v $V \u003e /app"],"env":["PATH=/bin","V=1"],"cwd":"/","removeMountStubsRecursive":true},
        "mounts":[{"input":0,"dest":"/","output":0}]}},"platform":{"Architecture":"amd64","OS":"linux"},"constraints":{}}}],
        "digestMapping":{"sha256:b6bd":"step8"}},
        "invocation":{"parameters":{"args":{"build-arg:V":"1"}}},
        "metadata":{"https://mobyproject.org/buildkit@v1#metadata":{"source":{"locations":{"step8":{"locations":[
        {"ranges":[{"start":{"line":11},"end":{"line":11}}]}]}}}}}}"#;

    #[test]
    fn a_commands_record_is_the_one_that_buildkit_exports() {
        let llb = Llb::read(EXEC).unwrap();
        let [command] = llb.commands.as_slice() else { panic!("{llb:?}") };
        assert!(command.record().starts_with("sha256:7d9adbce"), "{}", command.record());
        assert_eq!((command.line, command.vertices.as_slice()), (Some(11), &["sha256:b6bd".to_owned()][..]));
        assert_eq!(llb.parameters["build-arg:V"], "1");
        assert_eq!(command.with_variable("V", "1"), Some(command.record()));
        assert_ne!(command.with_variable("V", "2"), Some(command.record()));
        assert_eq!(command.with_variable("W", "2"), None);
        assert_eq!(command.network(), "default");
        let others: Vec<&str> = command.on_other_networks().iter().map(|(name, _)| *name).collect();
        assert_eq!(others, ["host", "none"]);
        let statement = format!("{{\"predicate\":{EXEC}}}");
        assert_eq!(Llb::read(&statement), Some(llb));
        assert_eq!(Llb::read("{}"), None);
        assert_eq!(Llb::read("[[["), None);
    }
}
