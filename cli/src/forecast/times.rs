//! How long steps take: from a log where there is one, and assumed by what they do else.

use std::collections::HashMap;

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
    /// Takes the times of a log of `docker build --progress=plain`, in which this plan was built.
    pub(super) fn of_log(log: &str, plan: &Plan) -> Self {
        let steps: Vec<&Step> = plan.nodes.iter().filter_map(|node| node.step.as_ref()).collect();
        let mut measured = HashMap::new();
        for timed in timed(log) {
            // A Dockerfile of one stage says no name.
            let is_it = |step: &&&Step| {
                step.place == timed.place && (timed.stage.is_empty() || step.stage == timed.stage)
            };
            let found = steps.iter().find(is_it);
            if let Some(step) = found {
                measured.insert(name(step), timed.seconds);
            }
        }
        Self { measured }
    }

    /// Takes the medians of the times that several builds' logs tell of the plan's steps. Other commits may have been built
    /// in them, so a step is known by its text.
    pub(super) fn of_builds(logs: &[String], plan: &Plan) -> Self {
        let mut told: HashMap<(String, String), Vec<f64>> = HashMap::new();
        for timed in logs.iter().flat_map(|log| timed(log)) {
            told.entry((timed.stage, timed.text)).or_default().push(timed.seconds);
        }
        let mut measured = HashMap::new();
        for step in plan.nodes.iter().filter_map(|node| node.step.as_ref()) {
            let name = name(step);
            let alone = (String::new(), name.1.clone());
            if let Some(seconds) = told.get_mut(&name) {
                measured.insert(name, median(seconds));
            } else if let Some(seconds) = told.get_mut(&alone) {
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

/// A step of a log that ran.
#[derive(Debug, PartialEq)]
struct Timed {
    stage: String,
    place: usize,
    text: String,
    seconds: f64,
}

/// The steps that ran in a log: `#7 [build 3/5] RUN make`, and later `#7 DONE 4.2s`.
fn timed(log: &str) -> Vec<Timed> {
    let mut open: HashMap<u32, Timed> = HashMap::new();
    let mut timed = Vec::new();
    for line in log.lines() {
        // A log of CodeBuild or GitHub has a time before each line.
        let Some((number, text)) =
            line.find('#').and_then(|at| line.split_at(at).1.get(1..)?.split_once(' '))
        else {
            continue;
        };
        let Ok(number) = number.parse::<u32>() else { continue };
        if let Some(step) = step_of(text) {
            open.entry(number).or_insert(step);
        } else if text.starts_with("CACHED") || text.starts_with("sha256:") || text.starts_with("ERROR") {
            open.remove(&number);
        } else if let Some(seconds) =
            text.strip_prefix("DONE ").and_then(|text| text.trim().strip_suffix('s'))
            && let Some(step) = open.remove(&number)
            && let Ok(seconds) = seconds.parse()
        {
            timed.push(Timed { seconds, ..step });
        }
    }
    timed
}

fn step_of(text: &str) -> Option<Timed> {
    let (name, text) = text.strip_prefix('[')?.split_once("] ")?;
    let (stage, count) = name.rsplit_once(' ').unwrap_or(("", name));
    let (place, _) = count.split_once('/')?;
    // With several platforms the stage's name comes after the platform's.
    let stage = stage.trim().rsplit(' ').next().unwrap_or_default().to_owned();
    Some(Timed { stage, place: place.trim().parse().ok()?, text: spaced(text), seconds: 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
#1 [internal] load build definition from Dockerfile
#1 DONE 0.1s
#5 [build 1/4] FROM docker.io/library/node:20
#5 sha256:aa 1B / 1B
#5 DONE 3.0s
2026-01-01T00:00:00Z #6 [build 2/4] WORKDIR /app
#6 DONE 0.2s
#7 [build 3/4] COPY . .
#7 CACHED
#8 [build 4/4] RUN npm run build
#8 0.4 > building
#8 DONE 61.5s
#9 [stage-1 2/2] COPY --from=build /app /app
#9 DONE 0.3s
#10 exporting to image
#10 DONE 1.0s
";

    #[test]
    fn a_log_tells_what_its_steps_took() {
        let seconds: Vec<(String, f64)> = timed(LOG)
            .into_iter()
            .map(|step| (format!("{} {}", step.stage, step.place), step.seconds))
            .collect();
        let expected = [("build 2", 0.2), ("build 4", 61.5), ("stage-1 2", 0.3)];
        assert_eq!(seconds, expected.map(|(name, seconds)| (name.to_owned(), seconds)));
    }

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
