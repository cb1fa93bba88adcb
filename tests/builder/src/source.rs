//! A Dockerfile and the files around it.
//!
//! Each step that makes a layer makes a path of its own, the step's *mark*. The mark holds the case's token, so no
//! cache but the case's own can serve the step, and both the log's lines and the layers' bytes tell the step.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use crate::random::Random;

const DIRECTORIES: [&str; 3] = ["alpha", "beta", "gamma"];
const FILES: [&str; 3] = ["f0", "f1", "f2"];

/// What one build is made from.
#[derive(Debug, Clone)]
pub struct Source {
    token: String,
    files: BTreeMap<String, String>,
    stages: Vec<Stage>,
}

#[derive(Debug, Clone)]
struct Stage {
    from: From,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    BaseImage,
    Scratch,
    Stage(usize),
}

#[derive(Debug, Clone)]
struct Step {
    id: usize,
    instruction: Instruction,
}

#[derive(Debug, Clone)]
enum Instruction {
    Workdir,
    Env(u64),
    Arg(u64),
    /// A file, a directory, or a pattern of the context.
    Copy {
        what: String,
        link: bool,
    },
    /// The same of another stage.
    CopyFrom {
        stage: usize,
        what: String,
        link: bool,
    },
    /// Digests its inputs, and those of another stage where one is mounted.
    Run {
        inputs: Vec<String>,
        salt: u64,
        mount: Option<usize>,
    },
}

/// What a branch does to a source; any two can be done to one.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    File(String, String),
    Value { id: usize, value: u64 },
    Insert { after: usize, id: usize, salt: u64 },
}

impl Source {
    pub(crate) fn random(token: &str, random: &mut Random) -> Self {
        let mut files = BTreeMap::new();
        for directory in DIRECTORIES {
            for file in FILES {
                files.insert(format!("{directory}/{file}"), content(token, random));
            }
        }
        let mut source = Self { token: token.to_owned(), files, stages: Vec::new() };
        let stages = random.between(2, 4);
        let mut id = 0;
        for number in 0..stages {
            source.add_stage(number, number + 1 == stages, &mut id, random);
        }
        source
    }

    fn add_stage(&mut self, number: usize, is_last: bool, id: &mut usize, random: &mut Random) {
        let from = match random.below(10) {
            0..4 if number > 0 && self.stages[number - 1].from != From::Scratch => {
                From::Stage(random.below(number))
            }
            0..7 if is_last => From::Scratch,
            _ => From::BaseImage,
        };
        self.stages.push(Stage { from, steps: Vec::new() });
        let mut add = |source: &mut Self, instruction| {
            source.stages[number].steps.push(Step { id: *id, instruction });
            *id += 1;
        };
        if is_last {
            // What nobody uses is not built: the last stage takes of all the others.
            for stage in 0..number {
                let what = self.path(stage, random);
                add(self, Instruction::CopyFrom { stage, what, link: random.chance(15) });
            }
        }
        for _ in 0..random.between(2, 4) {
            let instruction = self.instruction(number, from, random);
            add(self, instruction);
        }
        if from != From::Scratch {
            let inputs = self.inputs(number, random);
            add(self, Instruction::Run { inputs, salt: 0, mount: None });
        }
    }

    fn instruction(&self, number: usize, from: From, random: &mut Random) -> Instruction {
        let link = random.chance(15);
        match random.below(if from == From::Scratch { 7 } else { 10 }) {
            0..2 => {
                let directory = random.pick(&DIRECTORIES).copied().unwrap_or_default();
                let file = random.pick(&FILES).copied().unwrap_or_default();
                let what = match random.below(4) {
                    0 => directory.to_owned(),
                    1 => format!("{directory}/f*"),
                    _ => format!("{directory}/{file}"),
                };
                Instruction::Copy { what, link }
            }
            2..4 if number > 0 => {
                let stage = random.below(number);
                Instruction::CopyFrom { stage, what: self.path(stage, random), link }
            }
            4 => Instruction::Workdir,
            5 => Instruction::Env(0),
            6 => Instruction::Arg(0),
            7.. => {
                let mount = (number > 0 && random.chance(20)).then(|| random.below(number));
                Instruction::Run { inputs: self.inputs(number, random), salt: 0, mount }
            }
            _ => Instruction::Copy { what: "alpha".to_owned(), link },
        }
    }

    /// The steps of a stage, with those of the stages that it starts from.
    fn steps(&self, stage: usize) -> Vec<&Step> {
        let mut steps = match self.stages[stage].from {
            From::Stage(from) => self.steps(from),
            From::BaseImage | From::Scratch => Vec::new(),
        };
        steps.extend(&self.stages[stage].steps);
        steps
    }

    /// Something that a stage holds: what a step made, a part of it, or all that there is.
    fn path(&self, stage: usize, random: &mut Random) -> String {
        let made: Vec<&Step> = self.steps(stage).into_iter().filter(|step| step.makes_something()).collect();
        let Some(step) = random.pick(&made).filter(|_| random.clone().chance(85)) else {
            return "/w".to_owned();
        };
        let whole = format!("/w/{}", self.mark(step.id));
        let is_directory = matches!(&step.instruction, Instruction::Copy { what,
            .. } if !what.contains("/f") || what.contains('*'));
        match random.below(3) {
            0 if is_directory => format!("{whole}/f1"),
            1 if is_directory => format!("{whole}/f*"),
            _ => whole,
        }
    }

    fn inputs(&self, stage: usize, random: &mut Random) -> Vec<String> {
        if self.steps(stage).iter().all(|step| !step.makes_something()) {
            return Vec::new();
        }
        (0..random.between(0, 2)).map(|_| self.path(stage, random)).collect()
    }

