//! Reads BuildKit's logs, `--progress=plain` and `rawjson`: which steps of a build ran, which were reused, how long
//! each took, and which caches could not be imported.
//!
//! A plain log interleaves: a vertex `#N` is printed in several sections, each opened by its name.
//!
//! ```text
//! #7 [a 3/5] RUN make            the name: stage `a`, step 3 of 5
//! #7 CACHED                      reused
//! #9 sha256:... 130B / 130B      its result is pulled: reused, although no line says so
//! #9 0.123 text                  a command's output: it ran
//! #9 DONE 0.1s
//! ```

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

/// More vertices than any build has; what a log has beyond them is not read.
const MOST_VERTICES: usize = 20_000;
/// Names are cut to so many characters.
const LONGEST_NAME: usize = 4_000;

/// A log, which may hold several builds and the output of other commands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Log {
    /// Its builds, in their order.
    pub builds: Vec<Build>,
}

/// What a log says of one build.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Build {
    /// Its vertices, in the order in which they were first told of.
    pub vertices: Vec<Vertex>,
}

/// One operation of a build: a step, a base image, an import or an export.
#[expect(clippy::struct_excessive_bools, reason = "what a log says of it, each by itself")]
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vertex {
    /// Its name, such as `[a 3/5] RUN make`.
    pub name: String,
    /// The digest of its operation, of which provenance says what it is; only `rawjson` has it.
    pub digest: Option<String>,
    /// Seconds that it took, as far as that is told.
    pub seconds: Option<f64>,
    /// When work on it began and ended; only `rawjson` has it.
    pub span: Option<(Timestamp, Timestamp)>,
    /// What it failed with, in BuildKit's words.
    pub error: Option<String>,
    /// It was in the builder's cache, or its result was pulled.
    found: bool,
    /// A command printed something.
    executed: bool,
    /// It came to its end. In a build that succeeds, what did not was found elsewhere before.
    done: bool,
    /// How often work on it began; only `rawjson` has it. What has no inputs is begun for its key alone.
    starts: Option<usize>,
    has_inputs: bool,
}

/// The name of a step's vertex, `[linux/amd64 a 3/5] RUN make`, in its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepName<'a> {
    /// What stands before the numbers: the stage, and with several platforms the platform before it.
    pub prefix: &'a str,
    /// Its number, from 1.
    pub place: usize,
    /// How many there are of its stage.
    pub of: usize,
    /// The instruction, with variables expanded.
    pub instruction: &'a str,
}

impl<'a> StepName<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (name, instruction) = name.strip_prefix('[')?.split_once("] ")?;
        let (prefix, count) = name.rsplit_once(' ').unwrap_or(("", name));
        let (place, of) = count.split_once('/')?;
        Some(Self { prefix: prefix.trim(), place: place.parse().ok()?, of: of.parse().ok()?, instruction })
    }

    /// The stage; empty where a Dockerfile has but one without a name.
    #[must_use]
    pub fn stage(&self) -> &'a str {
        self.prefix.rsplit(' ').next().unwrap_or_default()
    }

    /// The image, if that is what it is: as the Dockerfile names it, with its digest.
    #[must_use]
    pub fn image(&self) -> Option<&'a str> {
        self.instruction.strip_prefix("FROM ").map(str::trim)
    }
}

