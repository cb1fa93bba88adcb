//! A generated repository with its history: commits whose trees and Dockerfiles differ in everything that a cache key
//! may depend on, and in what none depends on.
//!
//! What a command leaves is a digest of all that its key is made of (the base image's program `k` says of
//! what), so that a command that has another key leaves other files, too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::random::Random;

/// A repository's history.
#[derive(Debug, Clone)]
pub struct History {
    /// Its seed, from which all else follows.
    pub seed: u64,
    /// In every step and file of it, and in no other.
    pub token: String,
    /// The commits, the oldest first.
    pub commits: Vec<Commit>,
}

/// A commit, and how it is built.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The files, by their paths.
    pub files: BTreeMap<String, File>,
    /// The Dockerfile, in which `BASE` stands for the base image and `ADDRESS` for a file on a server.
    pub dockerfile: String,
    /// Values of build arguments.
    pub arguments: BTreeMap<String, String>,
    /// The stage that is built.
    pub target: Option<String>,
    /// The commits whose exports the build is given.
    pub imports: Vec<usize>,
}

/// A file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum File {
    /// With this content.
    Text(String),
    /// With this content, and to be executed.
    Executable(String),
    /// A symbolic link to there.
    Link(String),
}

/// What the builder understands beyond what all do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Features {
    /// `COPY --exclude`.
    pub exclude: bool,
    /// `COPY --parents`.
    pub parents: bool,
}

impl History {
    /// The history of a seed.
    #[must_use]
    pub fn new(seed: u64, commits: usize, features: Features) -> Self {
        let mut random = Random::new(seed);
        let token = format!("h{:010x}", random.number() >> 24);
        let mut repository = Repository::new(&token, features, &mut random);
        let mut all = vec![repository.clone()];
        for _ in 1..commits {
            if random.chance(12) {
                repository = random.pick(&all).cloned().unwrap_or(repository);
            } else {
                let number = random.between(1, 3);
                repository = repository.changed(number, &mut random);
            }
            all.push(repository.clone());
        }
        let commits = all.iter().enumerate().map(|(number, it)| it.commit(number, &mut random)).collect();
        Self { seed, token, commits }
    }
}

#[derive(Debug, Clone)]
struct Repository {
    token: String,
    features: Features,
    files: BTreeMap<String, File>,
    ignore: Vec<&'static str>,
    stages: Vec<Stage>,
    /// Values of build arguments.
    arguments: BTreeMap<String, u64>,
    target: Option<usize>,
    /// What changes no key: comments, blank lines, labels.
    noise: u64,
    next: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    Base { argument: bool, platform: bool },
    Scratch,
    Stage(usize),
}

#[derive(Debug, Clone)]
struct Stage {
    name: String,
    from: From,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
struct Step {
    id: usize,
    kind: Kind,
    on_build: bool,
}

#[derive(Debug, Clone)]
enum Kind {
    Copy { add: bool, flags: Vec<String>, sources: Vec<String>, json: bool },
    CopyFrom { flags: Vec<String>, stage: usize, path: String, by_number: bool },
    CopyDocument { text: u64, expand: bool },
    Address,
    Run { flags: Vec<String>, form: Form, salt: u64, reads: Vec<String>, uses: Vec<usize> },
    Workdir { relative: bool, variable: bool },
    Env { value: u64, old: bool },
    Arg { value: Option<u64> },
    User(u64),
    Shell(bool),
}

#[derive(Debug, Clone, Copy)]
enum Form {
    Shell,
    Json,
    Document,
    Script,
    Inside,
}

/// Patterns that hide nothing that a step names.
const IGNORABLE: [&str; 9] =
    ["docs", "**/*.log", "*.log", "!docs/keep.md", "docs/*", "**/tmp", "!alpha", "/docs/a.md", "x?.log"];
const SOURCES: [&str; 12] = [
    "alpha",
    "alpha/f0",
    "alpha/f*",
    "./beta/",
    ".",
    "/beta/deep",
    "*/f1",
    "run.sh",
    "top",
    "alpha/f[01]",
    "beta/../alpha/f1",
    "link/g0",
];
const CHANGED: [&str; 14] = [
    "alpha/f0",
    "alpha/f1",
    "alpha/f2",
    "alpha/x.log",
    "beta/f0",
    "beta/f1",
    "beta/deep/g0",
    "beta/deep/tmp",
    "docs/a.md",
    "docs/keep.md",
    "top",
    "a.log",
    "beta/deep/new",
    "alpha/new",
];

impl Repository {
    fn new(token: &str, features: Features, random: &mut Random) -> Self {
        let mut files = BTreeMap::new();
        for path in CHANGED.into_iter().filter(|path| !path.ends_with("new")) {
            files.insert(path.to_owned(), File::Text(format!("{token} {path} 0\n")));
        }
        files.insert("run.sh".to_owned(), File::Executable(format!("#!/bin/sh\necho {token}\n")));
        files.insert("link".to_owned(), File::Link("beta/deep".to_owned()));
        files.insert("alpha/up".to_owned(), File::Link("../top".to_owned()));
        let mut repository = Self {
            token: token.to_owned(),
            features,
            files,
            ignore: Vec::new(),
            stages: Vec::new(),
            arguments: BTreeMap::new(),
            target: None,
            noise: 0,
            next: 0,
        };
        for number in 0..random.between(2, 4) {
            repository.add_stage(number, random);
        }
        repository
    }

