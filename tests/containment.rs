//! One pusher never stops the others: the worst that builds can export, handled by as many lines at once as there are, in the
//! memory of a function. A process of its own, as memory is that of all tests in one.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fmt::Write as _;
use std::fs;

use bytes::Bytes;
use serde_json::json;
use stoker::cache::{CONFIG_MEDIA_TYPE, IMPORT_LIMIT, MANIFEST_MEDIA_TYPE};
use stoker::names::Digest;
use stoker::policy::Policy;
use stoker::ports::BuildStatus;
use stoker::promote::{Hint, promote};
use stories::world::{ISOLATED, World};

/// As many lines as are moved at once.
const LINES: usize = 12;
/// What they may take together in KiB, beside what a function has when it starts: there are functions of 128 MiB.
const MOST: u64 = 100 * 1024;

/// Memory of this process now, or the most that it had, in KiB.
fn memory(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// As many entries as fit, between a start and an end; `salt` makes the config another's.
fn filled(start: &str, entry: impl Fn(usize) -> String, end: &str) -> String {
    let mut config = start.to_owned();
    for n in 0.. {
        let next = entry(n);
        if config.len() + next.len() + end.len() + 1 > IMPORT_LIMIT {
            break;
        }
        config.push_str(&next);
        config.push(',');
    }
    config.pop();
    config.push_str(end);
    config
}

fn digest(salt: usize, n: usize) -> Digest {
    Digest::of(&[salt.to_le_bytes(), n.to_le_bytes()].concat())
}

/// Configs of just below a mebibyte.
fn worst(kind: &str, salt: usize) -> String {
    match kind {
        "tiny records" => filled("{\"records\":[", |n| format!("{{\"digest\":\"{salt}-{n}\"}}"), "]}"),
        "zeros" => filled(&format!("{{\"x\":[{salt},"), |_| "0".to_owned(), "]}"),
        "deep" => filled(
            &format!("{{\"records\":[{{\"digest\":\"{}\"}},", digest(salt, 0)),
            |n| format!("{{\"digest\":\"{}\",\"inputs\":[[{{\"link\":{n}}}]]}}", digest(salt, n + 1)),
            "]}",
        ),
        _ => panic!("{kind}?"),
    }
}

const KINDS: [&str; 3] = ["tiny records", "zeros", "deep"];

/// A manifest of just below a mebibyte around a config.
fn manifest_of(config: &str, salt: usize) -> Bytes {
    let mut layers = String::new();
    for n in 0.. {
        let digest = digest(salt + 1, n);
        let layer = format!(
            "{{\"mediaType\":\"x\",\"digest\":\"{digest}\",\"size\":1,\"annotations\":{{\"a\":\"{}\"}}}},",
            "y".repeat(180)
        );
        if layers.len() + layer.len() > IMPORT_LIMIT - 2000 {
            break;
        }
        write!(layers, "{layer}").unwrap();
    }
    layers.pop();
    let described = json!({"mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(config.as_bytes()), "size": config.len()});
    let text = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST_MEDIA_TYPE}\",\"config\":{described},\"layers\":[{layers}]}}"
    );
    Bytes::from(text)
}

#[tokio::test]
async fn attack_as_many_lines_at_once_as_there_are_of_the_worst_caches() {
    let mut world = World::with_policy(ISOLATED);
    let policy = Policy::parse("the test's policy", ISOLATED).unwrap();
    world.account.yields.set(true);
    for round in 0..2 {
        for (number, kind) in KINDS.into_iter().enumerate() {
            let mut hints = Vec::new();
            for line in 0..LINES {
                let salt = (round * KINDS.len() + number) * LINES + line;
                let versions = [u32::try_from(salt).unwrap() + 10, 1, 1, 1];
                let head = world.commit(versions);
                world.push(&format!("evil-{line}"), &[&head]).await;
                world.settle_starts().await;
                let build = world.running().pop().expect("the branch's build");
                let config = worst(kind, salt);
                assert!(config.len() <= IMPORT_LIMIT, "{kind}: {}", config.len());
                let manifest = manifest_of(&config, salt);
                let tag = world.told(&build, "STOKER_EXPORT");
                world.account.push(
                    &world.builds_repository(),
                    &tag,
                    MANIFEST_MEDIA_TYPE,
                    manifest,
                    vec![Bytes::from(config)],
                );
                world.end_all(BuildStatus::Succeeded);
                for known in world.account.builds.borrow_mut().iter_mut().filter(|known| known.id == build.id)
                {
                    known.resolved_commit = Some(head.to_string());
                }
                hints.push(Hint::Built { build: build.id });
            }
            let before = memory("VmRSS");
            fs::write("/proc/self/clear_refs", "5").unwrap();
            let begun = std::time::Instant::now();
            let promoted = promote(&world.account, &policy, &hints, world.account.now());
            let promoted = world.account.invoke("promote-cache", Some("PromotionQueue"), promoted).await;
            let answers = promoted.expect("nobody kills it");
            let took = memory("VmHWM").saturating_sub(before);
            println!("{round} {kind}: {} MiB, {:?} {:?}", took / 1024, begun.elapsed(), answers[0]);
            assert!(took < MOST, "{kind}: {took} KiB");
        }
    }
}