impl Vertex {
    /// The parts of its name, if it is a step or a base image.
    #[must_use]
    pub fn step(&self) -> Option<StepName<'_>> {
        StepName::parse(&self.name)
    }

    /// The cache that it imports, if that is what it does.
    #[must_use]
    pub fn import(&self) -> Option<&str> {
        self.name.strip_prefix("importing cache manifest from ")
    }

    /// It was reused, and no command of it ran.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.found && !self.executed && self.error.is_none()
    }

    /// What a plain log's line says.
    fn read(&mut self, text: &str) {
        let first = text.split(' ').next().unwrap_or_default();
        // A linked copy has two vertices of one name: the copy, and the merge of its result with the layers
        // below, which runs nothing.
        let found = ["sha256:", "extracting sha256:", "merging"];
        if text == "CACHED" || found.iter().any(|start| text.starts_with(start)) {
            self.found = true;
        } else if first == "DONE" {
            self.done = true;
            let seconds = text.split(' ').nth(1).and_then(|text| text.strip_suffix('s')?.parse().ok());
            self.seconds = seconds.filter(|seconds: &f64| seconds.is_finite()).or(self.seconds);
        } else if is_error(text) {
            let error = text.trim_start_matches("ERROR").trim_start_matches([':', ' ']);
            self.error = Some(error.chars().take(LONGEST_NAME).collect());
        } else if first.contains('.') && first.parse::<f64>().is_ok() {
            self.executed = true;
        }
    }

    /// Whether it is a step, and ran.
    fn ran(&self, name: &StepName<'_>, has_failed: bool) -> bool {
        // A linked copy's layer is put upon others by an operation of its own.
        if name.image().is_some() || name.instruction.starts_with("LINK ") {
            return false;
        }
        if let Some(starts) = self.starts {
            // What an `ADD` fetches has a step's name, too: of one of those that fetch it.
            let is_fetched = name.instruction.starts_with("ADD ") && !self.has_inputs;
            let is_over = self.done || self.error.is_some();
            return is_over && !self.found && !is_fetched && (self.has_inputs || starts > 1);
        }
        !self.is_reused() && (self.done || has_failed)
    }
}

impl Log {
    /// Reads a log of either format. Nothing in it is an error: what is not understood tells nothing.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let is_json = text.lines().any(|line| line.trim_end() == "{" || line.starts_with("{\""))
            && text.contains("\"vertexes\"");
        if is_json { Self::read_json(text) } else { Self::read_plain(text) }
    }

    fn read_plain(text: &str) -> Self {
        let mut log = Self::default();
        let mut build = Build::default();
        let mut places: HashMap<u32, usize> = HashMap::new();
        let mut vertices = 0;
        for line in text.lines() {
            let Some((number, text)) = split(line) else { continue };
            if number == 0 {
                // `#0 building with ...` opens a build; the numbers start again.
                log.builds.push(std::mem::take(&mut build));
                places.clear();
            } else if let Some(vertex) = places.get(&number).and_then(|place| build.vertices.get_mut(*place))
            {
                if text != vertex.name {
                    vertex.read(text);
                }
            } else if vertices < MOST_VERTICES && is_name(text) {
                vertices += 1;
                places.insert(number, build.vertices.len());
                let name = text.chars().take(LONGEST_NAME).collect();
                build.vertices.push(Vertex { name, ..Vertex::default() });
            }
        }
        log.builds.push(build);
        log.builds.retain(|build| !build.vertices.is_empty());
        log
    }

    /// Reads the JSON in a log. Other commands may have printed lines between.
    fn read_json(text: &str) -> Self {
        let mut reader = JsonReader::default();
        let mut rest = text;
        while let Some(start) = start_of_json(rest) {
            rest = rest.get(start..).unwrap_or_default();
            let mut parts = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            let mut end = 0;
            while let Some(Ok(part)) = parts.next() {
                reader.read(&part);
                end = parts.byte_offset();
            }
            // What is no JSON is left out line by line.
            let after = rest.get(end..).unwrap_or_default();
            let end = if end == 0 { after.find('\n').map_or(after.len(), |at| at + 1) } else { end };
            rest = rest.get(end..).unwrap_or_default();
        }
        let builds = if reader.build.vertices.is_empty() { Vec::new() } else { vec![reader.build] };
        Self { builds }
    }

    /// What became of the steps of all builds.
    #[must_use]
    pub fn steps(&self) -> Steps {
        let mut steps = Steps::default();
        for build in &self.builds {
            build.count(&mut steps);
        }
        steps
    }

    /// What vertices failed with, and what BuildKit says of caches that it does not import. What a command
    /// prints is none of it, even where it reads `ERROR`; nor is what the log says of a connection that was
    /// tried again.
    #[must_use]
    pub fn errors(&self) -> Vec<&str> {
        let vertices = self.builds.iter().flat_map(|build| &build.vertices);
        vertices.filter_map(|vertex| vertex.error.as_deref()).collect()
    }
}

fn start_of_json(text: &str) -> Option<usize> {
    if text.starts_with('{') { Some(0) } else { text.find("\n{").map(|at| at + 1) }
}

