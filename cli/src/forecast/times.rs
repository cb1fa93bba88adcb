//! How long steps take: from a log where there is one, and assumed by what they do else.

use std::collections::HashMap;

use cache_misses::{Build, Log};
use dockerfile_keys::{Plan, Step, StepKind};

/// Seconds that something takes: at best, mostly, at worst.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) struct Seconds([f64; 3]);

impl Seconds {
    pub(super) const NONE: Self = Self::new(0.0, 0.0, 0.0);

    pub(super) const fn new(least: f64, usual: f64, most: f64) -> Self {
        Self([least, usual, most])
    }

    /// At best, mostly, or at worst.
    pub(super) fn at(self, level: Level) -> f64 {
        let [least, usual, most] = self.0;
        match level {
            Level::Least => least,
            Level::Usual => usual,
            Level::Most => most,
        }
    }
}

/// Which of the assumed times is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Least,
    Usual,
    Most,
}

/// Words of commands that compile or bundle.
const COMPILES: &[&str] = &[
    "cargo build",
    "cargo install",
    "go build",
    "go install",
    "npm run build",
    "ng build",
    "yarn build",
    "yarn run build",
    "pnpm build",
    "pnpm run build",
    "bun run build",
    "next build",
    "vite build",
    "webpack",
    "tsc",
    "mvn",
    "gradle",
    "make",
    "cmake",
    "ninja",
    "dotnet publish",
    "dotnet build",
    "assets:precompile",
    "mix release",
    "mix compile",
    "sbt ",
    "bazel",
    "xx-cargo",
    "meson",
    "swift build",
    "docker-php-ext-install",
];
/// Words of commands that fetch and install packages.
const INSTALLS: &[&str] = &[
    "npm ci",
    "npm install",
    "npm i ",
    "yarn install",
    "pnpm install",
    "pnpm i ",
    "bun install",
    "pip install",
    "pip3 install",
    "uv sync",
    "uv pip",
    "poetry install",
    "pipenv install",
    "bundle install",
    "composer install",
    "apt-get install",
    "apt install",
    "apk add",
    "dnf install",
    "yum install",
    "microdnf install",
    "go mod download",
    "cargo fetch",
    "cargo chef cook",
    "mix deps.get",
    "dotnet restore",
    "dependency:go-offline",
    "gem install",
    "xx-apk add",
    "xx-apt",
];

/// Whether a command installs packages and builds nothing.
pub(super) fn is_install_alone(command: &str) -> bool {
    let has = |words: &[&str]| words.iter().any(|word| command.contains(word));
    has(INSTALLS) && !has(COMPILES)
}

/// What is assumed of a step.
fn assumed(step: &Step) -> Seconds {
    let has = |words: &[&str]| words.iter().any(|word| step.text.contains(word));
    match step.kind {
        StepKind::Copy | StepKind::Add | StepKind::Workdir => Seconds::new(0.2, 0.5, 2.0),
        StepKind::Run | StepKind::Unknown if has(COMPILES) => Seconds::new(20.0, 90.0, 300.0),
        StepKind::Run | StepKind::Unknown if has(INSTALLS) => Seconds::new(10.0, 35.0, 100.0),
        StepKind::Run | StepKind::Unknown => Seconds::new(0.5, 2.0, 10.0),
    }
}

/// The seconds of steps.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// By stage and by the step's text without white space that does not matter.
    measured: HashMap<(String, String), f64>,
}

impl Times {
    /// Takes the times of a log of `docker build`, in which this plan was built.
    pub(super) fn of_log(log: &str, plan: &Plan) -> Self {
        let steps: Vec<&Step> = plan.nodes.iter().filter_map(|node| node.step.as_ref()).collect();
        let mut measured = HashMap::new();
        let log = Log::read(log);
        for (vertex, reported) in log.builds.iter().flat_map(Build::ran) {
            // A Dockerfile of one stage says no name.
            let is_it = |step: &&&Step| {
                step.place == reported.place
                    && (reported.stage().is_empty() || step.stage == reported.stage())
            };
            if let (Some(step), Some(seconds)) = (steps.iter().find(is_it), vertex.seconds) {
                measured.insert(name(step), seconds);
            }
        }
        Self { measured }
    }

    /// Takes the medians of the times that several builds' logs tell of the plan's steps. Other commits may
    /// have been built in them, so a step is known by its text.
    pub(super) fn of_builds(logs: &[String], plan: &Plan) -> Self {
        let mut reported: HashMap<(String, String), Vec<f64>> = HashMap::new();
        for log in logs.iter().map(|log| Log::read(log)) {
            for (vertex, name) in log.builds.iter().flat_map(Build::ran) {
                if let Some(seconds) = vertex.seconds {
                    let step = (name.stage().to_owned(), spaced(name.instruction));
                    reported.entry(step).or_default().push(seconds);
                }
            }
        }
        let mut measured = HashMap::new();
        for step in plan.nodes.iter().filter_map(|node| node.step.as_ref()) {
            let name = name(step);
            let alone = (String::new(), name.1.clone());
            if let Some(seconds) = reported.get_mut(&name) {
                measured.insert(name, median(seconds));
            } else if let Some(seconds) = reported.get_mut(&alone) {
                measured.insert(name, median(seconds));
            }
        }
        Self { measured }
    }

    pub(super) fn of(&self, step: &Step) -> Seconds {
        if self.measured.is_empty() {
            return assumed(step);
        }
        match self.measured.get(&name(step)) {
            Some(seconds) => Seconds::new(*seconds, *seconds, *seconds),
            None => assumed(step),
        }
    }

    /// Whether the time of a step is known.
    pub(super) fn knows(&self, step: &Step) -> bool {
        self.measured.contains_key(&name(step))
    }

    /// How many steps' times are known.
    pub(super) fn known(&self) -> usize {
        self.measured.len()
    }
}

fn name(step: &Step) -> (String, String) {
    (step.stage.clone(), spaced(&step.text))
}

fn spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_unstable_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_assumed_by_what_a_step_does() {
        let step =
            |kind, text: &str| Step { line: 1, stage: "s".to_owned(), place: 1, kind, text: text.to_owned() };
        let usual = |kind, text| Times::default().of(&step(kind, text)).at(Level::Usual);
        let copy = usual(StepKind::Copy, "COPY make /");
        let run = usual(StepKind::Run, "RUN adduser x");
        let install = usual(StepKind::Run, "RUN npm ci");
        let build = usual(StepKind::Run, "RUN npm ci && npm run build");
        assert!(copy < run && run < install && install < build);
    }
}
