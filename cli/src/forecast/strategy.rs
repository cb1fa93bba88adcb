//! The ways in which people keep caches, as far as they decide which steps run.

use std::collections::{BTreeMap, HashMap};

use buildkit_cache::SAFE_SIZE;
use dockerfile_keys::Key;
use serde::Serialize;
use stoker_core::build_inputs::MAX_SOURCES;
use stoker_core::names::{Commit, Line, Scope, Tag};
use stoker_core::request::Wanted;

use super::history::Push;

/// What one step takes of a cache's config or manifest, whichever takes more: a record with its inputs and its result,
/// or a layer's descriptor with annotations.
const BYTES_OF_A_STEP: usize = 330;
/// GitHub deletes what nobody has read for so many seconds.
const GITHUB_KEEPS: i64 = 7 * 86_400;

/// A way to keep caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Strategy {
    /// Every build runs every step.
    NoCache,
    /// All builds read and overwrite one cache.
    SharedTag,
    /// A build reads its branch's cache and main's, and overwrites its own.
    TagPerBranch,
    /// The caches of GitHub Actions: a branch's own, or else main's; gone when nobody reads them for a week.
    GithubScopes,
    /// Lines that keep what was built before, and merges that promote.
    Stoker,
    /// One builder, which keeps all that it ever made.
    LocalDisk,
}

impl Strategy {
    pub(super) const ALL: [Self; 6] = [
        Self::NoCache,
        Self::SharedTag,
        Self::TagPerBranch,
        Self::GithubScopes,
        Self::Stoker,
        Self::LocalDisk,
    ];

    /// What people call it.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::NoCache => "no cache",
            Self::SharedTag => "one shared tag",
            Self::TagPerBranch => "a tag per branch, and main",
            Self::GithubScopes => "GitHub's scopes",
            Self::Stoker => "Stoker",
            Self::LocalDisk => "a disk without limit",
        }
    }
}

/// Steps that a cache holds, each with the number of the build that used it last.
#[derive(Debug, Clone, Default)]
struct Cache {
    steps: HashMap<Key, usize>,
    /// When it was read or written last.
    used: i64,
}

/// The caches of one strategy.
pub(super) struct Caches {
    strategy: Strategy,
    scope: Scope,
    by_tag: BTreeMap<String, Cache>,
    builds: usize,
}

/// The tags of the caches that a build is given.
pub(super) struct Given(Vec<String>);

impl Caches {
    pub(super) fn new(strategy: Strategy, scope: Scope) -> Self {
        Self { strategy, scope, by_tag: BTreeMap::new(), builds: 0 }
    }

    /// What a build of a push is given. A merge is handled before the build that it starts.
    pub(super) fn given(&mut self, push: &Push) -> Given {
        let own = push.line.to_string();
        let tags = match self.strategy {
            Strategy::NoCache => Vec::new(),
            Strategy::SharedTag | Strategy::LocalDisk => vec![ONE.to_owned()],
            Strategy::TagPerBranch => vec![own, Line::Main.to_string()],
            Strategy::GithubScopes => {
                self.by_tag.retain(|_, cache| push.time - cache.used < GITHUB_KEEPS);
                let found =
                    [own, Line::Main.to_string()].into_iter().find(|tag| self.by_tag.contains_key(tag));
                found.into_iter().collect()
            }
            Strategy::Stoker => {
                self.promote(push);
                let wanted = wanted(push);
                let tags = wanted.tags(&self.scope).into_iter().map(|(_, tag)| tag.as_str().to_owned());
                tags.filter(|tag| self.by_tag.contains_key(tag)).take(MAX_SOURCES).collect()
            }
        };
        for tag in &tags {
            if let Some(cache) = self.by_tag.get_mut(tag) {
                cache.used = push.time;
            }
        }
        Given(tags)
    }

    /// Whether a build finds a step in what it is given.
    pub(super) fn has(&self, given: &Given, key: &Key) -> bool {
        given.0.iter().filter_map(|tag| self.by_tag.get(tag)).any(|cache| cache.steps.contains_key(key))
    }