    fn add_stage(&mut self, number: usize, random: &mut Random) {
        let from = match random.below(10) {
            0..4 if number > 0 => From::Stage(random.below(number)),
            4 => From::Scratch,
            _ => From::Base { argument: random.chance(25), platform: random.chance(15) },
        };
        self.stages.push(Stage { name: format!("s{number}"), from, steps: Vec::new() });
        for _ in 0..random.between(3, 6) {
            let step = self.step(number, random);
            self.push(number, step);
        }
    }

    fn push(&mut self, stage: usize, step: Step) {
        if let Some(stage) = self.stages.get_mut(stage) {
            stage.steps.push(step);
        }
    }

    /// Whether the stage has a shell.
    fn has_base(&self, stage: usize) -> bool {
        match self.stages[stage].from {
            From::Base { .. } => true,
            From::Scratch => false,
            From::Stage(other) => self.has_base(other),
        }
    }

    /// The steps that make something in a stage or in those that it starts from.
    fn made(&self, stage: usize) -> Vec<usize> {
        let mut made = match self.stages[stage].from {
            From::Stage(other) => self.made(other),
            _ => Vec::new(),
        };
        let steps = self.stages[stage].steps.iter().filter(|step| !step.on_build);
        made.extend(steps.filter(|step| step.makes()).map(|step| step.id));
        made
    }

    fn mark(&self, id: usize) -> String {
        format!("/w/{}m{id}x", self.token)
    }

    fn step(&mut self, stage: usize, random: &mut Random) -> Step {
        self.next += 1;
        let kind = self.kind(stage, random);
        // BuildKit 0.13 finds nothing that a trigger mounts.
        let can_wait = match &kind {
            Kind::Run { form: Form::Shell, flags, .. } => flags.iter().all(|flag| !flag.contains("mount")),
            Kind::Copy { .. } => true,
            _ => false,
        };
        let on_build = random.chance(6) && self.has_base(stage) && can_wait;
        Step { id: self.next, kind, on_build }
    }

