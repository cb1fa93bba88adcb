//! Reads BuildKit's plain progress log: which steps of a build ran, and which were reused.
//!
//! A log interleaves: a vertex `#N` is printed in several sections, each opened by its name.
//!
//! ```text
//! #7 [a 3/5] RUN make            the name: stage `a`, step 3 of 5
//! #7 CACHED                      reused
//! #9 sha256:... 130B / 130B      its result is pulled: reused, although no line says so
//! #9 0.123 text                  a command's output: it ran
//! #9 DONE 0.1s
//! ```

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

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

/// Reads a log, which may hold several builds and the output of other commands.
#[must_use]
pub fn parse(log: &str) -> Steps {
    let mut steps = Steps::default();
    let mut build = Build::default();
    for line in log.lines() {
        let Some((vertex, text)) = split(line) else {
            continue;
        };
        if vertex == 0 {
            // `#0 building with ...` opens a build; the numbers start again.
            std::mem::take(&mut build).count(&mut steps);
        } else if let Some(name) = Name::parse(text) {
            build.named(vertex, &name, text);
        } else if let Some(state) = build.vertices.get_mut(&vertex) {
            state.read(text);
        }
    }
    build.count(&mut steps);
    steps
}

/// What vertices of the builds in a log failed with, and what BuildKit says of caches that it does not import. What a
/// command prints is none of it, even where it reads `ERROR`; nor is what the log says of a connection that was tried
/// again.
#[must_use]
pub fn errors(log: &str) -> Vec<&str> {
    let is_error = |text: &str| text == "ERROR" || text.starts_with("ERROR:") || text.starts_with("ERROR ");
    let of_line = |line| split(line).map(|(_, text)| text).filter(|text| is_error(text));
    log.lines().filter_map(of_line).collect()
}

fn split(line: &str) -> Option<(u32, &str)> {
    let (number, text) = line.strip_prefix('#')?.split_once(' ')?;
    Some((number.parse().ok()?, text.trim_end()))
}

/// The part of a vertex's name in brackets, and whether a `FROM` follows.
struct Name<'a> {
    stage: &'a str,
    index: usize,
    of: usize,
    is_from: bool,
}

impl<'a> Name<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (name, instruction) = text.strip_prefix('[')?.split_once("] ")?;
        let (stage, count) = name.rsplit_once(' ').unwrap_or(("", name));
        let (index, of) = count.split_once('/')?;
        let is_from = instruction.starts_with("FROM ");
        Some(Self { stage: stage.trim(), index: index.parse().ok()?, of: of.parse().ok()?, is_from })
    }
}

#[derive(Default)]
struct Build {
    vertices: HashMap<u32, State>,
    order: Vec<u32>,
    stages: BTreeMap<String, Stage>,
}

#[derive(Default)]
struct Stage {
    of: usize,
    /// A stage that starts from another stage, or from nothing, has no `FROM` among its steps.
    starts_with_step: bool,
}

#[derive(Default)]
struct State {
    text: String,
    is_from: bool,
    /// It was in the builder's cache, or its result was pulled.
    found: bool,
    /// It came to its end. In a build that succeeds, what did not was found elsewhere before.
    done: bool,
    fate: Fate,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// No output.
    #[default]
    Silent,
    Executed,
    Failed,
}

impl State {
    fn read(&mut self, text: &str) {
        let first = text.split(' ').next().unwrap_or_default();
        // A linked copy has two vertices of one name: the copy, and the merge of its result with the layers below, which
        // runs nothing.
        let found = ["sha256:", "extracting sha256:", "merging"];
        if text == "CACHED" || found.iter().any(|start| text.starts_with(start)) {
            self.found = true;
        } else if first == "DONE" {
            self.done = true;
        } else if first == "ERROR:" {
            self.fate = Fate::Failed;
        } else if self.fate == Fate::Silent && first.contains('.') && first.parse::<f64>().is_ok() {
            self.fate = Fate::Executed;
        }
    }

    fn reused(&self) -> bool {
        self.found && self.fate == Fate::Silent
    }
}

impl Build {
    fn named(&mut self, vertex: u32, name: &Name<'_>, text: &str) {
        let stage = self.stages.entry(name.stage.to_owned()).or_default();
        stage.of = name.of;
        stage.starts_with_step |= name.index == 1 && !name.is_from;
        let order = &mut self.order;
        self.vertices.entry(vertex).or_insert_with(|| {
            order.push(vertex);
            State { text: text.to_owned(), is_from: name.is_from, ..State::default() }
        });
    }

