//! Properties of the planner on random worlds.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;

use super::forecast::goes_at;
use super::inventory::{Inventory, ManifestIndex, ManifestInfo, Shape};
use super::plan::{Action, DeletedLine, Plan, PlanInputs, plan};
use super::rule::Rule;
use crate::mounts;
use crate::names::{Branch, CacheRepository, Commit, Digest, Line, Tag, TagKind};
use crate::policy::{Policy, Project};
use crate::ports::ListedImage;
use crate::provenance::{Built, Provenance};
use crate::sources::GIVEN_FOR;
use buildkit_cache::CONFIG_MEDIA_TYPE;

const BLOBS: u32 = 12;

/// One image of a random inventory.
#[derive(Debug, Clone)]
struct Made {
    shape: Shape,
    /// Its blobs by number.
    blobs: BTreeSet<u32>,
    /// Tags: of which kind, in which of two scopes.
    tags: Vec<(u8, bool)>,
    /// Hours ago it was pushed, and last pulled.
    age: i64,
    pulled: Option<i64>,
    commit: u8,
    is_leased: bool,
    is_archived: bool,
    is_unread: bool,
    given: Option<i64>,
}

fn made() -> impl Strategy<Value = Made> {
    let shape = prop_oneof![8 => Just(Shape::Cache), 1 => Just(Shape::Mount), 1 => Just(Shape::Index),
        1 => Just(Shape::Other), 1 => Just(Shape::TooLarge)];
    let blobs = prop::collection::btree_set(0..BLOBS, 0..6);
    let tags = prop::collection::vec((0..10_u8, any::<bool>()), 0..3);
    let flags = (prop::bool::weighted(0.1), prop::bool::weighted(0.05), prop::bool::weighted(0.01));
    let times = (0..2000_i64, prop::option::of(0..2000_i64), prop::option::weighted(0.2, 0..500_i64));
    (shape, blobs, tags, flags, times, 0..4_u8).prop_map(
        |(shape, blobs, tags, (is_leased, is_archived, is_unread), (age, pulled, given), commit)| Made {
            shape,
            blobs,
            tags,
            age,
            pulled,
            commit,
            is_leased,
            is_archived,
            is_unread,
            given,
        },
    )
}

fn now() -> Timestamp {
    "2026-11-21T08:00:00Z".parse().unwrap()
}

fn hours_ago(hours: i64) -> Timestamp {
    now() - SignedDuration::from_hours(hours)
}

fn commit(number: u8) -> Commit {
    Commit::new(format!("{:040x}", u32::from(number) + 1)).unwrap()
}

fn project(keys: &str) -> Project {
    let text = format!(
        "version: 1\nprojects:\n  - name: app\n    repository: github.com/example/app\n    \
         targets: [{{ name: a }}, {{ name: b }}]\n    retention: {{ mode: apply{keys} }}\n"
    );
    Policy::parse("p", &text).unwrap().named_projects().remove(0)
}

fn branch(name: &str) -> Line {
    Line::Branch(Branch::new(name).unwrap())
}