    fn kind(&self, stage: usize, random: &mut Random) -> Kind {
        let has_base = self.has_base(stage);
        let value = random.below(4) as u64;
        let others: Vec<usize> = (0..stage).filter(|other| !self.made(*other).is_empty()).collect();
        match random.below(if has_base { 20 } else { 10 }) {
            0..4 => {
                let add = random.chance(25);
                let several = random.between(1, 2);
                let sources = (0..several).filter_map(|_| random.pick(&SOURCES).copied());
                let sources: Vec<String> = sources.map(str::to_owned).collect();
                Kind::Copy { add, flags: self.copy_flags(true, random), sources, json: random.chance(15) }
            }
            4..6 if !others.is_empty() => {
                let other = random.pick(&others).copied().unwrap_or_default();
                let made = self.made(other);
                let made = random.pick(&made).copied().unwrap_or_default();
                let path = if random.chance(70) { self.mark(made) } else { "/w".to_owned() };
                let by_number = random.chance(20);
                Kind::CopyFrom { flags: self.copy_flags(false, random), stage: other, path, by_number }
            }
            6 => Kind::CopyDocument { text: value, expand: random.chance(50) },
            7 => Kind::Workdir { relative: random.chance(40), variable: random.chance(30) },
            8 => Kind::Arg { value: random.chance(70).then_some(value) },
            9 => Kind::Env { value, old: random.chance(20) },
            _ if !has_base => Kind::CopyDocument { text: value, expand: random.chance(50) },
            10 => Kind::User(value % 2),
            11 => Kind::Shell(value.is_multiple_of(2)),
            12 if random.chance(40) => Kind::Address,
            _ => {
                let mut reads = Vec::new();
                let flags = self.run_flags(&others, &mut reads, random);
                let form = match random.below(10) {
                    0 => Form::Json,
                    1 => Form::Document,
                    2 => Form::Script,
                    3 => Form::Inside,
                    _ => Form::Shell,
                };
                let uses: Vec<usize> = self.stages[stage]
                    .steps
                    .iter()
                    .filter(|step| matches!(step.kind, Kind::Arg { .. } | Kind::Env { .. }))
                    .map(|step| step.id)
                    .collect();
                let uses = random.pick(&uses).copied().into_iter().collect();
                Kind::Run { flags, form, salt: value, reads, uses }
            }
        }
    }

    fn copy_flags(&self, of_context: bool, random: &mut Random) -> Vec<String> {
        let mut flags = Vec::new();
        if random.chance(20) {
            flags.push("--link".to_owned());
        }
        if random.chance(12) {
            flags.push(format!("--chown={}", random.between(1, 2) * 500));
        }
        if random.chance(12) {
            flags.push(format!("--chmod={}", [755, 711][random.below(2)]));
        }
        if of_context && self.features.exclude && random.chance(20) {
            flags.push(format!("--exclude={}", ["*.log", "**/f1", "deep"][random.below(3)]));
        }
        if of_context && self.features.parents && random.chance(15) {
            flags.push("--parents".to_owned());
        }
        flags
    }

    fn run_flags(&self, others: &[usize], reads: &mut Vec<String>, random: &mut Random) -> Vec<String> {
        let mut flags = Vec::new();
        if random.chance(12) {
            flags.push("--network=none".to_owned());
        }
        let number = random.below(4);
        if random.chance(40) {
            return flags;
        }
        match random.below(9) {
            0 => {
                flags.push("--mount=target=/mnt/c".to_owned());
                reads.push("/mnt/c".to_owned());
            }
            1 | 2 => {
                let path = ["alpha", "beta/deep", "link", "top"][number];
                flags.push(format!("--mount=type=bind,source={path},target=/mnt/b"));
                reads.push("/mnt/b".to_owned());
            }
            3 | 4 if !others.is_empty() => {
                let other = random.pick(others).copied().unwrap_or_default();
                let write = if random.chance(30) { ",rw" } else { "" };
                flags.push(format!("--mount=from=s{other},source=/w,target=/mnt/s{write}"));
                reads.push("/mnt/s".to_owned());
            }
            5 => flags.push(format!("--mount=type=cache,target=/mnt/k,id={}{number}", self.token)),
            6 => flags.push("--mount=type=cache,target=/mnt/k,sharing=locked".to_owned()),
            7 => flags.push(format!("--mount=type=secret,id=secret{number}")),
            _ => flags.push("--mount=type=tmpfs,target=/mnt/t".to_owned()),
        }
        flags
    }

    fn changed(&self, changes: usize, random: &mut Random) -> Self {
        let mut changed = self.clone();
        for _ in 0..changes {
            let mut next = changed.clone();
            next.change(random);
            if next.is_valid() {
                changed = next;
            }
        }
        changed
    }