    pub(crate) fn random_change(&self, fresh: &mut usize, random: &mut Random) -> Change {
        let steps = || self.stages.iter().flat_map(|stage| &stage.steps);
        let valued: Vec<usize> = steps().filter(|step| step.has_value()).map(|step| step.id).collect();
        let runs: Vec<usize> = steps().filter(|step| step.runs()).map(|step| step.id).collect();
        let value = random.number() % 100_000;
        // The later half, mostly: what changes early leaves nothing to reuse.
        let late = |ids: Vec<usize>| if ids.len() > 2 { ids[ids.len() / 2..].to_vec() } else { ids };
        let (valued, runs) = (late(valued), late(runs));
        match random.below(10) {
            0..3 if !valued.is_empty() => {
                Change::Value { id: random.pick(&valued).copied().unwrap_or_default(), value }
            }
            3..6 if !runs.is_empty() => {
                *fresh += 1;
                let after = random.pick(&runs).copied().unwrap_or_default();
                Change::Insert { after, id: 1000 + *fresh, salt: value }
            }
            6 => Change::File(
                format!("{}/f{}", DIRECTORIES[random.below(3)], 3 + value % 3),
                content(&self.token, random),
            ),
            _ => {
                let file = format!("{}/{}", DIRECTORIES[random.below(3)], FILES[random.below(3)]);
                Change::File(file, content(&self.token, random))
            }
        }
    }

    pub(crate) fn change(&mut self, change: &Change) {
        let mut steps = self.stages.iter_mut().flat_map(|stage| &mut stage.steps);
        match change {
            Change::File(path, content) => {
                self.files.insert(path.clone(), content.clone());
            }
            Change::Value { id, value } => {
                let step = steps.find(|step| step.id == *id).map(|step| &mut step.instruction);
                if let Some(
                    Instruction::Env(old) | Instruction::Arg(old) | Instruction::Run { salt: old, .. },
                ) = step
                {
                    *old = *value;
                }
            }
            Change::Insert { after, id, salt } => {
                for stage in &mut self.stages {
                    if let Some(place) = stage.steps.iter().position(|step| step.id == *after) {
                        let inputs = vec![format!("/w/{}", mark(&self.token, *after))];
                        let run = Instruction::Run { inputs, salt: *salt, mount: None };
                        stage.steps.insert(place + 1, Step { id: *id, instruction: run });
                    }
                }
            }
        }
    }

    fn mark(&self, id: usize) -> String {
        mark(&self.token, id)
    }

    /// How many steps make a layer. All of them are needed.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.stages.iter().flat_map(|stage| &stage.steps).filter(|step| step.makes_something()).count()
    }

    /// The Dockerfile, on this base image.
    #[must_use]
    pub fn dockerfile(&self, base_image: &str) -> String {
        let mut text = String::new();
        for (number, stage) in self.stages.iter().enumerate() {
            let from = match stage.from {
                From::BaseImage => base_image.to_owned(),
                From::Scratch => "scratch".to_owned(),
                From::Stage(stage) => format!("s{stage}"),
            };
            let _ = writeln!(text, "FROM {from} AS s{number}");
            for step in &stage.steps {
                let _ = writeln!(text, "{}", self.line(step));
            }
        }
        text
    }

    fn line(&self, step: &Step) -> String {
        let mark = self.mark(step.id);
        let flag = |link: bool| if link { "--link " } else { "" };
        // Where there may be several, a directory takes them.
        let place =
            |what: &str| if what.contains('*') { format!("/w/{mark}/") } else { format!("/w/{mark}") };
        match &step.instruction {
            Instruction::Workdir => format!("WORKDIR /w/{mark}"),
            Instruction::Env(value) => format!("ENV E{}={value}", step.id),
            Instruction::Arg(value) => format!("ARG A{}={value}", step.id),
            Instruction::Copy { what, link } => format!("COPY {}{what} {}", flag(*link), place(what)),
            Instruction::CopyFrom { stage, what, link } => {
                format!("COPY {}--from=s{stage} {what} {}", flag(*link), place(what))
            }
            Instruction::Run { inputs, salt, mount } => {
                let flag =
                    mount.map(|stage| format!("--mount=type=bind,from=s{stage},source=/w,target=/mnt "));
                let mut inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                inputs.extend(mount.map(|_| "/mnt"));
                let files = if inputs.is_empty() {
                    String::new()
                } else {
                    format!("; cat $(find {} -type f | sort)", inputs.join(" "))
                };
                format!(
                    "RUN {}mkdir -p /w; (echo {salt}{files}) | sha256sum > /w/{mark}",
                    flag.unwrap_or_default()
                )
            }
        }
    }

    /// Writes Dockerfile and context into a directory.
    pub fn write(&self, directory: &Path, base_image: &str) -> io::Result<()> {
        for (path, content) in &self.files {
            let path = directory.join(path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, content)?;
        }
        std::fs::write(directory.join("Dockerfile"), self.dockerfile(base_image))
    }
}

impl Step {
    fn makes_something(&self) -> bool {
        !matches!(self.instruction, Instruction::Env(_) | Instruction::Arg(_))
    }

    fn has_value(&self) -> bool {
        matches!(self.instruction, Instruction::Env(_) | Instruction::Arg(_) | Instruction::Run { .. })
    }

    fn runs(&self) -> bool {
        matches!(self.instruction, Instruction::Run { .. })
    }
}

fn content(token: &str, random: &mut Random) -> String {
    format!("{token} {}\n", random.number())
}

/// The name of what a step makes. It ends with a letter, so that none is the beginning of another.
pub(crate) fn mark(token: &str, id: usize) -> String {
    format!("{token}m{id}x")
}