    /// A build has ended, and exports the steps that it needed.
    pub(super) fn built(&mut self, push: &Push, keys: impl Iterator<Item = Key> + Clone) {
        self.builds += 1;
        let number = self.builds;
        let steps = keys.map(|key| (key, number));
        match self.strategy {
            Strategy::NoCache => {}
            Strategy::SharedTag => self.put(ONE.to_owned(), steps.collect(), push.time),
            Strategy::TagPerBranch | Strategy::GithubScopes => {
                self.put(push.line.to_string(), steps.collect(), push.time);
            }
            Strategy::LocalDisk => self.add(ONE.to_owned(), steps, push.time),
            Strategy::Stoker => {
                let line = Tag::line(&self.scope, &push.line).as_str().to_owned();
                self.add(line.clone(), steps.clone(), push.time);
                if let Some(cache) = self.by_tag.get_mut(&line) {
                    prune(cache);
                }
                let commit = commit_tag(&self.scope, &push.commit);
                self.put(commit, steps.collect(), push.time);
            }
        }
    }

    /// A merge brings main what the builds of the merged commits exported.
    fn promote(&mut self, push: &Push) {
        let main = Tag::line(&self.scope, &Line::Main).as_str().to_owned();
        for commit in &push.merged {
            let Some(cache) = self.by_tag.get(&commit_tag(&self.scope, commit)) else { continue };
            let steps = cache.steps.clone();
            let known = self.by_tag.entry(main.clone()).or_default();
            for (key, used) in steps {
                known.steps.entry(key).or_insert(used);
            }
            prune(known);
        }
    }

    fn put(&mut self, tag: String, steps: HashMap<Key, usize>, time: i64) {
        self.by_tag.insert(tag, Cache { steps, used: time });
    }

    fn add(&mut self, tag: String, steps: impl Iterator<Item = (Key, usize)>, time: i64) {
        let cache = self.by_tag.entry(tag).or_default();
        cache.steps.extend(steps);
        cache.used = time;
    }
}

const ONE: &str = "cache";
/// What Stoker looks for when it starts a build of a push.
fn wanted(push: &Push) -> Wanted {
    let merged = push.merged.iter().filter_map(|commit| Commit::new(commit).ok()).collect();
    Wanted { line: push.line.clone(), base: None, merged }
}

fn commit_tag(scope: &Scope, commit: &str) -> String {
    Commit::new(commit)
        .map_or_else(|_| commit.to_owned(), |commit| Tag::commit(scope, &commit).as_str().to_owned())
}

/// Drops the steps that were used longest ago, where there are more than BuildKit imports.
fn prune(cache: &mut Cache) {
    let most = SAFE_SIZE / BYTES_OF_A_STEP;
    if cache.steps.len() <= most {
        return;
    }
    let mut used: Vec<usize> = cache.steps.values().copied().collect();
    // A build's steps go or stay together, as those that rest on others are useless without them.
    let (_, oldest, _) = used.select_nth_unstable_by(most, |a, b| b.cmp(a));
    let oldest = *oldest;
    cache.steps.retain(|_, used| *used > oldest);
}

#[cfg(test)]
mod tests {
    use buildkit_cache::{Kind, classify};
    use serde_json::json;
    use stoker_core::names::{Branch, Digest, ProjectName};

    use super::super::history::Content;
    use super::*;

    const DAY: i64 = 86_400;

    fn commit(number: u8) -> String {
        format!("{number:02x}").repeat(20)
    }

    fn push(line: &str, number: u8, time: i64, merged: &[u8]) -> Push {
        let line = if line == "main" { Line::Main } else { Line::Branch(Branch::new(line).unwrap()) };
        let merged = merged.iter().map(|number| commit(*number)).collect();
        Push { commit: commit(number), content: Content::Tree([0; 32]), time, line, merged }
    }

