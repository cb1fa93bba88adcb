//! No module of the workspace imports another that imports it, be it over others: what one reads first never
//! needs what comes later. Read from `use`s and from paths, by the names of modules; what only tests use does
//! not count. What a module hands on by `pub use` is its user's import.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A module by its path within its crate; the crate itself has none.
type Module = Vec<String>;

/// The words of Rust's text that paths consist of: names, `::`, and single characters.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let starts = |at: usize, what: &str| what.chars().enumerate().all(|(n, c)| chars.get(at + n) == Some(&c));
    while at < chars.len() {
        let c = chars[at];
        if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if c == 'r' && (starts(at, "r\"") || starts(at, "r#")) {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            let end = format!("\"{}", "#".repeat(hashes));
            at += 2 + hashes;
            while at < chars.len() && !starts(at, &end) {
                at += 1;
            }
            at += end.len();
        } else if c == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if c == '\'' {
            // A character, or else a lifetime.
            if chars.get(at + 1) == Some(&'\\') {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            } else {
                at += if chars.get(at + 2) == Some(&'\'') { 3 } else { 1 };
            }
        } else if is_name(c) {
            let name: String = chars[at..].iter().take_while(|c| is_name(**c)).collect();
            at += name.chars().count();
            tokens.push(name);
        } else if starts(at, "::") {
            tokens.push("::".to_owned());
            at += 2;
        } else {
            if !c.is_whitespace() {
                tokens.push(c.to_string());
            }
            at += 1;
        }
    }
    tokens
}