/// A line of a plain log: its vertex and its text. CodeBuild and others put a time before it.
fn split(line: &str) -> Option<(u32, &str)> {
    let line = match line.split_once(" #") {
        Some((time, _)) if time.parse::<Timestamp>().is_ok() => line.get(time.len() + 1..)?,
        _ => line,
    };
    let (number, text) = line.strip_prefix('#')?.split_once(' ')?;
    Some((number.parse().ok()?, text.trim_end()))
}

fn is_error(text: &str) -> bool {
    text == "ERROR" || text.starts_with("ERROR:") || text.starts_with("ERROR ")
}

/// Whether a vertex's first line can be its name.
fn is_name(text: &str) -> bool {
    let is_output = || text.split(' ').next().is_some_and(|first| first.parse::<f64>().is_ok());
    let states = ["CACHED", "DONE", "CANCELED", "sha256:", "extracting ", "..."];
    !is_error(text) && !states.iter().any(|state| text.starts_with(state)) && !is_output()
}

#[derive(Default)]
struct JsonReader {
    build: Build,
    places: HashMap<String, usize>,
    /// For each vertex when work on it began, and ended.
    spans: HashMap<usize, BTreeMap<Timestamp, Option<Timestamp>>>,
}

impl JsonReader {
    fn read(&mut self, part: &Value) {
        let list = |name: &str| part[name].as_array().map_or(&[][..], Vec::as_slice);
        for reported in list("vertexes") {
            self.vertex(reported);
        }
        for status in list("statuses") {
            let id = status["id"].as_str().unwrap_or_default();
            let is_pull = id.starts_with("sha256:") || id.starts_with("extracting sha256:");
            if let Some(vertex) = self.vertex_of(&status["vertex"]).filter(|_| is_pull) {
                vertex.found = true;
            }
        }
        for output in list("logs") {
            if let Some(vertex) = self.vertex_of(&output["vertex"]) {
                vertex.executed = true;
            }
        }
    }

    fn vertex_of(&mut self, digest: &Value) -> Option<&mut Vertex> {
        let place = self.places.get(digest.as_str()?)?;
        self.build.vertices.get_mut(*place)
    }

    fn vertex(&mut self, reported: &Value) {
        let Some(digest) = reported["digest"].as_str() else { return };
        let place = match self.places.get(digest) {
            Some(place) => *place,
            None if self.build.vertices.len() >= MOST_VERTICES => return,
            None => {
                let place = self.build.vertices.len();
                self.places.insert(digest.to_owned(), place);
                let name = reported["name"].as_str().unwrap_or_default();
                self.build.vertices.push(Vertex {
                    name: name.chars().take(LONGEST_NAME).collect(),
                    digest: Some(digest.to_owned()),
                    starts: Some(0),
                    ..Vertex::default()
                });
                place
            }
        };
        let Some(vertex) = self.build.vertices.get_mut(place) else { return };
        vertex.has_inputs |= reported["inputs"].as_array().is_some_and(|inputs| !inputs.is_empty());
        vertex.found |= reported["cached"] == true;
        let time = |name: &str| reported[name].as_str().and_then(|text| text.parse::<Timestamp>().ok());
        let (started, completed) = (time("started"), time("completed"));
        vertex.done |= completed.is_some();
        if let Some(error) = reported["error"].as_str().filter(|error| !error.is_empty()) {
            vertex.error = Some(error.chars().take(LONGEST_NAME).collect());
        }
        let Some(started) = started else { return };
        let spans = self.spans.entry(place).or_default();
        let end = spans.entry(started).or_default();
        *end = completed.or(*end);
        vertex.starts = Some(spans.len());
        // Of several beginnings all but the last are for its key.
        if let Some((&from, &Some(to))) = spans.iter().next_back() {
            vertex.span = Some((from, to));
            vertex.seconds = Some(to.duration_since(from).as_secs_f64().max(0.0));
        }
    }
}

/// What became of the steps of all builds in a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Steps {
    /// How many steps there are, `FROM` not counted. Steps that BuildKit never came to mention count too: a later
    /// step was in the cache.
    pub total: usize,
    /// How many were reused. A build that failed may have reached fewer than all.
    pub reused: usize,
    /// The steps that ran, such as `[a 3/5] RUN make`, in the order of the log.
    pub ran: Vec<String>,
}

