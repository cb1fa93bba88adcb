//! One pusher never stops the others: the worst that builds can export, handled by as many lines at once as
//! there are, in the memory of a function. A process of its own, as memory is that of all tests in one.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;

use buildkit_cache::{IMPORT_LIMIT, MANIFEST_MEDIA_TYPE};
use bytes::Bytes;
use scenarios::environment::{ISOLATED, TestEnvironment};
use scenarios::worst::{KINDS, manifest_of, worst};
use stoker_core::policy::Policy;
use stoker_core::ports::BuildStatus;
use stoker_core::promote::{PromotionTrigger, promote};

/// As many lines as are updated at once.
const LINES: usize = 12;
/// What they may take together in KiB, beside what a function has when it starts: there are functions of 128 MiB.
const MOST: u64 = 100 * 1024;

/// Memory of this process now, or the most that it had, in KiB.
fn memory(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn attack_as_many_lines_at_once_as_there_are_of_the_worst_caches() {
    let mut env = TestEnvironment::with_policy(ISOLATED);
    let policy = Policy::parse("the test's policy", ISOLATED).unwrap();
    env.account.yields.set(true);
    for round in 0..2 {
        for (number, kind) in KINDS.into_iter().enumerate() {
            let mut triggers = Vec::new();
            for line in 0..LINES {
                let salt = (round * KINDS.len() + number) * LINES + line;
                let versions = [u32::try_from(salt).unwrap() + 10, 1, 1, 1];
                let head = env.commit(versions);
                env.push(&format!("evil-{line}"), &[&head]).await;
                env.settle_starts().await;
                let build = env.running().pop().expect("the branch's build");
                let config = worst(kind, salt);
                assert!(config.len() <= IMPORT_LIMIT, "{kind}: {}", config.len());
                let manifest = manifest_of(&config, salt);
                let tag = env.reported(&build, "STOKER_EXPORT");
                env.account.push(
                    &env.builds_repository(),
                    &tag,
                    MANIFEST_MEDIA_TYPE,
                    manifest,
                    vec![Bytes::from(config)],
                );
                env.end_all(BuildStatus::Succeeded);
                for known in env.account.builds.borrow_mut().iter_mut().filter(|known| known.id == build.id) {
                    known.resolved_commit = Some(head.to_string());
                }
                triggers.push(PromotionTrigger::Built { build: build.id });
            }
            let before = memory("VmRSS");
            fs::write("/proc/self/clear_refs", "5").unwrap();
            let started = std::time::Instant::now();
            let promoted = promote(&env.account, &policy, &triggers, env.account.now());
            let promoted = env.account.invoke("promote-cache", Some("PromotionQueue"), promoted).await;
            let answers = promoted.expect("nobody kills it");
            let took = memory("VmHWM").saturating_sub(before);
            println!("{round} {kind}: {} MiB, {:?} {:?}", took / 1024, started.elapsed(), answers[0]);
            assert!(took < MOST, "{kind}: {took} KiB");
        }
    }
}