/// Where the item ends that begins here: behind its `;` or its block.
fn end_of_item(tokens: &[String], mut at: usize) -> usize {
    let mut depth = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

/// What one crate's modules name.
#[derive(Default)]
struct Crate {
    /// The paths that each module names, as they are written.
    paths: BTreeMap<Module, Vec<Vec<String>>>,
    /// What each module hands on: the name, and the path to it from there.
    handed_on: BTreeMap<Module, BTreeMap<String, Vec<String>>>,
}

impl Crate {
    /// Reads a module's file, and those of the modules that it declares.
    fn read(&mut self, file: &Path, folder: &Path, module: &Module) {
        let text = fs::read_to_string(file).unwrap();
        self.read_tokens(&tokens(&text), folder, module);
    }

    fn read_tokens(&mut self, tokens: &[String], folder: &Path, module: &Module) {
        self.paths.entry(module.clone()).or_default();
        let word = |at: usize| tokens.get(at).map_or("", String::as_str);
        let mut at = 0;
        while at < tokens.len() {
            match word(at) {
                "#" if ["#", "[", "cfg", "(", "test", ")", "]"]
                    .iter()
                    .enumerate()
                    .all(|(n, is)| word(at + n) == *is) =>
                {
                    at = end_of_item(tokens, at + 7);
                }
                "mod" if word(at + 2) == ";" => {
                    let name = word(at + 1).to_owned();
                    let inner = folder.join(&name);
                    let files = [folder.join(format!("{name}.rs")), inner.join("mod.rs")];
                    let file = files.iter().find(|file| file.exists());
                    let module = [module.clone(), vec![name]].concat();
                    self.read(file.expect("the file of a module"), &inner, &module);
                    at += 3;
                }
                "mod" if word(at + 2) == "{" => {
                    let end = end_of_item(tokens, at);
                    let name = word(at + 1).to_owned();
                    let inner = [module.clone(), vec![name.clone()]].concat();
                    self.read_tokens(&tokens[at + 3..end - 1], &folder.join(name), &inner);
                    at = end;
                }
                "use" => {
                    let end = end_of_item(tokens, at);
                    let is_public = ["pub", ")"].contains(&word(at.wrapping_sub(1)));
                    self.read_use(&tokens[at + 1..end], &[], module, is_public);
                    at = end;
                }
                // What a macro names is its user's import.
                _ if word(at + 1) == "::" && !["::", "$"].contains(&word(at.wrapping_sub(1))) => {
                    let mut path = vec![word(at).to_owned()];
                    while word(at + 1) == "::" {
                        path.push(word(at + 2).to_owned());
                        at += 2;
                    }
                    self.paths.entry(module.clone()).or_default().push(path);
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    /// Reads a `use`, whose braces are within each other.
    fn read_use(&mut self, tokens: &[String], before: &[String], module: &Module, is_public: bool) {
        let (mut path, mut alias) = (before.to_vec(), None);
        let mut at = 0;
        // An end that is none in the text ends the last path.
        while at <= tokens.len() {
            match tokens.get(at).map_or(";", String::as_str) {
                "{" => {
                    let end = end_of_item(tokens, at);
                    self.read_use(&tokens[at + 1..end - 1], &path, module, is_public);
                    at = end;
                    path = before.to_vec();
                    continue;
                }
                "," | ";" => {
                    let name =
                        alias.take().or_else(|| path.last().cloned()).filter(|_| path.len() > before.len());
                    match name {
                        Some(name) if is_public && name != "*" => {
                            self.handed_on.entry(module.clone()).or_default().insert(name, path);
                        }
                        Some(_) => self.paths.entry(module.clone()).or_default().push(path),
                        None => {}
                    }
                    path = before.to_vec();
                }
                "::" => {}
                "as" => {
                    at += 1;
                    alias = tokens.get(at).cloned();
                }
                name => path.push(name.to_owned()),
            }
            at += 1;
        }
    }

    /// The module that a path leads to, if it is one of the crate.
    fn target(&self, module: &Module, path: &[String]) -> Option<Module> {
        let (mut base, mut rest) = (module.clone(), path);
        match rest[0].as_str() {
            "crate" => (base, rest) = (Vec::new(), &rest[1..]),
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|word| word == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            name => {
                if !self.paths.contains_key(&[base.clone(), vec![name.to_owned()]].concat()) {
                    return None;
                }
            }
        }
        while let [name, more @ ..] = rest {
            let inner = [base.clone(), vec![name.clone()]].concat();
            if self.paths.contains_key(&inner) {
                (base, rest) = (inner, more);
            } else if let Some(path) = self.handed_on.get(&base).and_then(|names| names.get(name)) {
                // Where it leads out of the crate there is no target.
                let target = self.within(self.target(&base, path)?, more);
                return Some(target).filter(|target| target != module);
            } else {
                break;
            }
        }
        (base != *module).then_some(base)
    }

    /// The module that a path leads to from another.
    fn within(&self, mut base: Module, rest: &[String]) -> Module {
        for name in rest {
            let inner = [base.clone(), vec![name.clone()]].concat();
            if !self.paths.contains_key(&inner) {
                break;
            }
            base = inner;
        }
        base
    }

    /// What each module imports, each with a path that says so.
    fn imports(&self) -> BTreeMap<&Module, BTreeMap<Module, String>> {
        let of_module = |(module, paths): (_, &Vec<Vec<String>>)| {
            let found = paths.iter().filter_map(|path| Some((self.target(module, path)?, path.join("::"))));
            (module, found.collect())
        };
        self.paths.iter().map(of_module).collect()
    }

    /// The circles: each import by which one gets back to where it came from.
    fn circles(&self) -> Vec<String> {
        let imports = self.imports();
        let leads_to = |from: &Module, to: &Module| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(module) = next.pop() {
                if module == to {
                    return true;
                }
                if seen.insert(module) {
                    next.extend(imports.get(module).into_iter().flatten().map(|(to, _)| to));
                }
            }
            false
        };
        let mut circles = Vec::new();
        for (module, of_module) in &imports {
            for (to, path) in of_module.iter().filter(|(to, _)| leads_to(to, module)) {
                circles.push(format!("{} imports {} ({path})", name(module), name(to)));
            }
        }
        circles
    }
}

fn name(module: &Module) -> String {
    if module.is_empty() { "the crate's root".to_owned() } else { module.join("::") }
}

/// The roots of the workspace's crates.
fn roots(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !file.starts_with('.') && file != "target" && file != "fuzz" {
            roots(&path, found);
        } else if folder.ends_with("src") && ["lib.rs", "main.rs"].contains(&file) {
            found.push(path);
        }
    }
}

#[test]
fn no_modules_import_each_other() {
    let mut found = Vec::new();
    roots(Path::new(ROOT), &mut found);
    assert!(found.len() > 20, "{found:?}");
    let mut text = String::new();
    for root in found {
        let mut all = Crate::default();
        all.read(&root, root.parent().unwrap(), &Vec::new());
        for circle in all.circles() {
            writeln!(text, "{}: {circle}", root.strip_prefix(ROOT).unwrap().display()).unwrap();
        }
    }
    assert!(text.is_empty(), "modules that import each other, by these imports:\n{text}");
}

#[test]
fn circles_are_found_however_they_are_written() {
    let circles = |modules: &[(&str, &str)]| {
        let mut all = Crate::default();
        for (module, text) in modules {
            let module = module.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect();
            all.read_tokens(&tokens(text), Path::new("nowhere"), &module);
        }
        all.circles().len()
    };
    assert_eq!(
        circles(&[("a", "use crate::b::B;"), ("b", "use super::{c, a::{self, A as X}};"), ("c", "")]),
        2
    );
    assert_eq!(
        circles(&[("a", "fn f() { crate::b::f() }"), ("b", "use crate::c::C;"), ("c", "use crate::a;")]),
        3
    );
    assert_eq!(circles(&[("a", "use self::b::B;"), ("a::b", "use super::A;")]), 2);
    assert_eq!(circles(&[("", "use a::A;"), ("a", "use crate::Root;")]), 2);
    assert_eq!(circles(&[("", "pub use a::A;"), ("a", "use crate::Root;")]), 0);
    let handed_on =
        [("", "pub use a::A; pub use b::B as C;"), ("a", "use crate::C;"), ("b", "use super::A;")];
    assert_eq!(circles(&handed_on), 2);
    assert_eq!(
        circles(&[("a", "use crate::b::B;"), ("b", "// use crate::a;\nconst A: &str = \"crate::a::A\";")]),
        0
    );
    assert_eq!(
        circles(&[("a", "use crate::b::B;"), ("b", "#[cfg(test)]\nmod tests { use crate::a::A; }")]),
        0
    );
    assert_eq!(circles(&[("a", "use crate::b::B;"), ("b", "use other::a::A;")]), 0);
}

/// What is not in a manifest's dependencies, no source of that crate can name. Tests may.
#[test]
fn only_the_ports_on_aws_depend_on_its_sdk() {
    let mut found = Vec::new();
    roots(Path::new(ROOT), &mut found);
    let mut users = BTreeSet::new();
    for root in found {
        let folder = root.parent().and_then(Path::parent).unwrap();
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("\n[").find(|table| table.starts_with("dependencies]"));
        let is_sdk = |line: &str| {
            ["aws-sdk-", "aws-smithy-", "aws-config", "aws-types"].iter().any(|name| line.starts_with(name))
        };
        if dependencies.unwrap_or_default().lines().any(is_sdk) {
            users.insert(folder.strip_prefix(ROOT).unwrap().display().to_string());
        }
    }
    // What is tested beside the ports are they themselves, so the tests' own crate is one of these.
    let ports = ["shared/aws", "shared/aws-setup", "tests"];
    assert_eq!(users, BTreeSet::from(ports.map(str::to_owned)), "crates that depend on AWS's SDK");
}