/// An inventory as the planner sees it. The manifests are real ones, so that what they say is read as it would be.
fn observed(images: &[Made], project: &Project) -> (Inventory, PlanInputs) {
    let mut known = ManifestIndex::default();
    let mut listed: Vec<Arc<ListedImage>> = Vec::new();
    let (mut unread, mut taken) = (Vec::new(), HashSet::new());
    let mut plan_inputs = PlanInputs::default();
    for (number, made) in images.iter().enumerate() {
        let blob = |blob: &u32| {
            json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": 10_u64.pow(2 + blob % 5),
                "digest": Digest::of(format!("blob {blob}").as_bytes()) })
        };
        let layers: Vec<_> = made.blobs.iter().map(blob).collect();
        let child = listed.get(number / 2).map(|image| &image.digest);
        let line = if made.commit % 2 == 0 { branch("a") } else { branch("release/1") };
        let built =
            Built { at: hours_ago(made.age), commit: commit(made.commit), build: format!("app:{number}") };
        let annotations = Provenance { built: Some(built), ..Provenance::default() }.annotations(&line);
        let config = |kind: &str| json!({ "mediaType": kind, "digest": Digest::of(b"config"), "size": 2 });
        let manifest = match made.shape {
            Shape::Cache => {
                json!({ "config": config(CONFIG_MEDIA_TYPE), "layers": layers, "annotations": annotations,
                    "n": number })
            }
            Shape::Mount => {
                let id = BTreeMap::from([(mounts::ID.to_owned(), "cargo".to_owned())]);
                let annotations: BTreeMap<_, _> = annotations.into_iter().chain(id).collect();
                json!({ "config": config("application/vnd.oci.image.config.v1+json"), "layers": layers,
                        "annotations": annotations, "n": number })
            }
            Shape::Other | Shape::TooLarge => {
                json!({ "config": config("application/vnd.oci.image.config.v1+json"), "layers": layers, "n": number })
            }
            Shape::Index => {
                let children = child.map(|digest| json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 3 }));
                json!({ "manifests": children.into_iter().collect::<Vec<_>>(), "n": number })
            }
        };
        let manifest = manifest.to_string();
        let digest = Digest::of(manifest.as_bytes());
        let tags = made.tags.iter().filter_map(|(kind, second)| {
            let scope = &project.targets[usize::from(*second)].scope;
            let left = hours_ago(made.age / 2);
            let tag = match kind {
                0 => Tag::line(scope, &Line::Main).to_string(),
                1 => Tag::line(scope, &branch("a")).to_string(),
                2 => Tag::line(scope, &branch("release/1")).to_string(),
                3 => Tag::history(scope, &Line::Main, left, &digest).to_string(),
                4 => Tag::history(scope, &branch("a"), left, &digest).to_string(),
                5 => Tag::commit(scope, &commit(made.commit)).to_string(),
                6 => Tag::export(scope, &format!("e{number}")).to_string(),
                7 => format!("v1.{number}"),
                8 => Tag::given(scope, &format!("g{number}")).to_string(),
                _ => format!("other.export.e{number}"),
            };
            taken.insert(tag.clone()).then_some(tag)
        });
        let tags = tags.collect();
        if made.is_unread {
            unread.push((digest.clone(), "not there".to_owned()));
        } else if made.shape == Shape::TooLarge {
            known.learn_too_large(digest.clone());
        } else if !made.is_archived {
            known.learn(digest.clone(), manifest.as_bytes());
        }
        if made.is_leased {
            plan_inputs.leased.insert(digest.clone());
        }
        plan_inputs.given_at.extend(made.given.map(|hours| (digest.clone(), hours_ago(hours))));
        listed.push(Arc::new(ListedImage {
            digest,
            tags,
            pushed_at: hours_ago(made.age),
            bytes: 0,
            pulled_at: made.pulled.map(hours_ago),
            is_archived: made.is_archived,
        }));
    }
    let repository = CacheRepository::new("stoker/app").unwrap();
    (Inventory { repository, images: listed, known, unread }, plan_inputs)
}

fn deleted(plan: &Plan) -> HashSet<Digest> {
    plan.of(Action::Delete).map(|verdict| verdict.image.digest.clone()).collect()
}

/// The same inventory after the plan has been carried out.
fn after(mut inventory: Inventory, plan: &Plan) -> Inventory {
    let gone = deleted(plan);
    inventory.images.retain(|image| !gone.contains(&image.digest));
    inventory
}

/// Bytes of these images' blobs, each counted once, by hand.
fn bytes_of<'i>(inventory: &Inventory, images: impl Iterator<Item = &'i Arc<ListedImage>>) -> u64 {
    let facts = images.filter_map(|image| inventory.known.of(&image.digest));
    let blobs: BTreeSet<u32> = facts.flat_map(|facts| facts.blobs().iter().copied()).collect();
    blobs.into_iter().map(|blob| inventory.known.size(blob)).sum()
}