    /// Builds these pushes, each of which needs these steps; and says how many of them each has to run.
    fn runs(strategy: Strategy, pushes: &[(Push, &[u8])]) -> Vec<usize> {
        let scope = Scope::of(&ProjectName::new("app").unwrap());
        let mut caches = Caches::new(strategy, scope);
        let keys = |steps: &[u8]| steps.iter().map(|step| Key::from([*step; 32])).collect::<Vec<_>>();
        pushes
            .iter()
            .map(|(push, steps)| {
                let given = caches.given(push);
                let missed = keys(steps).iter().filter(|key| !caches.has(&given, key)).count();
                caches.built(push, keys(steps).into_iter());
                missed
            })
            .collect()
    }

    #[test]
    fn each_strategy_finds_what_it_keeps() {
        // Main; a branch that adds steps 3 and 4; a second that adds 5; the merge of the first; its revert.
        let pushes: [(Push, &[u8]); 5] = [
            (push("main", 1, 0, &[]), &[1, 2]),
            (push("a", 2, 10, &[]), &[1, 3, 4]),
            (push("b", 3, 20, &[]), &[1, 5]),
            (push("main", 4, 30, &[2]), &[1, 3, 4]),
            (push("main", 5, 40, &[]), &[1, 2]),
        ];
        for (strategy, expected) in [
            (Strategy::NoCache, [2, 3, 2, 3, 2]),
            (Strategy::SharedTag, [2, 2, 1, 2, 1]),
            (Strategy::TagPerBranch, [2, 2, 1, 2, 1]),
            (Strategy::GithubScopes, [2, 2, 1, 2, 1]),
            (Strategy::Stoker, [2, 2, 1, 0, 0]),
            (Strategy::LocalDisk, [2, 2, 1, 0, 0]),
        ] {
            assert_eq!(runs(strategy, &pushes), expected, "{strategy:?}");
        }
    }

    #[test]
    fn one_tag_serves_the_branch_that_was_just_merged_and_a_tag_each_does_not() {
        let pushes: [(Push, &[u8]); 3] = [
            (push("main", 1, 0, &[]), &[1]),
            (push("a", 2, 10, &[]), &[2]),
            (push("main", 3, 20, &[2]), &[2]),
        ];
        assert_eq!(runs(Strategy::SharedTag, &pushes), [1, 1, 0]);
        assert_eq!(runs(Strategy::TagPerBranch, &pushes), [1, 1, 1]);
    }

    #[test]
    fn a_branch_does_not_see_another_s_steps_before_they_are_merged() {
        let pushes: [(Push, &[u8]); 4] = [
            (push("main", 1, 0, &[]), &[1]),
            (push("a", 2, 10, &[]), &[2]),
            (push("b", 3, 20, &[]), &[2]),
            (push("a", 4, 30, &[]), &[2]),
        ];
        assert_eq!(runs(Strategy::Stoker, &pushes), [1, 1, 1, 0]);
        assert_eq!(runs(Strategy::LocalDisk, &pushes), [1, 1, 0, 0]);
    }

    #[test]
    fn github_deletes_what_nobody_has_read_for_a_week() {
        let week: [(Push, &[u8]); 3] = [
            (push("main", 1, 0, &[]), &[1]),
            (push("main", 2, 6 * DAY, &[]), &[1]),
            (push("main", 3, 14 * DAY, &[]), &[1]),
        ];
        assert_eq!(runs(Strategy::GithubScopes, &week), [1, 0, 1]);
        assert_eq!(runs(Strategy::TagPerBranch, &week), [1, 0, 0]);
    }