impl Build {
    /// The base images that it names, each with its digest.
    #[must_use]
    pub fn images(&self) -> Vec<(&str, &str)> {
        let names = self.vertices.iter().filter_map(|vertex| vertex.step()?.image());
        names.filter_map(|name| name.split_once('@')).collect()
    }

    /// The steps that ran, in the order of the log; two vertices of one name count once.
    #[must_use]
    pub fn ran(&self) -> Vec<(&Vertex, StepName<'_>)> {
        let steps = self.vertices.iter().filter_map(|vertex| Some((vertex, vertex.step()?)));
        let has_failed = steps.clone().any(|(vertex, _)| vertex.error.is_some());
        let mut ran: Vec<(&Vertex, StepName<'_>)> = Vec::new();
        let mut names = std::collections::HashSet::new();
        // What an `ADD` fetches has its name, too, and is fetched each time; text does not tell one from the other.
        let reused: std::collections::HashSet<&str> = steps
            .clone()
            .filter(|(vertex, _)| vertex.found && vertex.starts.is_none())
            .map(|(vertex, _)| vertex.name.as_str())
            .collect();
        for (vertex, name) in steps {
            let is_fetched = name.instruction.starts_with("ADD ") && reused.contains(vertex.name.as_str());
            if !is_fetched && vertex.ran(&name, has_failed) && names.insert(vertex.name.as_str()) {
                ran.push((vertex, name));
            }
        }
        ran
    }

    fn count(&self, steps: &mut Steps) {
        // For each stage how many steps it has, and whether its first is one: a stage that starts from
        // another stage, or from nothing, has no `FROM` among its steps.
        let mut stages: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
        let named = || self.vertices.iter().filter_map(|vertex| Some((vertex, vertex.step()?)));
        for (_, name) in named() {
            let stage = stages.entry(name.prefix).or_default();
            stage.0 = name.of;
            stage.1 |= name.place == 1 && name.image().is_none();
        }
        let total = stages.values().fold(0_usize, |sum, (of, starts_with_step)| {
            sum.saturating_add(of.saturating_sub(usize::from(!starts_with_step)))
        });
        let states = || named().filter(|(_, name)| name.image().is_none());
        let has_failed = states().any(|(vertex, _)| vertex.error.is_some());
        let mut ran: Vec<String> = self.ran().into_iter().map(|(vertex, _)| vertex.name.clone()).collect();
        steps.total = steps.total.saturating_add(total);
        steps.reused = steps.reused.saturating_add(if has_failed {
            // What a failed build does not mention, it did not reach.
            states().filter(|(vertex, _)| vertex.is_reused()).count()
        } else {
            total.saturating_sub(ran.len())
        });
        steps.ran.append(&mut ran);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(log: &str) -> Steps {
        Log::read(log).steps()
    }

    const COLD: &str = include_str!("../tests/fixtures/cold.log");
    const WARM: &str = include_str!("../tests/fixtures/warm.log");
    const JSON: &str = include_str!("../tests/fixtures/rawjson.log");
    const LOCAL: &str = include_str!("../tests/fixtures/local.log");

    #[test]
    fn a_cold_build_runs_every_step() {
        let steps = steps(COLD);
        assert_eq!((steps.total, steps.reused, steps.ran.len()), (12, 0, 12));
        assert_eq!(steps.ran[0], "[a 2/5] COPY a/deps /a/deps");
    }

    #[test]
    fn a_warm_build_reuses_what_it_finds_and_what_it_pulls() {
        let steps = steps(WARM);
        assert_eq!((steps.total, steps.reused), (12, 8));
        assert_eq!(
            steps.ran,
            [
                "[stage-2 2/5] COPY version /app/version",
                "[stage-2 3/5] COPY --from=a /a/out /app/a",
                "[stage-2 4/5] COPY --from=b /b/out /app/b",
                "[stage-2 5/5] RUN sleep 2; cat /app/a /app/b > /app/bin",
            ]
        );
    }

    #[test]
    fn a_builder_with_its_own_cache_reuses_as_much() {
        let steps = steps(LOCAL);
        assert_eq!((steps.total, steps.reused, steps.ran.len()), (12, 8, 4));
    }

    #[test]
    fn several_builds_and_other_output_share_a_log() {
        let log = format!("[Container] Entering phase BUILD\n{COLD}\nhello #1 setup\n{WARM}");
        let steps = steps(&log);
        assert_eq!((steps.total, steps.reused, steps.ran.len()), (24, 8, 16));
    }

    #[test]
    fn steps_never_mentioned_were_reused() {
        let log = "#0 building with \"default\" instance\n\n#5 [a 5/5] RUN make\n#5 sha256:aa 130B / 130B \
             done\n#5 DONE 0.1s\n\n\
                   #6 [2/2] COPY x /x\n#6 DONE 0.0s\n";
        let steps = steps(log);
        assert_eq!((steps.total, steps.reused), (5, 4));
        assert_eq!(steps.ran, ["[2/2] COPY x /x"]);
    }

    #[test]
    fn a_failed_step_ran_and_output_is_no_pull() {
        let log = "#5 [2/4] RUN a\n#5 0.215 sha256:aa is what I saw\n#5 DONE 0.3s\n\n\
                   #6 [3/4] RUN b\n#6 0.1 oops\n#6 ERROR: process \"/bin/sh -c b\" did not complete successfully\n";
        let steps = steps(log);
        assert_eq!(steps.ran, ["[2/4] RUN a", "[3/4] RUN b"]);
        assert_eq!((steps.total, steps.reused), (3, 0));
    }

    #[test]
    fn what_does_not_end_in_a_build_that_succeeds_was_found_elsewhere() {
        let log = "#5 [2/3] COPY --link a /a\n#5 CANCELED\n\n#6 [3/3] RUN b\n#6 DONE 0.1s\n";
        let expected = Steps { total: 2, reused: 1, ran: vec!["[3/3] RUN b".to_owned()] };
        assert_eq!(steps(log), expected);
        assert_eq!(steps(&log.replace("CANCELED", "...")), expected);
        let failed = log.replace("DONE 0.1s", "ERROR: process did not complete successfully");
        assert_eq!(steps(&failed).ran.len(), 2);
    }

    #[test]
    fn a_linked_copy_ran_if_its_copy_did() {
        let merged = "#6 [2/2] COPY --link a /a\n#6 merging\n#6 merging 0.0s done\n#6 DONE 0.1s\n";
        assert_eq!(steps(merged), Steps { total: 1, reused: 1, ran: Vec::new() });
        let copied = format!("#5 [2/2] COPY --link a /a\n#5 DONE 0.0s\n\n{merged}");
        assert_eq!(steps(&copied).ran, ["[2/2] COPY --link a /a"]);
    }

    #[test]
    fn only_what_a_vertex_ends_with_is_an_error() {
        let log = "#5 [2/4] RUN a\n#5 0.215 ERROR: printed by the step\n#5 0.3 #7 ERROR: so is this\n#5 DONE 0.3s\n\
                   #6 importing cache manifest from x\n\
                   #6 0.1 error: stream error: stream ID 7; PROTOCOL_ERROR; received from peer\n#6 DONE 0.2s\n\
                   #8 importing cache manifest from y\n#8 ERROR: y: not found\nERROR: failed to build\n";
        assert_eq!(Log::read(log).errors(), ["y: not found"]);
    }

    #[test]
    fn a_stage_on_another_stage_has_no_from() {
        let log = "#5 [b 1/2] RUN a\n#5 DONE 0.3s\n\n#6 [b 2/2] RUN b\n#6 CACHED\n";
        assert_eq!(steps(log), Steps { total: 2, reused: 1, ran: vec!["[b 1/2] RUN a".to_owned()] });
    }

    #[test]
    fn a_log_without_builds_has_no_steps() {
        assert_eq!(steps("nothing\n#hash\n#1\n"), Steps::default());
    }

    #[test]
    fn a_log_tells_what_its_steps_took() {
        const LOG: &str = "\
#1 [internal] load build definition from Dockerfile
#1 DONE 0.1s
#5 [build 1/4] FROM docker.io/library/node:20
#5 sha256:aa 1B / 1B
#5 DONE 3.0s
2026-01-01T00:00:00Z #6 [build 2/4] WORKDIR /app
2026-01-01T00:00:00Z #6 DONE 0.2s
#7 [build 3/4] COPY . .
#7 CACHED
#8 [build 4/4] RUN npm run build
#8 0.4 > building
#8 DONE 61.5s
#9 [linux/amd64 stage-1 2/2] COPY --from=build /app /app
#9 DONE 0.3s
#10 exporting to image
#10 DONE 1.0s
";
        let log = Log::read(LOG);
        let ran = log.builds[0].ran().into_iter();
        let reported: Vec<_> = ran.map(|(vertex, name)| (name.stage(), name.place, vertex.seconds)).collect();
        assert_eq!(reported, [("build", 2, Some(0.2)), ("build", 4, Some(61.5)), ("stage-1", 2, Some(0.3))]);
        let base = log.builds[0].vertices.iter().find_map(|vertex| vertex.step()?.image());
        assert_eq!(base, Some("docker.io/library/node:20"));
    }

    #[test]
    fn json_tells_the_same_as_text_and_when() {
        let log = Log::read(JSON);
        let [build] = log.builds.as_slice() else { panic!("{log:?}") };
        let ran: Vec<_> = build.ran().into_iter().map(|(_, name)| (name.stage(), name.place)).collect();
        assert_eq!(ran, [("stage-2", 3), ("stage-2", 2), ("build", 2), ("build", 1)]);
        assert!(build.ran().iter().all(|(vertex, _)| vertex.span.is_some() && vertex.digest.is_some()));
        assert_eq!((log.steps().total, log.steps().reused), (7, 3));
        let imports: Vec<_> = build.vertices.iter().filter_map(Vertex::import).collect();
        assert_eq!(imports, ["127.0.0.1:5977/t:one"]);
        let base = build.vertices.iter().find_map(|vertex| vertex.step()?.image()).unwrap();
        assert!(base.starts_with("localhost/base:1@sha256:"), "{base}");
    }

    #[test]
    fn what_an_add_fetches_is_no_step() {
        let vertex = |digest: &str, rest: &str| {
            format!(
                "{{\"vertexes\":[{{\"digest\":\"{digest}\",\"name\":\"[2/2] ADD http://a /\"{rest}}}]}}\n"
            )
        };
        let times = ",\"started\":\"2026-01-01T00:00:01Z\",\"completed\":\"2026-01-01T00:00:02Z\"";
        let fetched = vertex("a", &format!("{times},\"cached\":true"));
        let copied = vertex("b", &format!("{times},\"inputs\":[\"a\"]"));
        assert_eq!(steps(&format!("{fetched}{copied}")).ran, ["[2/2] ADD http://a /"]);
        let found = vertex("b", &format!("{times},\"inputs\":[\"a\"],\"cached\":true"));
        assert_eq!(steps(&format!("{fetched}{found}")).ran.len(), 0);
        assert_eq!(
            steps("#5 [2/2] ADD http://a /\n#5 DONE 0.1s\n#6 [2/2] ADD http://a /\n#6 CACHED\n").ran.len(),
            0
        );
    }

    #[test]
    fn json_between_other_output_is_read() {
        let vertex = |name: &str, rest: &str| {
            format!(
                "{{\"vertexes\":[{{\"digest\":\"sha256:{name}\",\"name\":\"[{name}/3] RUN a\"{rest}}}]}}\n"
            )
        };
        let time = |second: u32| format!("2026-01-01T00:00:0{second}.5Z");
        let started = format!(",\"inputs\":[\"sha256:0\"],\"started\":\"{}\"", time(1));
        let ended = format!("{started},\"completed\":\"{}\"", time(3));
        let cached = format!("{ended},\"cached\":true");
        let parts = [
            "{ no JSON\n".to_owned(),
            vertex("2", &started),
            "hello\n{\n".to_owned(),
            vertex("2", &ended),
            vertex("3", &cached),
        ];
        let log = Log::read(&parts.concat());
        let ran: Vec<_> =
            log.builds[0].ran().into_iter().map(|(vertex, name)| (name.place, vertex.seconds)).collect();
        assert_eq!(ran, [(2, Some(2.0))]);
        assert_eq!(log.steps().total, 2);
        assert_eq!(Log::read("{\"vertexes\":[{\"digest\":1}]}"), Log::default());
    }
}
