//! What a foreign cache brings to main, held against [BuildKit's own lookup](super::buildkit).

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::buildkit::{Asks, Found, Imported, Need, Version, Vertex};
use super::raw::{Config, Input, Layer, LayerResult, NO_PARENT, Record};
use super::{Export, ONE, TWO, model, moment, read, written};
use crate::names::{Commit, Digest};
use crate::{Cache, Descriptor, Extra, Limits, Mark};

const VERSIONS: [Version; 2] = [Version::Plain, Version::Joined];
const ASKS: [Asks; 2] = [Asks::Late, Asks::Always];

fn digest(name: &str) -> String {
    Digest::of(name.as_bytes()).to_string()
}

/// Choices, of which the shortest and lowest make the simplest case.
struct Rng<'a>(std::slice::Iter<'a, u8>);

impl Rng<'_> {
    fn below(&mut self, end: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or_default()) % end
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }
}

/// Steps that somebody could build. Whatever two of them have in common by BuildKit's keys, they result in
/// the same files.
#[derive(Debug)]
struct Graph {
    vertices: Vec<Vertex>,
    /// What files each results in: a number.
    contents: Vec<usize>,
}

fn content(files: usize, selector: &str) -> String {
    digest(&format!("content {files} {selector}"))
}

impl Graph {
    fn any(rng: &mut Rng<'_>) -> Self {
        let mut graph = Self { vertices: Vec::new(), contents: Vec::new() };
        for source in 0..=1 + rng.below(2) {
            graph.vertices.push(Vertex { digest: digest(&format!("source {source}")), inputs: Vec::new() });
            graph.contents.push(rng.below(3));
        }
        for _ in 0..2 + rng.below(5) {
            let op = rng.below(3);
            // The same step has the same inputs: what it runs on, and what it copies from.
            let mut inputs = Vec::new();
            if op > 0 {
                inputs.push(Need {
                    vertex: rng.below(graph.vertices.len()),
                    selector: String::new(),
                    content: None,
                });
            }
            if op < 2 {
                let vertex = rng.below(graph.vertices.len());
                let selector = digest(["a", "b"][rng.below(2)]);
                let content = Some(content(graph.contents[vertex], &selector));
                inputs.push(Need { vertex, selector, content });
            }
            let vertex = Vertex { digest: digest(&format!("op {op}")), inputs };
            if !graph.vertices.contains(&vertex) {
                let read = vertex.inputs.iter().fold(op, |sum, need| {
                    let selector = usize::from(need.selector == digest("a"));
                    sum * 5 + graph.contents[need.vertex] * 2 + selector
                });
                graph.contents.push(read % 4);
                graph.vertices.push(vertex);
            }
        }
        graph
    }

    /// Some of the steps, with all that they need.
    fn some(&self, rng: &mut Rng<'_>) -> Vec<bool> {
        let mut chosen: Vec<bool> = self.vertices.iter().map(|_| rng.below(4) > 0).collect();
        for (place, vertex) in self.vertices.iter().enumerate().rev() {
            if chosen[place] {
                vertex.inputs.iter().for_each(|need| chosen[need.vertex] = true);
            }
        }
        chosen
    }