    fn change(&mut self, random: &mut Random) {
        let stage = random.below(self.stages.len());
        match random.below(20) {
            0..7 => self.change_file(random),
            7 => {
                let pattern = random.pick(&IGNORABLE).copied().unwrap_or_default();
                match self.ignore.iter().position(|known| *known == pattern) {
                    Some(known) => drop(self.ignore.remove(known)),
                    None => self.ignore.push(pattern),
                }
            }
            8 | 9 => self.noise = random.number() % 64,
            10 | 11 => {
                let step = self.step(stage, random);
                let steps = &mut self.stages[stage].steps;
                let place = random.below(steps.len() + 1);
                steps.insert(place, step);
            }
            12 => {
                let steps = &mut self.stages[stage].steps;
                if steps.len() > 2 {
                    steps.remove(random.below(steps.len()));
                }
            }
            13 => {
                let steps = &mut self.stages[stage].steps;
                let place = random.below(steps.len());
                if place > 0 {
                    steps.swap(place - 1, place);
                }
            }
            14 | 15 => {
                let name = format!("A{}", random.between(1, self.next));
                self.arguments.insert(name, random.below(4) as u64);
            }
            16 => self.target = random.chance(50).then(|| random.below(self.stages.len())),
            _ => {
                let place = random.below(self.stages[stage].steps.len());
                let mut kind = self.stages[stage].steps[place].kind.clone();
                let value = random.below(4) as u64;
                match &mut kind {
                    Kind::Copy { flags, .. } => *flags = self.copy_flags(true, random),
                    Kind::CopyFrom { flags, .. } => *flags = self.copy_flags(false, random),
                    Kind::CopyDocument { text, .. } => *text = value,
                    Kind::Run { salt, .. } => *salt = value,
                    Kind::Workdir { relative, .. } => *relative = !*relative,
                    Kind::Env { value: old, .. } => *old = value,
                    Kind::Arg { value: old } => *old = Some(value),
                    Kind::User(user) => *user = value % 2,
                    Kind::Shell(shell) => *shell = !*shell,
                    Kind::Address => {}
                }
                self.stages[stage].steps[place].kind = kind;
            }
        }
    }

    fn change_file(&mut self, random: &mut Random) {
        let path = random.pick(&CHANGED).copied().unwrap_or_default().to_owned();
        match random.below(10) {
            0 if path.ends_with("new") || Path::new(&path).extension().is_some_and(|end| end == "log") => {
                drop(self.files.remove(&path));
            }
            1 => {
                let to = if random.chance(50) { "../top" } else { "f0" };
                self.files.insert("alpha/up".to_owned(), File::Link(to.to_owned()));
            }
            2 => {
                let run = self.files.remove("run.sh");
                let text = |text: String| {
                    if random.clone().chance(50) { File::Text(text) } else { File::Executable(text) }
                };
                if let Some(File::Text(content) | File::Executable(content)) = run {
                    self.files.insert("run.sh".to_owned(), text(content));
                }
            }
            _ => {
                let content = format!("{} {path} {}\n", self.token, random.below(3));
                self.files.insert(path, File::Text(content));
            }
        }
    }

    /// Whether all that steps name is there.
    fn is_valid(&self) -> bool {
        self.stages.iter().enumerate().all(|(number, stage)| {
            let mut known = Vec::new();
            stage.steps.iter().all(|step| {
                known.push(step.id);
                match &step.kind {
                    Kind::CopyFrom { stage, path, .. } => {
                        let made = self.made(*stage);
                        *stage < number
                            && !made.is_empty()
                            && (path == "/w" || made.iter().any(|id| *path == self.mark(*id)))
                    }
                    Kind::Run { flags, uses, .. } => {
                        let from = |flag: &String| {
                            let other = flag.split_once("from=s")?.1.split_once(',')?.0;
                            other.parse::<usize>().ok()
                        };
                        let is_there = |other: usize| other < number && !self.made(other).is_empty();
                        flags.iter().filter_map(from).all(is_there)
                            && uses.iter().all(|id| known.contains(id))
                    }
                    _ => true,
                }
            })
        }) && (0..self.stages.len()).all(|stage| !self.made(stage).is_empty())
    }