const POLICIES: [&str; 4] = [
    "",
    ", keep-at-least: 0, orphans: 1d, history: 1h, idle-branch: 2d",
    ", scope-budget: 1MB, orphans: none, keep-branches: [\"release/*\"]",
    ", repository-budget: 1MB, keep-at-least: 3, pinned: [v1.1]",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_must_stay_stays(images in prop::collection::vec(made(), 0..25), policy in 0..4_usize) {
        let project = project(POLICIES[policy]);
        let (inventory, plan_inputs) = observed(&images, &project);
        let plan = plan(&inventory, std::slice::from_ref(&project), &plan_inputs, now());
        prop_assert_eq!(plan.verdicts.len(), inventory.images.len(), "every image has a verdict");
        let gone = deleted(&plan);
        let kept_children: HashSet<&Digest> = inventory.images.iter()
            .filter(|image| !gone.contains(&image.digest))
            .filter_map(|image| inventory.known.of(&image.digest))
            .flat_map(ManifestInfo::children)
            .collect();
        for verdict in plan.of(Action::Delete) {
            let image = &verdict.image;
            let facts = inventory.known.of(&image.digest);
            prop_assert!(facts.is_some_and(|facts| facts.shape().is_ours()), "only what is known to be a cache \
                 or a mount");
            prop_assert!(!image.tags.iter().any(|tag| is_main(tag)), "never main");
            prop_assert!(!plan_inputs.leased.contains(&image.digest), "nothing that a running build holds");
            prop_assert!(!kept_children.contains(&image.digest), "no part of an index that stays");
            prop_assert!(image.tags.iter().all(|tag| Tag::parse(tag).is_some_and(|(scope,
                _)| project.has_scope(&scope))),
                "nothing that is not ours: {:?}", image.tags);
            prop_assert!(!image.is_archived);
            prop_assert!(!verdict.why().is_empty());
            let left_at = image.tags.iter().filter_map(|tag| match Tag::parse(tag)? {
                (_, TagKind::History { left_at, .. }) => Some(left_at),
                _ => None,
            }).max();
            let age = now().duration_since(left_at.unwrap_or(image.pushed_at));
            let is_join = image.tags.iter().any(|tag| matches!(Tag::parse(tag), Some((_, TagKind::Given(_)))));
            prop_assert!(age >= project.retention.lease, "a build may still read it: {age:?}");
            let age = now().duration_since(image.pushed_at);
            prop_assert!(!is_join || age >= project.retention.lease + GIVEN_FOR, "a build may be given it: {age:?}");
        }
        if !inventory.unread.is_empty() {
            prop_assert!(plan.deletions().is_empty() && plan.refused.is_some(), "an incomplete inventory \
                 deletes nothing");
        }
    }

    #[test]
    fn the_same_world_gives_the_same_plan(images in prop::collection::vec(made(), 0..20),
        policy in 0..4_usize, seed in any::<u64>()) {
        let project = project(POLICIES[policy]);
        let (inventory, plan_inputs) = observed(&images, &project);
        let first = plan(&inventory, std::slice::from_ref(&project), &plan_inputs, now());
        let mut shuffled = inventory.clone();
        let half = usize::try_from(seed % 20).unwrap() % shuffled.images.len().max(1);
        shuffled.images.rotate_left(half);
        let second = plan(&shuffled, std::slice::from_ref(&project), &plan_inputs, now());
        prop_assert_eq!(first, second);
    }

    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do(images in prop::collection::vec(made(), 0..20),
        policy in 0..4_usize) {
        let images: Vec<Made> = images.into_iter().map(|made| Made { is_unread: false, ..made }).collect();
        let project = project(POLICIES[policy]);
        let (inventory, plan_inputs) = observed(&images, &project);
        let first = plan(&inventory, std::slice::from_ref(&project), &plan_inputs, now());
        let left = after(inventory, &first);
        let second = plan(&left, std::slice::from_ref(&project), &plan_inputs, now());
        prop_assert!(deleted(&second).is_empty(), "{second}");
    }

    #[test]
    fn what_the_plan_says_of_later_comes(images in prop::collection::vec(made(), 1..12), policy in 0..4_usize) {
        let project = project(POLICIES[policy]);
        let projects = std::slice::from_ref(&project);
        let (inventory, plan_inputs) = observed(&images, &project);
        let action = |digest: &Digest, at: Timestamp| {
            let plan = plan(&inventory, projects, &plan_inputs, at);
            plan.verdicts.into_iter().find(|verdict| verdict.image.digest == *digest).unwrap().action
        };
        for image in &inventory.images {
            let is_kept = action(&image.digest, now()) == Action::Keep;
            match goes_at(&inventory, projects, &plan_inputs, now(), &image.digest) {
                Some((at, verdict)) => {
                    prop_assert!(is_kept && at > now() && verdict.action != Action::Keep);
                    prop_assert_eq!(action(&image.digest, at), verdict.action);
                    prop_assert_eq!(action(&image.digest, at - SignedDuration::from_millis(1)), Action::Keep);
                }
                None if is_kept => {
                    let later = now() + SignedDuration::from_hours(24 * 365 * 100);
                    prop_assert_eq!(action(&image.digest, later), Action::Keep);
                }
                None => {}
            }
        }
    }

    #[test]
    fn bytes_are_counted_once_and_budgets_hold(images in prop::collection::vec(made(), 0..25), policy in 0..4_usize) {
        let images: Vec<Made> = images.into_iter().map(|made| Made { is_unread: false, ..made }).collect();
        let project = project(POLICIES[policy]);
        let (inventory, plan_inputs) = observed(&images, &project);
        let plan = plan(&inventory, std::slice::from_ref(&project), &plan_inputs, now());
        prop_assert_eq!(plan.bytes, bytes_of(&inventory, inventory.images.iter()));
        let gone = deleted(&plan);
        let left = inventory.images.iter().filter(|image| !gone.contains(&image.digest));
        prop_assert_eq!(plan.bytes_after, bytes_of(&inventory, left.clone()));
        let freed: u64 = plan.verdicts.iter().map(|verdict| verdict.frees).sum();
        prop_assert_eq!(plan.bytes - plan.bytes_after, freed);
        if let Some(budget) = project.retention.repository_budget && plan.bytes_after > budget {
            prop_assert!(!plan.notes.is_empty(), "what cannot be met is said");
            let may_go = [Rule::Line, Rule::Head, Rule::History];
            for verdict in plan.of(Action::Keep).filter(|verdict| may_go.contains(&verdict.rule)) {
                let image = &verdict.image;
                let is_young = now().duration_since(image.pushed_at) <= project.retention.lease;
                prop_assert!(is_young || plan_inputs.leased.contains(&image.digest)
                    || inventory.known.of(&image.digest).is_none_or(|facts| !facts.shape().is_ours())
                    || kept_as_child(&inventory, &image.digest), "{:?} could have gone", verdict);
            }
        }
    }
}