    /// What builds of these steps export: each with all keys of its inputs.
    fn export(
        &self,
        chosen: &[bool],
        who: &str,
        first_time: u8,
        rng: &mut Rng<'_>,
        is_whole: bool,
    ) -> Cacheable {
        let mut cache = Cacheable::default();
        let (mut places, mut more) = (vec![None; chosen.len()], Vec::new());
        for (place, vertex) in self.vertices.iter().enumerate().filter(|(place, _)| chosen[*place]) {
            let mut inputs = Vec::new();
            for need in &vertex.inputs {
                let mut links = vec![(need.selector.clone(), places[need.vertex].unwrap())];
                if let Some(content) = &need.content {
                    links.push((String::new(), cache.source(content)));
                }
                inputs.push(links);
            }
            let time = first_time + u8::try_from(place).unwrap();
            let has_result = is_whole || !rng.one_in(4);
            let result = has_result.then(|| (format!("{who} {place}"), time));
            if inputs.is_empty() {
                let source = cache.source(&vertex.digest);
                cache.results[source] = result;
                places[place] = Some(source);
                continue;
            }
            let known = cache.known(&vertex.digest, &inputs);
            if known.is_none() && !is_whole && rng.one_in(4) {
                // A build that found it by one key alone.
                let fast: Inputs = inputs.iter().map(|links| links[..1].to_vec()).collect();
                if fast != inputs {
                    more.push((vertex.digest.clone(), fast, result.clone()));
                }
            }
            places[place] = Some(match known {
                Some(known) => {
                    for (input, mut more) in inputs.into_iter().enumerate() {
                        more.retain(|(_, from)| !cache.needs(*from, known));
                        cache.records[known].1[input].extend(more);
                    }
                    known
                }
                None => cache.add(vertex.digest.clone(), inputs, result),
            });
        }
        for (digest, inputs, result) in more {
            cache.add(digest, inputs, result);
        }
        cache
    }
}

type Inputs = Vec<Vec<(String, usize)>>;

/// A cache in the making.
#[derive(Debug, Clone, Default)]
struct Cacheable {
    records: Vec<(String, Inputs)>,
    results: Vec<Option<(String, u8)>>,
}

impl Cacheable {
    fn add(&mut self, digest: String, inputs: Inputs, result: Option<(String, u8)>) -> usize {
        self.records.push((digest, inputs));
        self.results.push(result);
        self.records.len() - 1
    }

    /// The record that a build would have found, and to whose keys it adds its own.
    fn known(&self, digest: &str, inputs: &Inputs) -> Option<usize> {
        self.records.iter().position(|(known, theirs)| {
            let shares = |(ours, theirs): (&Vec<_>, &Vec<_>)| ours.iter().any(|link| theirs.contains(link));
            known == digest && theirs.len() == inputs.len() && inputs.iter().zip(theirs).all(shares)
        })
    }

    fn needs(&self, record: usize, other: usize) -> bool {
        let inputs = &self.records[record].1;
        record == other || inputs.iter().flatten().any(|(_, from)| self.needs(*from, other))
    }

    fn source(&mut self, digest: &str) -> usize {
        let known = self.records.iter().position(|(known, inputs)| known == digest && inputs.is_empty());
        known.unwrap_or_else(|| self.add(digest.to_owned(), Vec::new(), None))
    }

    fn cache(&self) -> Cache {
        let mut config = Config::default();
        let mut descriptors = Vec::new();
        for ((digest, inputs), result) in self.records.iter().zip(&self.results) {
            let mut results = Vec::new();
            if let Some((blob, time)) = result {
                let blob = Digest::of(blob.as_bytes());
                descriptors.push(described(&blob, 1));
                config.layers.push(Layer { blob, parent: NO_PARENT, extra: Extra::new() });
                let layer = i64::try_from(config.layers.len()).unwrap() - 1;
                let created_at = moment(*time);
                results.push(LayerResult { layer, created_at, probation: None, extra: Extra::new() });
            }
            let link = |(selector, record): &(String, usize)| Input {
                selector: selector.clone(),
                link: i64::try_from(*record).unwrap(),
                extra: Extra::new(),
            };
            config.records.push(Record {
                digest: digest.clone(),
                inputs: inputs.iter().map(|links| links.iter().map(link).collect()).collect(),
                results,
                chains: Vec::new(),
                used: None,
                probation: None,
                extra: Extra::new(),
            });
        }
        Export { config, descriptors }.cache()
    }