    fn commit(&self, number: usize, random: &mut Random) -> Commit {
        let imports = match (number, random.below(20)) {
            (0, _) | (_, 0) => Vec::new(),
            (1.., 1 | 2) => vec![random.below(number)],
            (2.., 3..7) => vec![number - 1, random.below(number - 1)],
            _ => vec![number - 1],
        };
        let mut files = self.files.clone();
        if !self.ignore.is_empty() {
            files.insert(".dockerignore".to_owned(), File::Text(self.ignore.join("\n") + "\n"));
        }
        let text = |value: &u64| format!("{}v{value}", self.token);
        Commit {
            files,
            dockerfile: self.dockerfile(),
            arguments: self.arguments.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
            target: self.target.map(|target| self.stages[target].name.clone()),
            imports,
        }
    }

    fn noise(&self, bit: u32) -> bool {
        self.noise >> bit & 1 == 1
    }

    fn dockerfile(&self) -> String {
        let mut text = String::from("ARG IMAGE=BASE\n");
        for (number, stage) in self.stages.iter().enumerate() {
            let from = match stage.from {
                From::Base { argument: true, .. } => "${IMAGE:-none}".to_owned(),
                From::Base { platform: true, .. } => "--platform=$BUILDPLATFORM BASE".to_owned(),
                From::Base { .. } => "BASE".to_owned(),
                From::Scratch => "scratch".to_owned(),
                From::Stage(other) => self.stages[other].name.clone(),
            };
            let keyword = if self.noise(0) { "from" } else { "FROM" };
            let _ = writeln!(text, "{keyword} {from} AS {}", stage.name);
            if self.noise(1) {
                let _ =
                    writeln!(text, "# {}\n\nLABEL noise={} \\\n  # more\n  other=1", self.noise, self.noise);
            }
            for step in &stage.steps {
                let on_build = if step.on_build { "ONBUILD " } else { "" };
                let _ = writeln!(text, "{on_build}{}", self.line(stage, step));
                if self.noise(2) && number == 0 {
                    text.push_str("EXPOSE 80\n");
                }
            }
            if self.noise(3) {
                text.push_str("HEALTHCHECK NONE\nCMD [\"k\"]\nSTOPSIGNAL 9\nVOLUME /v\n");
            }
        }
        text
    }