    fn count(self, steps: &mut Steps) {
        let total: usize = self
            .stages
            .values()
            .map(|s| if s.starts_with_step { s.of } else { s.of.saturating_sub(1) })
            .sum();
        let states = || self.vertices.values().filter(|state| !state.is_from);
        let has_failed = states().any(|state| state.fate == Fate::Failed);
        let mut ran: Vec<String> = Vec::new();
        for state in self.order.iter().filter_map(|vertex| self.vertices.get(vertex)) {
            let is_over = state.done || has_failed;
            if !state.is_from && !state.reused() && is_over && !ran.contains(&state.text) {
                ran.push(state.text.clone());
            }
        }
        steps.total += total;
        steps.reused += if has_failed {
            // What a failed build does not mention, it did not reach.
            states().filter(|state| state.reused()).count()
        } else {
            total.saturating_sub(ran.len())
        };
        steps.ran.append(&mut ran);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLD: &str = include_str!("../tests/fixtures/cold.log");
    const WARM: &str = include_str!("../tests/fixtures/warm.log");
    const LOCAL: &str = include_str!("../tests/fixtures/local.log");

    #[test]
    fn a_cold_build_runs_every_step() {
        let steps = parse(COLD);
        assert_eq!((steps.total, steps.reused, steps.ran.len()), (12, 0, 12));
        assert_eq!(steps.ran[0], "[a 2/5] COPY a/deps /a/deps");
    }

    #[test]
    fn a_warm_build_reuses_what_it_finds_and_what_it_pulls() {
        let steps = parse(WARM);
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
        let steps = parse(LOCAL);
        assert_eq!((steps.total, steps.reused, steps.ran.len()), (12, 8, 4));
    }

    #[test]
    fn several_builds_and_other_output_share_a_log() {
        let log = format!("[Container] Entering phase BUILD\n{COLD}\nhello #1 setup\n{WARM}");
        let steps = parse(&log);
        assert_eq!((steps.total, steps.reused, steps.ran.len()), (24, 8, 16));
    }

    #[test]
    fn steps_never_mentioned_were_reused() {
        let log = "#0 building with \"default\" instance\n\n#5 [a 5/5] RUN make\n#5 sha256:aa 130B / 130B done\n#5 DONE 0.1s\n\n\
                   #6 [2/2] COPY x /x\n#6 DONE 0.0s\n";
        let steps = parse(log);
        assert_eq!((steps.total, steps.reused), (5, 4));
        assert_eq!(steps.ran, ["[2/2] COPY x /x"]);
    }

    #[test]
    fn a_failed_step_ran_and_output_is_no_pull() {
        let log = "#5 [2/4] RUN a\n#5 0.215 sha256:aa is what I saw\n#5 DONE 0.3s\n\n\
                   #6 [3/4] RUN b\n#6 0.1 oops\n#6 ERROR: process \"/bin/sh -c b\" did not complete successfully\n";
        let steps = parse(log);
        assert_eq!(steps.ran, ["[2/4] RUN a", "[3/4] RUN b"]);
        assert_eq!((steps.total, steps.reused), (3, 0));
    }

    #[test]
    fn what_does_not_end_in_a_build_that_succeeds_was_found_elsewhere() {
        let log = "#5 [2/3] COPY --link a /a\n#5 CANCELED\n\n#6 [3/3] RUN b\n#6 DONE 0.1s\n";
        let expected = Steps { total: 2, reused: 1, ran: vec!["[3/3] RUN b".to_owned()] };
        assert_eq!(parse(log), expected);
        assert_eq!(parse(&log.replace("CANCELED", "...")), expected);
        let failed = log.replace("DONE 0.1s", "ERROR: process did not complete successfully");
        assert_eq!(parse(&failed).ran.len(), 2);
    }

    #[test]
    fn a_linked_copy_ran_if_its_copy_did() {
        let merged = "#6 [2/2] COPY --link a /a\n#6 merging\n#6 merging 0.0s done\n#6 DONE 0.1s\n";
        assert_eq!(parse(merged), Steps { total: 1, reused: 1, ran: Vec::new() });
        let copied = format!("#5 [2/2] COPY --link a /a\n#5 DONE 0.0s\n\n{merged}");
        assert_eq!(parse(&copied).ran, ["[2/2] COPY --link a /a"]);
    }

    #[test]
    fn only_what_a_vertex_ends_with_is_an_error() {
        let log = "#5 [2/4] RUN a\n#5 0.215 ERROR: printed by the step\n#5 0.3 #7 ERROR: so is this\n#5 DONE 0.3s\n\
                   #6 importing cache manifest from x\n\
                   #6 0.1 error: stream error: stream ID 7; PROTOCOL_ERROR; received from peer\n#6 DONE 0.2s\n\
                   #8 importing cache manifest from y\n#8 ERROR: y: not found\nERROR: failed to build\n";
        assert_eq!(errors(log), ["ERROR: y: not found"]);
    }

    #[test]
    fn a_stage_on_another_stage_has_no_from() {
        let log = "#5 [b 1/2] RUN a\n#5 DONE 0.3s\n\n#6 [b 2/2] RUN b\n#6 CACHED\n";
        assert_eq!(parse(log), Steps { total: 2, reused: 1, ran: vec!["[b 1/2] RUN a".to_owned()] });
    }

    #[test]
    fn a_log_without_builds_has_no_steps() {
        assert_eq!(parse("nothing\n#hash\n#1\n"), Steps::default());
    }
}