fn is_main(tag: &str) -> bool {
    matches!(Tag::parse(tag), Some((_, TagKind::Line(line))) if line.is_main())
}

fn kept_as_child(inventory: &Inventory, digest: &Digest) -> bool {
    let facts = inventory.images.iter().filter_map(|image| inventory.known.of(&image.digest));
    facts.flat_map(ManifestInfo::children).any(|child| child == digest)
}

/// A small inventory by hand: of each rule one.
#[test]
fn every_rule_says_its_name() {
    let project = project(", keep-branches: [\"release/*\"], orphans: 7d");
    let scope = &project.targets[0].scope;
    let make = |tags: u8, age: i64, commit: u8| Made {
        shape: Shape::Cache,
        blobs: BTreeSet::from([0]),
        tags: vec![(tags, false)],
        age,
        pulled: None,
        commit,
        is_leased: false,
        is_archived: false,
        is_unread: false,
        given: None,
    };
    let untagged = Made { tags: Vec::new(), ..make(0, 300, 0) };
    let foreign = Made { shape: Shape::Other, ..make(6, 300, 0) };
    let images = [
        make(0, 1000, 0),
        make(1, 1000, 2),
        make(2, 1000, 1),
        make(3, 200, 0),
        make(5, 100, 3),
        make(6, 100, 0),
        make(7, 100, 0),
        make(8, 40, 0),
        make(8, 50, 0),
        untagged,
        foreign,
    ];
    let (inventory, mut plan_inputs) = observed(&images, &project);
    let rules = |plan_inputs: &PlanInputs| -> BTreeMap<String, (Action, Rule)> {
        let plan = plan(&inventory, std::slice::from_ref(&project), plan_inputs, now());
        let named = plan.verdicts.into_iter().map(|verdict| {
            let tag = verdict.image.tags.first().cloned().unwrap_or_else(|| "untagged".to_owned());
            (
                tag.split_once('.').map_or(tag.clone(), |(_, rest)| rest.to_owned()),
                (verdict.action, verdict.rule),
            )
        });
        named.collect()
    };
    let said = rules(&plan_inputs);
    let of = |start: &str| said.iter().find(|(tag, _)| tag.starts_with(start)).unwrap().1;
    assert_eq!(*of("main"), (Action::Keep, Rule::Main));
    assert_eq!(*of("branch.a"), (Action::Delete, Rule::IdleBranch));
    assert_eq!(*of("branch.release"), (Action::Keep, Rule::KeepBranches));
    assert_eq!(*of("history.main"), (Action::Keep, Rule::KeepAtLeast));
    assert_eq!(*of("commit."), (Action::Delete, Rule::OldCommit));
    assert_eq!(*of("export.e5"), (Action::Delete, Rule::AbandonedExport));
    assert_eq!(*of("export.e10"), (Action::Keep, Rule::NotCache));
    assert_eq!(*of("given.g7"), (Action::Keep, Rule::Lease), "it may have been given to a build an hour ago");
    assert_eq!(*of("given.g8"), (Action::Delete, Rule::OldGiven));
    assert_eq!(*of("untagged"), (Action::Delete, Rule::Orphan));
    plan_inputs.deleted_lines.push(DeletedLine {
        scope: scope.clone(),
        line: branch("release/1").key(),
        at: now(),
    });
    let said = rules(&plan_inputs);
    let verdict = said.iter().find(|(tag, _)| tag.starts_with("branch.release")).unwrap().1;
    assert_eq!(*verdict, (Action::Delete, Rule::DeletedLine), "a release line goes with its branch");
}