    /// Adds records that are made to be taken for others.
    fn forge(&mut self, graph: &Graph, rng: &mut Rng<'_>) {
        let selectors = ["", &digest("a"), &digest("b")].map(str::to_owned);
        for contents in 0..4 {
            if rng.one_in(2) {
                self.source(&content(contents, &selectors[1 + rng.below(2)]));
            }
        }
        for number in 0..=rng.below(6) {
            let op = rng.below(4);
            let count = match rng.below(6) {
                0 => 0,
                1 => 3,
                _ => 1 + usize::from(op == 1),
            };
            let mut inputs = Vec::new();
            for _ in 0..count {
                let mut links = Vec::new();
                for _ in 0..=rng.below(3) {
                    links.push((selectors[rng.below(3)].clone(), rng.below(self.records.len())));
                }
                inputs.push(links);
            }
            let place = rng.below(graph.vertices.len());
            let digest =
                if count == 0 { graph.vertices[place].digest.clone() } else { digest(&format!("op {op}")) };
            let result =
                (!rng.one_in(5)).then(|| (format!("evil {number}"), 200 + u8::try_from(number).unwrap()));
            if rng.one_in(3) && !self.records.is_empty() {
                // Some record of the cache once more, with an alternative more or less.
                let (digest, mut inputs) = self.records[rng.below(self.records.len())].clone();
                let more = (selectors[rng.below(3)].clone(), rng.below(self.records.len()));
                let which = rng.below(inputs.len().max(1));
                if let Some(links) = inputs.get_mut(which) {
                    if rng.one_in(2) && links.len() > 1 {
                        links.pop();
                    } else {
                        links.push(more);
                    }
                }
                self.add(digest, inputs, result);
            } else {
                self.add(digest, inputs, result);
            }
        }
    }
}

fn described(blob: &Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        digest: blob.clone(),
        size,
        annotations: BTreeMap::new(),
        extra: Extra::new(),
    }
}

fn imported(cache: &Cache, version: Version) -> Imported {
    Imported::of(&read(&written(cache)).0, version)
}

/// What builds find that have nothing but this cache: the content of what it has no result of they do not learn.
fn found(cache: &Imported, graph: &Graph, asks: Asks) -> Vec<Found> {
    cache.look_up(&graph.vertices, asks, |found, need| {
        let is_there = found[need.vertex].result.is_some();
        need.content.iter().filter(|_| is_there).cloned().collect()
    })
}