    fn line(&self, stage: &Stage, step: &Step) -> String {
        let mark = self.mark(step.id);
        let id = step.id;
        let gap = if self.noise(4) { "  \\\n   " } else { " " };
        match &step.kind {
            Kind::Copy { add, flags, sources, json } => {
                let name = if *add { "ADD" } else { "COPY" };
                let flags: Vec<&str> =
                    flags.iter().map(String::as_str).filter(|flag| !add || *flag != "--parents").collect();
                let is_plain = |source: &String| !source.contains(['*', '[']);
                let one = sources.len() == 1 && sources.iter().all(is_plain) && !flags.contains(&"--parents");
                let to = if one { mark } else { format!("{mark}/") };
                let words: Vec<&str> = sources.iter().map(String::as_str).chain([to.as_str()]).collect();
                let paths = if *json { format!("{words:?}") } else { words.join(gap) };
                format!("{name} {}{paths}", spaced(&flags))
            }
            Kind::CopyFrom { flags, stage, path, by_number } => {
                let from = if *by_number { stage.to_string() } else { self.stages[*stage].name.clone() };
                let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
                format!("COPY {}--from={from} {path}{gap}{mark}", spaced(&flags))
            }
            Kind::CopyDocument { text, expand } => {
                let name = if *expand { "END" } else { "'END'" };
                format!("COPY <<{name} {mark}\n{} {text} ${{A{}:-none}}\nEND", self.token, id / 2)
            }
            Kind::Address => format!("ADD ADDRESS {mark}"),
            Kind::Workdir { relative, variable } => {
                let variable = if *variable { format!("d${{A{}}}", id / 2) } else { "d".to_owned() };
                let slash = if *relative { "" } else { "/w/" };
                format!("WORKDIR {slash}{}m{id}x/{variable}", self.token)
            }
            Kind::Env { value, old: true } => format!("ENV E{id} \"{}v{value}\"", self.token),
            Kind::Env { value, .. } => {
                format!("ENV E{id}={}v{value} F{id}='$E{id}'{gap}G{id}=\"${{A{}:+x}}y\"", self.token, id / 2)
            }
            Kind::Arg { value: None } => format!("ARG A{id}"),
            Kind::Arg { value: Some(value) } => format!("ARG A{id}={}v{value}", self.token),
            // Whoever else it is could not write where a linked copy has been.
            Kind::User(group) => format!("USER 0:{}", group * 1000),
            Kind::Shell(errors) => {
                format!("SHELL [\"/bin/sh\", \"{}\"]", if *errors { "-ec" } else { "-c" })
            }
            Kind::Run { flags, form, salt, reads, uses } => {
                let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
                let flags = spaced(&flags);
                let is_arg = |id: &usize| {
                    stage.steps.iter().any(|step| step.id == *id && matches!(step.kind, Kind::Arg { .. }))
                };
                let uses: Vec<String> =
                    uses.iter().map(|id| format!("${}{id}", if is_arg(id) { "A" } else { "E" })).collect();
                let reads: String = reads.iter().flat_map(|path| [" ", path.as_str()]).collect();
                let command = format!("k {mark}{reads}");
                let uses = uses.join("");
                match form {
                    Form::Shell => format!("RUN {flags}: {salt} {uses};{gap}{command}; :"),
                    Form::Json => {
                        let words: Vec<&str> = command.split(' ').collect();
                        format!("RUN {flags}{words:?}")
                    }
                    Form::Document => format!("RUN {flags}<<END\n: {salt} {uses}\n{command}\n:\nEND"),
                    Form::Script => {
                        format!("RUN {flags}<<-END\n\t#!/bin/sh\n\tSALT={salt}{uses} {command}\n\t:\nEND")
                    }
                    Form::Inside => format!(
                        "RUN {flags}(cat <<ONE ; cat <<-\"TWO\" ) > /w/tmp-{id} && {command}; rm \
                         /w/tmp-{id}\n{salt}\nONE\n\t{salt}\n\tTWO"
                    ),
                }
            }
        }
    }
}

fn spaced(flags: &[&str]) -> String {
    flags.iter().flat_map(|flag| [*flag, " "]).collect()
}

impl Step {
    fn makes(&self) -> bool {
        !matches!(
            self.kind,
            Kind::Env { .. } | Kind::Arg { .. } | Kind::User(_) | Kind::Shell(_) | Kind::Workdir { .. }
        )
    }
}

/// The program with which a `RUN` of a history leaves a digest of all that its key is made of.
pub const PROGRAM: &str = r#"#!/bin/busybox sh
PATH=/bin
mark=$1
shift
b=/bin/busybox
{
  $b cat /proc/1/cmdline
  for script in /dev/pipes/*; do [ -f $script ] && $b cat $script; done
  $b env | $b sort
  $b pwd
  $b id -u
  $b id -g
  $b ls /sys/class/net
  $b awk '{print $2, $3, substr($4, 1, 2)}' /proc/mounts | $b sort
  $b find /w "$@" 2>/dev/null | $b sort | while read -r f; do
    $b stat -c '%n %a %u %g %F' "$f"
    [ -L "$f" ] && $b readlink "$f"
    [ -f "$f" ] && $b cat "$f"
  done
} | $b sha256sum > "$mark"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_all() {
        let features = Features { exclude: true, parents: true };
        let text = |seed| format!("{:?}", History::new(seed, 20, features));
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
        let all: String = (0..60).map(text).collect();
        for word in [
            "--link",
            "--from=",
            "--chmod",
            "--chown",
            "--exclude",
            "--parents",
            "ONBUILD",
            "<<",
            "type=cache",
            "type=secret",
            "type=tmpfs",
            "type=bind",
            "--network",
            "SHELL",
            "USER",
            "scratch",
            "BUILDPLATFORM",
            ".dockerignore",
            "Link(",
            "ADDRESS",
            "WORKDIR",
            "ENV",
            "ARG",
        ] {
            assert!(all.contains(word), "no {word}");
        }
    }
}