    #[test]
    fn a_line_keeps_what_was_used_last_within_what_buildkit_imports() {
        let mut cache = Cache::default();
        let most = SAFE_SIZE / BYTES_OF_A_STEP;
        for step in 0..most + 10 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&(step as u64).to_le_bytes());
            cache.steps.insert(Key::from(key), step / 20);
        }
        prune(&mut cache);
        assert!(cache.steps.len() <= most && cache.steps.len() > most - 40, "{}", cache.steps.len());
        assert!(cache.steps.values().all(|used| *used >= 1));
    }

    /// A cache as a build of these steps exports it, each step made from the one before.
    fn exported(steps: &[u8]) -> buildkit_cache::Cache {
        let digest = |step: &u8| Digest::from_bytes([*step; 32]).to_string();
        let record = |(at, step): (usize, &u8)| {
            let inputs = if at == 0 { json!([]) } else { json!([[{"link": at - 1}]]) };
            let made = json!([{"layer": at, "createdAt": "2026-01-01T00:00:00Z"}]);
            json!({"digest": digest(step), "inputs": inputs, "layers": made})
        };
        let parent = |at: usize| at.checked_sub(1).map_or_else(|| json!(-1), |below| json!(below));
        let layer = |(at, step): (usize, &u8)| json!({"blob": digest(step), "parent": parent(at)});
        let records: Vec<_> = steps.iter().enumerate().map(record).collect();
        let layers: Vec<_> = steps.iter().enumerate().map(layer).collect();
        let config = json!({"records": records, "layers": layers}).to_string().into_bytes();
        let blob = |step: &u8| {
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            json!({"mediaType": media_type, "digest": digest(step), "size": 1})
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.buildkit.cacheconfig.v0",
                "digest": Digest::of(&config).to_string(),
                "size": config.len(),
            },
            "layers": steps.iter().map(blob).collect::<Vec<_>>(),
        });
        let Kind::Cache(manifest) = classify(manifest.to_string().as_bytes()) else { panic!("no cache") };
        buildkit_cache::Cache::parse(&manifest, &config).unwrap()
    }

    /// How many of a build's steps no record of a cache stands for.
    fn missing(cache: &buildkit_cache::Cache, steps: &[u8]) -> usize {
        let config = String::from_utf8(cache.serialise(BTreeMap::new()).config).unwrap();
        let is_in = |step: &u8| config.contains(&Digest::from_bytes([*step; 32]).to_string());
        steps.iter().filter(|step| !is_in(step)).count()
    }

    /// The forecast's lines hold what the lines hold that promotion makes with the algebra of caches.
    #[test]
    fn lines_hold_what_promotion_makes_of_them() {
        let mut random = 7_u32;
        let mut next = move |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) % below
        };
        for _ in 0..30 {
            let mut pushes: Vec<(Push, Vec<u8>)> = Vec::new();
            let (mut main, mut branches) = (buildkit_cache::Cache::default(), BTreeMap::new());
            let mut expected = Vec::new();
            for number in 1..13_u8 {
                // A step is known by all before it: its number says what it is and what it rests on.
                let (first, second) = (u8::try_from(next(2)).unwrap(), u8::try_from(next(3)).unwrap());
                let steps = vec![1, 10 + first, 20 + first * 3 + second];
                let branch = ["main", "a", "b"][next(3) as usize];
                let others =
                    pushes.iter().filter(|(push, _)| !push.is_to_main()).map(|(push, _)| push.commit.clone());
                let others: Vec<String> = others.collect();
                let mut push = push(branch, number, i64::from(number), &[]);
                if branch == "main" {
                    push.merged = others.iter().rev().take(next(2) as usize).cloned().collect();
                    for merged in &push.merged {
                        let (_, steps) = pushes.iter().find(|(push, _)| push.commit == *merged).unwrap();
                        main = buildkit_cache::Cache::merge([&main, &main.admit(&exported(steps))]);
                    }
                    expected.push(missing(&main, &steps));
                    main = buildkit_cache::Cache::merge([&main, &exported(&steps)]);
                } else {
                    let line: &mut buildkit_cache::Cache = branches.entry(branch).or_default();
                    expected.push(missing(&buildkit_cache::Cache::merge([&*line, &main]), &steps));
                    *line = buildkit_cache::Cache::merge([&*line, &exported(&steps)]);
                }
                pushes.push((push, steps));
            }
            let built: Vec<(Push, &[u8])> =
                pushes.iter().map(|(push, s)| (push.clone(), s.as_slice())).collect();
            assert_eq!(runs(Strategy::Stoker, &built), expected);
        }
    }
}