/// For what main's cache has an answer to, a build that is given another finds the same. What main has no
/// result of may have any files: those that a forger likes.
fn assert_answers_stay(main: &Cache, grown: &Cache, graph: &Graph) -> TestCaseResult {
    let selectors = ["a", "b"].map(digest);
    for version in VERSIONS {
        let (main, grown) = (imported(main, version), imported(grown, version));
        for asks in ASKS {
            let before = found(&main, graph, asks);
            let after = grown.look_up(&graph.vertices, asks, |found, need| {
                if before[need.vertex].result.is_some() {
                    need.content.iter().cloned().collect()
                } else if found[need.vertex].result.is_some() && need.content.is_some() {
                    selectors.iter().flat_map(|s| (0..4).map(|files| content(files, s))).collect()
                } else {
                    Vec::new()
                }
            });
            for (place, (before, after)) in before.iter().zip(&after).enumerate() {
                if before.result.is_some() {
                    prop_assert_eq!(&before.result, &after.result, "{:?} {:?} step {}", version, asks, place);
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_main_has_an_answer_to_it_answers_as_before(choices in vec(any::<u8>(), 0..200)) {
        let mut rng = Rng(choices.iter());
        let graph = Graph::any(&mut rng);
        let chosen = graph.some(&mut rng);
        let main = graph.export(&chosen, "main", 0, &mut rng, false);
        let mut foreign = main.clone();
        foreign.results.iter_mut().for_each(|result| *result = result.take().filter(|_| !rng.one_in(2)));
        foreign.forge(&graph, &mut rng);
        let (main, foreign) = (main.cache(), foreign.cache());
        let admitted = main.admit(&foreign);
        let grown = Cache::merge([&main, &admitted]);
        assert_answers_stay(&main, &grown, &graph)?;

        // All that main has stays, and no record of it gets a result.
        prop_assert!(grown.contains(&main));
        let config = |cache: &Cache| model(&read(&written(cache)).0);
        let after = config(&grown);
        for (name, results) in config(&main) {
            prop_assert_eq!(&after[&name], &results, "{}", name);
        }
        // Once more, it brings nothing.
        prop_assert!(Cache::merge([&grown, &grown.admit(&foreign)]) == grown);
        prop_assert!(Cache::merge([&main, &main.admit(&main)]) == main);
    }

    #[test]
    fn what_is_on_probation_gives_way_to_what_main_makes_itself(choices in vec(any::<u8>(), 0..200)) {
        let mut rng = Rng(choices.iter());
        let graph = Graph::any(&mut rng);
        let marks = ["a", "b"].map(|commit| Mark::new(Commit::new(commit.repeat(40)).unwrap(), moment(1)));
        let chosen = graph.some(&mut rng);
        let main = graph.export(&chosen, "main", 0, &mut rng, false);
        let mut forged = main.clone();
        forged.forge(&graph, &mut rng);
        let main = main.cache();
        let mut line = Cache::merge([&main, &main.admit(&forged.cache().on_probation(&marks[0]))]);
        prop_assert_eq!(&line.own(), &main);
        let branch = graph.export(&graph.some(&mut rng), "branch", 50, &mut rng, true).cache();
        line = Cache::merge([&line, &line.admit(&branch.on_probation(&marks[1]))]);
        prop_assert_eq!(&line.own(), &main);
        prop_assert_eq!(&Cache::merge([&line.own(), &line.on_probation_for(|_| true)]), &line);

        // Main's own build of steps of any of these: what came before it on probation does not change its answers.
        let own = graph.export(&graph.some(&mut rng), "main again", 100, &mut rng, true).cache();
        let own = Cache::merge([&line.own(), &own]);
        for stays in [vec![], vec![&marks[0]], vec![&marks[1]], vec![&marks[0], &marks[1]]] {
            let kept = own.admit(&line.on_probation_for(|mark| stays.contains(&mark)));
            let after = Cache::merge([&own, &kept]);
            prop_assert_eq!(&after.own(), &own);
            prop_assert!(after.probations().keys().all(|mark| stays.contains(&mark)));
            let evil = |blob: &Descriptor| (0..8).any(|n| blob.digest == Digest::of(format!("evil {n}").as_bytes()));
            prop_assert!(stays.contains(&&marks[0]) || !after.blobs().any(evil));
            assert_answers_stay(&own, &after, &graph)?;
        }
    }

    #[test]
    fn what_honest_branches_made_is_found_after_their_merges(choices in vec(any::<u8>(), 0..200)) {
        let mut rng = Rng(choices.iter());
        let graph = Graph::any(&mut rng);
        let chosen = graph.some(&mut rng);
        let main = graph.export(&chosen, "main", 0, &mut rng, true).cache();
        let mut grown = main;
        let mut all = chosen;
        for (branch, time) in [("one", 50), ("two", 100)] {
            let chosen = graph.some(&mut rng);
            let export = graph.export(&chosen, branch, time, &mut rng, true).cache();
            grown = Cache::merge([&grown, &grown.admit(&export)]);
            all.iter_mut().zip(chosen).for_each(|(all, chosen)| *all |= chosen);
        }
        for version in VERSIONS {
            let found = found(&imported(&grown, version), &graph, Asks::Late);
            for (place, found) in found.iter().enumerate().filter(|(place, _)| all[*place]) {
                prop_assert!(found.result.is_some(), "{:?} step {}", version, place);
            }
        }
    }
}

// What a forger could try, step by step: a stage that copies from another, in main and in a branch.

fn step(digest_of: &str, inputs: &[(usize, &str, Option<&str>)]) -> Vertex {
    let need = |&(vertex, selector, content): &(usize, &str, Option<&str>)| Need {
        vertex,
        selector: if selector.is_empty() { String::new() } else { digest(selector) },
        content: content.map(digest),
    };
    Vertex { digest: digest(digest_of), inputs: inputs.iter().map(need).collect() }
}

/// Two sources; a step that copies the same file from either, onto the first; and one that runs on the first copy.
fn steps() -> Graph {
    let vertices = vec![
        step("base", &[]),
        step("one", &[]),
        step("two", &[]),
        step("copy", &[(0, "", None), (1, "path", Some("file"))]),
        step("run", &[(3, "", None)]),
        step("copy", &[(0, "", None), (2, "path", Some("file"))]),
    ];
    Graph { vertices, contents: Vec::new() }
}

/// What main has of these: all but the second copy, which no build of its has asked for yet.
fn main_of_steps() -> Cacheable {
    let mut main = Cacheable::default();
    for (number, name) in ["base", "one", "two"].into_iter().enumerate() {
        main.add(digest(name), Vec::new(), Some((format!("main {name}"), u8::try_from(number).unwrap())));
    }
    let file = main.source(&digest("file"));
    let copied = vec![vec![(String::new(), 0)], vec![(digest("path"), 1), (String::new(), file)]];
    let copy = main.add(digest("copy"), copied, Some(("main copy".to_owned(), 4)));
    main.add(digest("run"), vec![vec![(String::new(), copy)]], Some(("main run".to_owned(), 5)));
    main
}

/// Whether a build that is given main's cache takes a forged result once a branch's has been merged into it:
/// as it is, and as far as main admits it.
fn is_forged(foreign: &Cacheable) -> (bool, bool) {
    let (main, foreign, graph) = (main_of_steps().cache(), foreign.cache(), steps());
    let is_forged = |brought: &Cache| {
        let grown = Cache::merge([&main, brought]);
        VERSIONS.iter().any(|version| {
            let found = found(&imported(&grown, *version), &graph, Asks::Late);
            assert!(found.iter().all(|found| found.result.is_some()), "main has an answer to all");
            found.iter().any(|found| found.result == Some(vec![Digest::of(b"evil")]))
        })
    };
    (is_forged(&foreign), is_forged(&main.admit(&foreign)))
}

fn evil() -> (String, u8) {
    ("evil".to_owned(), 99)
}

fn forged(digest_of: &str, inputs: Inputs) -> Cacheable {
    let mut foreign = main_of_steps();
    foreign.results.fill(None);
    foreign.source(&digest("junk"));
    foreign.add(digest(digest_of), inputs, Some(evil()));
    foreign
}

/// The places of the records of [`main_of_steps`], and of what a forger adds first.
const BASE: usize = 0;
const ONE_SOURCE: usize = 1;
const TWO_SOURCE: usize = 2;
const FILE: usize = 3;
const COPY: usize = 4;
const JUNK: usize = 6;

fn by(selector: &str, record: usize) -> (String, usize) {
    (if selector.is_empty() { String::new() } else { digest(selector) }, record)
}

#[test]
fn attack_one_alternative_more() {
    let foreign = forged("run", vec![vec![by("", COPY), by("", JUNK)]]);
    assert_eq!(is_forged(&foreign), (true, false));
    let file = vec![by("path", ONE_SOURCE), by("", FILE), by("", JUNK)];
    assert_eq!(is_forged(&forged("copy", vec![vec![by("", BASE)], file])), (true, false));
}

#[test]
fn attack_one_alternative_less() {
    for file in [by("path", ONE_SOURCE), by("", FILE)] {
        assert_eq!(is_forged(&forged("copy", vec![vec![by("", BASE)], vec![file]])), (true, false));
    }
}

#[test]
fn attack_one_input_more_or_less() {
    let more = forged("run", vec![vec![by("", COPY)], vec![by("", JUNK)]]);
    assert_eq!(is_forged(&more), (true, false));
    // BuildKit 0.25 makes one of it and main's.
    assert_eq!(is_forged(&forged("copy", vec![vec![by("", BASE)]])), (true, false));
}

#[test]
fn attack_a_source_and_a_content_with_results() {
    let mut foreign = main_of_steps();
    foreign.results.fill(None);
    foreign.results[TWO_SOURCE] = Some(evil());
    assert_eq!(is_forged(&foreign), (true, false));
    foreign.results[TWO_SOURCE] = None;
    foreign.results[FILE] = Some(evil());
    let main = main_of_steps().cache();
    assert!(Cache::merge([&main, &main.admit(&foreign.cache())]) == main);
}

/// The step's files are main's, but no build of main has copied them from there: it is found by their
/// content, and a key of the forger's would come first.
#[test]
fn attack_a_key_that_is_found_before_the_content() {
    let foreign = forged("copy", vec![vec![by("", BASE)], vec![by("path", TWO_SOURCE)]]);
    assert_eq!(is_forged(&foreign), (true, false));
    // Of a step whose content is new, that stays, and leads to it.
    let foreign = forged("copy", vec![vec![by("", BASE)], vec![by("path", TWO_SOURCE), by("", JUNK)]]);
    assert_eq!(is_forged(&foreign), (true, false));
    let (main, foreign) = (main_of_steps().cache(), foreign.cache());
    assert_eq!(main.admit(&foreign).newest(), foreign.newest());
}

/// The forger's records are no record of main's each, but lead through one another to one that is.
#[test]
fn attack_records_that_match_by_way_of_others() {
    let mut foreign = main_of_steps();
    foreign.results.fill(None);
    let junk = foreign.source(&digest("junk"));
    let copy = vec![vec![by("", BASE)], vec![by("path", ONE_SOURCE), by("", junk)]];
    let copy = foreign.add(digest("copy"), copy, None);
    foreign.add(digest("run"), vec![vec![by("", copy)]], Some(evil()));
    assert_eq!(is_forged(&foreign), (true, false));
}

#[test]
fn attack_digests_that_are_none() {
    let main = main_of_steps().cache();
    let mut foreign = main_of_steps();
    foreign.results.fill(None);
    let text = foreign.add("\u{1}\u{2}\u{3}".to_owned(), Vec::new(), Some(evil()));
    foreign.add(digest("new"), vec![vec![by("", text)]], Some(evil()));
    foreign.add(digest("newer"), vec![vec![("no digest".to_owned(), BASE)]], Some(evil()));
    assert!(Cache::merge([&main, &main.admit(&foreign.cache())]) == main);
    // What has another way to it keeps that.
    let links = vec![by("", BASE), by("", text), ("no digest".to_owned(), BASE)];
    foreign.add(digest("newest"), vec![links], Some(evil()));
    assert_eq!(main.admit(&foreign.cache()).records(), 1 + 1);
}

#[test]
fn attack_the_size_of_mains_own_blob() {
    let main = main_of_steps().cache();
    let own = Digest::of(b"main base");
    let mut foreign = main_of_steps();
    foreign.add(digest("new"), vec![vec![by("", BASE)]], Some(("main base".to_owned(), 9)));
    let mut foreign = foreign.cache();
    for blob in foreign.blobs.iter_mut().filter(|blob| blob.descriptor.digest == own) {
        blob.descriptor = std::sync::Arc::new(described(&own, 0));
    }
    let admitted = main.admit(&foreign);
    assert_eq!(admitted.blobs().map(|blob| blob.size).collect::<Vec<_>>(), [1]);
    let size = |cache: &Cache| cache.blobs().find(|blob| blob.digest == own).map(|blob| blob.size);
    assert_eq!(size(&Cache::merge([&main, &foreign])), Some(0), "which is how it was");
    assert_eq!(size(&Cache::merge([&main, &admitted])), Some(1));
}

/// BuildKit takes layers for the same that say that they unpack to the same, and unpacks one of them.
#[test]
fn attack_a_layer_that_claims_to_unpack_to_mains() {
    let unpacks = |cache: &mut Cache, name: &str, to: &str| {
        let digest = Digest::of(name.as_bytes());
        let blob = cache.blobs.iter_mut().find(|blob| blob.descriptor.digest == digest).unwrap();
        let annotations = BTreeMap::from([("containerd.io/uncompressed".to_owned(), to.to_owned())]);
        blob.descriptor = std::sync::Arc::new(Descriptor { annotations, ..described(&digest, 1) });
    };
    let mut main = main_of_steps().cache();
    unpacks(&mut main, "main base", "files");
    let mut foreign = main_of_steps();
    foreign.add(digest("new"), vec![vec![by("", BASE)]], Some(evil()));
    let mut foreign = foreign.cache();
    unpacks(&mut foreign, "evil", "other files");
    assert_eq!(main.admit(&foreign).blobs().len(), 1);
    unpacks(&mut foreign, "evil", "files");
    assert_eq!(main.admit(&foreign).blobs().len(), 0);
}

/// As many records as a config has room for, none of which can be told from others by what is rare.
#[test]
fn attack_comparisons_without_end() {
    let mut main = Cacheable::default();
    let sources: Vec<usize> = (0..300).map(|n| main.source(&digest(&format!("source {n}")))).collect();
    let mut foreign = main.clone();
    for n in 0..3000 {
        let (left, right) = (sources[n % 10], sources[10 + n % 280]);
        main.add(digest("op"), vec![vec![by("", left)], vec![by("", right)]], None);
        let every =
            |skipped: usize| sources.iter().filter(|n| **n % 7 != skipped).map(|n| by("", *n)).collect();
        if n < 300 {
            foreign.add(
                digest("op"),
                vec![every(n % 7), vec![by("", sources[290 + n % 10])], every(n % 5)],
                Some(evil()),
            );
        }
    }
    let (main, foreign) = (main.cache(), foreign.cache());
    let start = std::time::Instant::now();
    let grown = Cache::merge([&main, &main.admit(&foreign)]);
    assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(grown.contains(&main));
}

/// A branch and main have both made the same steps, one of them later.
#[test]
fn of_a_branch_and_main_a_build_finds_what_was_made_last() {
    let made = |who: &str, time: u8| {
        let mut cache = main_of_steps();
        for (name, at) in cache.results.iter_mut().flatten() {
            (*name, *at) = (name.replace("main", who), *at + time);
        }
        cache
    };
    for (of_branch, of_main, last) in [(50, 100, "main"), (100, 50, "branch")] {
        let (branch, main) = (made("branch", of_branch), made("main", of_main));
        let joined = Cache::merge([&branch.cache(), &main.cache()]).newest_results();
        let expected = if last == "main" { main } else { branch };
        let expected: Vec<Digest> =
            expected.results.iter().flatten().map(|(name, _)| Digest::of(name.as_bytes())).collect();
        for version in VERSIONS {
            for found in found(&imported(&joined, version), &steps(), Asks::Late) {
                let result = found.result.expect("both have it");
                assert!(result.iter().all(|blob| expected.contains(blob)), "{version:?} {last}: {result:?}");
            }
        }
    }
}

#[test]
fn a_real_branch_brings_all_that_it_made() {
    for (main, branch) in [(ONE.cache(), TWO.cache()), (TWO.cache(), ONE.cache())] {
        let grown = Cache::merge([&main, &main.admit(&branch)]);
        assert!(grown.contains(&branch));
        assert_eq!(grown, Cache::merge([&main, &branch]));
        assert_eq!(Cache::default().admit(&branch), branch);
    }
}

#[test]
fn attack_sizes_whose_sum_wraps() {
    let mut config = Config::default();
    let mut descriptors = Vec::new();
    for number in 0..2 {
        let blob = Digest::of(&[number]);
        descriptors.push(Descriptor { size: u64::MAX - 1, ..described(&blob, 1) });
        config.layers.push(Layer { blob, parent: NO_PARENT, extra: Extra::new() });
        let created_at = moment(number);
        let result = LayerResult { layer: number.into(), created_at, probation: None, extra: Extra::new() };
        config.records.push(Record {
            digest: digest(&format!("step {number}")),
            inputs: Vec::new(),
            results: vec![result],
            chains: Vec::new(),
            used: None,
            probation: None,
            extra: Extra::new(),
        });
    }
    let cache = Export { config, descriptors }.cache();
    assert_eq!((cache.blobs().len(), cache.blob_bytes()), (2, u64::MAX));
    let pruned = cache.prune(&Limits { bytes: Some(1 << 40), ..Limits::default() });
    assert_eq!(pruned.cache.blobs().len(), 0, "none of them fits");
}
