//! Retention by hand: what is planned, done and explained.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::aws::{Account, Image, TestEnvironment, build, cache, days_ago};
use crate::run::{Home, Ran};

const APP: &str = "stoker/app";

fn policy(keys: &str) -> String {
    format!(
        "version: 1\nprojects:\n  - name: app\n    repository: github.com/example/app\n    retention: {{ mode: \
         apply{keys} }}\n"
    )
}

fn report_only() -> String {
    policy("").replace("mode: apply", "mode: report")
}

fn json_of(ran: &Ran, code: i32) -> Value {
    assert_eq!(ran.code, code, "{}{}", ran.out, ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

fn on(line: &str, commit: &str) -> Value {
    json!({"stoker.line": line, "stoker.commit": commit.repeat(20), "stoker.build": "app:7",
        "stoker.built-at": "2026-01-02T03:04:05Z", "stoker.reused-percent": "80"})
}

fn history(line: &str, days: i64, digest: &str) -> String {
    let time = days_ago(days).strftime("%Y%m%dT%H%M%SZ");
    format!("app.history.{line}.{time}-{}", &digest["sha256:".len()..][..8])
}

/// A repository with one of everything, by name.
async fn mixed() -> (Account, BTreeMap<&'static str, String>) {
    let account = Account::start().await;
    account.env().projects.push("app".to_owned());
    let mut images = BTreeMap::new();
    let mut push = |name: &'static str, manifest: &str, tags: &[&str], days| {
        images.insert(name, account.push(APP, manifest, tags, days));
    };
    let main = cache("main", &[("base", 100), ("main", 10)], &on("main", "11"));
    push("main", &main, &["app.main", &format!("app.commit.{}", "11".repeat(20))], 300);
    let idle = cache("idle", &[("base", 100), ("idle", 20)], &on("branch/idle", "22"));
    push("idle", &idle, &["app.branch.idle"], 60);
    push("idle's commit", &idle.replace("app:7", "app:8"), &[&format!("app.commit.{}", "22".repeat(20))], 60);
    push("living", &cache("living", &[("living", 5)], &on("branch/x/y", "33")), &["app.branch.living"], 2);
    push("export", &cache("export", &[("export", 7)], &json!({})), &["app.export.k1"], 3);
    push("young export", &cache("young", &[("young", 7)], &json!({})), &["app.export.k2"], 0);
    push("orphan", &cache("orphan", &[("orphan", 40)], &json!({})), &[], 30);
    push("by hand", &cache("hand", &[("hand", 1)], &json!({})), &["v1.0"], 400);
    push("both", &cache("both", &[("hand", 1)], &json!({})), &["app.export.k3", "keep-me"], 400);
    push("other's", &cache("other", &[("hand", 1)], &json!({})), &["other.export.k1"], 400);
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": format!("sha256:{}", "5".repeat(64)), "size": 3});
    push("ordinary", &json!({"config": config, "layers": []}).to_string(), &["app.export.k4"], 400);
    push("no manifest", "<html>", &[], 400);
    let leased = cache("leased", &[("leased", 9)], &on("branch/leased", "44"));
    push("leased", &leased, &["app.branch.leased"], 90);
    let left = cache("left", &[("base", 100), ("left", 3)], &on("main", "55"));
    let digest = stoker_core::names::Digest::of(left.as_bytes()).to_string();
    push("left", &left, &[&history("main", 20, &digest)], 25);
    let older = cache("older", &[("base", 100), ("older", 2)], &on("main", "66"));
    let digest = stoker_core::names::Digest::of(older.as_bytes()).to_string();
    push("older", &older, &[&history("main", 25, &digest)], 40);
    // Its running build was started a day ago: without the lease its line would be in use until then only.
    account.env().builds.push(build("app", 9, true, &images["leased"], "app.export.k2"));
    (account, images)
}

const LEASED: &str = ", idle-branch: 12h, lease: 1h, history: 2h";

/// What is said of each image of the mixed repository.
fn said(report: &Value, images: &BTreeMap<&'static str, String>) -> BTreeMap<String, String> {
    let names: BTreeMap<&str, &str> = images.iter().map(|(name, digest)| (digest.as_str(), *name)).collect();
    let verdicts = report["repositories"][0]["verdicts"].as_array().unwrap().iter().map(|verdict| {
        let name = names[verdict["digest"].as_str().unwrap()].to_owned();
        (name, format!("{} {}", verdict["action"].as_str().unwrap(), verdict["rule"].as_str().unwrap()))
    });
    verdicts.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_repository_is_planned_and_left_as_it_is() {
    let (account, images) = mixed().await;
    let before = account.digests(APP);
    let report = json_of(&account.stoker(&policy(""), "plan --policy POLICY --json --all").await, 0);
    let said_of_all = said(&report, &images);
    let expected = [
        ("main", "keep main"),
        ("idle", "delete idle-branch"),
        ("idle's commit", "delete old-commit"),
        ("living", "keep line"),
        ("export", "delete abandoned-export"),
        ("young export", "keep lease"),
        ("orphan", "delete orphan"),
        ("by hand", "keep not-ours"),
        ("both", "keep not-ours"),
        ("other's", "keep not-ours"),
        ("ordinary", "keep not-a-cache"),
        ("no manifest", "keep not-a-cache"),
        ("leased", "keep line"),
        ("left", "keep keep-at-least"),
        ("older", "delete expired-history"),
    ];
    let expected: BTreeMap<String, String> =
        expected.map(|(name, verdict)| (name.to_owned(), verdict.to_owned())).into();
    assert_eq!(said_of_all, expected);
    let totals = &report["totals"];
    assert_eq!((totals["images"].as_u64(), totals["delete"].as_u64()), (Some(15), Some(5)));
    // The idle line and its commit share all layers and the config, and the base with main.
    let freed = totals["bytes"].as_u64().unwrap() - totals["bytesAfter"].as_u64().unwrap();
    assert_eq!(freed, (20 + 7 + 40 + 2) * 1_000_000 + 4 * 1000);
    let of = |name: &str| {
        let all = report["repositories"][0]["verdicts"].as_array().unwrap();
        all.iter().find(|verdict| verdict["digest"] == images[name].as_str()).unwrap().clone()
    };
    assert_eq!((&of("idle")["line"], &of("idle")["project"]), (&json!("branch/idle"), &json!("app")));
    assert_eq!(of("living")["line"], "branch.living", "a name that is not the tag's is a lie");

    let reported = json_of(&account.stoker(&policy(""), "plan --policy POLICY --json").await, 0);
    assert_eq!(said(&reported, &images).len(), 5, "what is kept is summed up");
    let ran = account.stoker(&policy(""), "plan --policy POLICY").await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{}", ran.err);
    for line in [
        "app (stoker/app), mode apply",
        "  app, branch/idle\n",
        "  without a tag\n",
        "  15 images: delete 5, keep 10, wait for running builds 0",
        "frees 69.0 MB, $0.01 of $0.02 a month",
        "delete  idle-branch       1  frees 20.0 MB",
        "$0.10 for a GB and month",
    ] {
        assert!(ran.out.contains(line), "{line}: {}", ran.out);
    }
    let report = json_of(&account.stoker(&policy(LEASED), "plan --policy POLICY --json").await, 0);
    assert_eq!(said(&report, &images)["leased"], "wait idle-branch");
    assert_eq!(account.digests(APP), before);
    assert_eq!(account.count("BatchDeleteImage"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_planned_is_deleted_and_nothing_else() {
    let (account, images) = mixed().await;
    let plan = json_of(&account.stoker(&policy(""), "plan --policy POLICY --json").await, 0);
    let mut planned: Vec<String> = plan["repositories"][0]["verdicts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|verdict| verdict["digest"].as_str().unwrap().to_owned())
        .collect();
    planned.sort();
    let mut staying = account.digests(APP);
    staying.retain(|digest| !planned.contains(digest));

    let ran = account.stoker(&policy(""), "apply --policy POLICY").await;
    assert_eq!(ran.code, 1, "{}", ran.out);
    assert!(
        ran.err.contains("nobody to ask")
            && ran.err.contains("delete 5 images of stoker/app, which frees 69.0 MB"),
        "{}",
        ran.err
    );
    assert_eq!(account.count("BatchDeleteImage"), 0);

    let done = json_of(&account.stoker(&policy(""), "apply --policy POLICY --yes --json").await, 0);
    let mut deleted: Vec<String> =
        serde_json::from_value(done["repositories"][0]["deleted"].clone()).unwrap();
    deleted.sort();
    assert_eq!(deleted, planned);
    assert_eq!(account.digests(APP), staying);
    let ran = account.stoker(&policy(""), "apply --policy POLICY --yes").await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.ends_with("stoker/app: deleted 0 images\n"), "{}", ran.out);
    assert_eq!(account.count("BatchDeleteImage"), 1);
    assert!(staying.contains(&images["main"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_meanwhile_stays() {
    let (account, images) = mixed().await;
    let (idle, orphan, export, older) =
        (images["idle"].clone(), images["orphan"].clone(), images["export"].clone(), images["older"].clone());
    account.env().undeletable.insert(older.clone(), "a list \u{1b}[2J holds it".to_owned());
    let (tagged, inputs, gone) = (idle.clone(), orphan.clone(), export.clone());
    account.env().meanwhile = Some((
        "DescribeImages again".to_owned(),
        Box::new(move |env| {
            let images = env.images.get_mut(APP).unwrap();
            images.retain(|(digest, _)| *digest != gone);
            images
                .iter_mut()
                .find(|(digest, _)| *digest == tagged)
                .unwrap()
                .1
                .tags
                .push("app.branch.new".to_owned());
            env.builds.push(build("app", 10, true, &inputs, "app.export.k9"));
        }),
    ));
    let ran = account.stoker(&policy(""), "apply --policy POLICY --yes").await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    for line in [
        "stoker/app: deleted 1 image\n".to_owned(),
        format!("  deleted {}", images["idle's commit"]),
        format!("  left    {idle}: it has changed"),
        format!("  left    {orphan}: it has changed"),
        format!("  refused {older}: a list \\u{{1b}}[2J holds it"),
    ] {
        assert!(ran.out.contains(&line), "{line}: {}", ran.out);
    }
    let left = account.digests(APP);
    assert!(left.contains(&idle) && left.contains(&orphan) && left.contains(&older));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_build_behind_many_newer_ones_holds_its_caches() {
    let (account, images) = mixed().await;
    let newer = (100..350).map(|number| build("app", number, false, "sha256:x", "app.export.none"));
    account.env().builds.splice(0..0, newer);
    let plan = account.stoker(&policy(LEASED), "plan --policy POLICY --json --all").await;
    let said = said(&json_of(&plan, 0), &images);
    assert_eq!(said["leased"], "wait idle-branch");
    assert_eq!(account.count("ListBuildsForProject"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_while_it_is_read_is_no_gap() {
    let (account, images) = mixed().await;
    let gone = images["export"].clone();
    let change = move |env: &mut TestEnvironment| {
        env.images.get_mut(APP).unwrap().retain(|(digest, _)| *digest != gone);
    };
    account.env().meanwhile = Some(("BatchGetImage".to_owned(), Box::new(change)));
    let report = json_of(&account.stoker(&policy(""), "plan --policy POLICY --json").await, 0);
    assert_eq!((&report["totals"]["images"], &report["totals"]["delete"]), (&json!(14), &json!(4)));
    assert_eq!(report["repositories"][0].get("refused"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_is_waited_for_and_told_if_it_does_not_end() {
    let (account, _) = mixed().await;
    let throttled = |name: &str, times| (name.to_owned(), times, "ThrottlingException");
    account.env().failing =
        vec![throttled("DescribeImages", 1), throttled("BatchGetImage", 1), throttled("BatchDeleteImage", 1)];
    let done = json_of(&account.stoker(&policy(""), "apply --policy POLICY --yes --json").await, 0);
    assert_eq!(done["repositories"][0]["deleted"].as_array().unwrap().len(), 5);

    let (account, _) = mixed().await;
    account.env().failing = vec![throttled("BatchDeleteImage", 9)];
    let ran = account
        .stoker_in(&policy(""), "apply --policy POLICY --yes --json", &[("AWS_MAX_ATTEMPTS", "1")])
        .await;
    let done = json_of(&ran, 3);
    assert!(ran.err.contains("was throttled") && ran.err.contains("some minutes"), "{}", ran.err);
    assert_eq!(
        (&done["repositories"][0]["left"], &done["repositories"][0]["deleted"]),
        (&json!(5), &json!([]))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_whole_is_not_deleted_from() {
    let fails: [(&str, &'static str); 5] = [
        ("DescribeImages", "AccessDeniedException"),
        ("DescribeImages from 1000", "AccessDeniedException"),
        ("BatchGetImage", "AccessDeniedException"),
        ("ListBuildsForProject", "AccessDeniedException"),
        ("BatchGetBuilds", "InvalidInputException"),
    ];
    for (call, code) in fails {
        let (account, _) = mixed().await;
        for n in 0..1000 {
            account.push(APP, &cache(&format!("many {n}"), &[], &json!({})), &[], 50);
        }
        account.env().failing = vec![(call.to_owned(), 1, code)];
        let ran = account.stoker(&policy(""), "apply --policy POLICY --yes").await;
        assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{call}: {}", ran.err);
        assert!(
            ran.err.contains(code) && ran.err.contains("aws sts get-caller-identity"),
            "{call}: {}",
            ran.err
        );
        assert!(!ran.err.contains('\u{1b}') && ran.err.lines().count() == 2, "{call}: {}", ran.err);
        assert_eq!(account.count("BatchDeleteImage"), 0, "{call}");
    }
    let (account, images) = mixed().await;
    account.env().unreadable.push(images["living"].clone());
    let ran = account.stoker(&policy(""), "apply --policy POLICY --yes").await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.out.contains("stoker/app: left as it is; unread manifests: 1."), "{}", ran.out);
    assert_eq!(account.count("BatchDeleteImage"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_a_report_unless_it_is_meant() {
    let (account, _) = mixed().await;
    let ran = account.stoker(&report_only(), "apply --policy POLICY --yes").await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.out.contains("left as it is") && ran.out.contains("--even-in-report-mode"), "{}", ran.out);
    assert_eq!(account.count("BatchDeleteImage"), 0);
    let meant = "apply --policy POLICY --yes --even-in-report-mode --json";
    let done = json_of(&account.stoker(&report_only(), meant).await, 0);
    assert_eq!(done["repositories"][0]["deleted"].as_array().unwrap().len(), 5);
    // Nothing to delete is nothing left undone.
    assert_eq!(account.stoker(&report_only(), "apply --policy POLICY").await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_deletes_no_more_than_the_policy_says() {
    let (account, images) = mixed().await;
    let few = policy(", max-deletions: 2");
    let ran = account.stoker(&few, "apply --policy POLICY").await;
    assert!(ran.err.contains("delete 2 images"), "{}", ran.err);
    let done = json_of(&account.stoker(&few, "apply --policy POLICY --yes --json").await, 1);
    assert_eq!(done["repositories"][0]["left"], 3);
    // The least recently pushed go first.
    assert!(
        !account.digests(APP).contains(&images["idle"]) && account.digests(APP).contains(&images["export"])
    );
    let ran = account.stoker(&few, "apply --policy POLICY --yes").await;
    assert!(ran.code == 1 && ran.out.contains("  1 image left for the next run\n"), "{}", ran.out);
    assert_eq!(account.stoker(&few, "apply --policy POLICY --yes").await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_without_a_tag_are_understood() {
    let account = Account::start().await;
    let images = (0..16_000_u32).map(|n| {
        let layer = format!("layer {}", n / 4);
        let manifest = cache(&format!("config {n}"), &[(&layer, 1), ("base", 9)], &json!({}));
        let image = Image {
            manifest,
            tags: Vec::new(),
            pushed_at: days_ago(8) - SignedDuration::from_secs(n.into()),
            pulled_at: None,
        };
        (stoker_core::names::Digest::of(image.manifest.as_bytes()).to_string(), image)
    });
    let images: Vec<_> = images.collect();
    account.env().images.insert(APP.to_owned(), images);
    let start = Instant::now();
    let report = json_of(&account.stoker(&policy(""), "plan --policy POLICY --json").await, 0);
    let took = start.elapsed();
    println!("the plan of 16,000 manifests took {took:?}");
    assert!(took.as_secs() < 60, "{took:?}");
    assert_eq!(report["totals"]["delete"], 16_000);
    assert_eq!(report["totals"]["bytesAfter"], 0);
    assert_eq!(report["totals"]["bytes"], 16_000_u64 * 1000 + 4000 * 1_000_000 + 9_000_000);
    assert_eq!(account.count("BatchGetImage"), 160);

    account.push(APP, &cache("young", &[], &json!({})), &["app.branch.x"], 1);
    let start = Instant::now();
    let life = json_of(
        &account.stoker(&policy(""), "explain --policy POLICY --json stoker/app:app.branch.x").await,
        0,
    );
    let took = start.elapsed();
    println!("the life of one of them took {took:?}");
    assert!(took.as_secs() < 120, "{took:?}");
    assert_eq!(life["goes"]["rule"], "idle-branch");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_move_no_cursor() {
    let account = Account::start().await;
    account.env().projects.push("app".to_owned());
    let bad = "\u{1b}[2Japp\u{202e}.main\r\nstoker";
    let lies = json!({"stoker.line": "branch/\u{202e}x", "stoker.commit": "77".repeat(20), "stoker.build": bad,
        "stoker.built-at": "9999-01-01T00:00:00Z", "stoker.reused-percent": "255"});
    let huge = cache("huge", &[("huge", 1)], &lies).replace("1000000", &u64::MAX.to_string());
    let main = account.push(APP, &huge, &[bad, "app.main"], 90);
    let other = cache("other", &[("a", 1)], &lies).replace("1000000", &u64::MAX.to_string());
    account.push(APP, &other, &["app.branch.x"], 90);
    let gone = account.push(APP, &cache("c", &[], &json!({})), &["app.export.x"], 90);
    account.env().builds.push(build("app", 1, true, "sha256:x", bad));
    for line in [
        "plan --policy POLICY --all",
        "explain --policy POLICY stoker/app:app.main",
        "apply --policy POLICY --yes",
    ] {
        let ran = account.stoker(&policy(", scope-budget: 1MB"), line).await;
        assert_eq!(ran.code, 0, "{line}: {}", ran.err);
        assert!(!ran.out.contains(['\u{1b}', '\u{202e}', '\r']), "{line}: {}", ran.out);
        assert!(ran.out.contains("\\u{1b}[2J") || line.starts_with("apply"), "{line}: {}", ran.out);
    }
    let left = account.digests(APP);
    assert!(left.contains(&main) && !left.contains(&gone), "main stays, whatever it says its size is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_is_reported() {
    let (account, images) = mixed().await;
    let explain = async |image: &str, code: i32| {
        let line = format!("explain --policy POLICY --json {image}");
        json_of(&account.stoker(&policy(""), &line).await, code)
    };
    let main = explain("stoker/app:app.main", 0).await;
    assert_eq!((&main["action"], &main["rule"], main.get("goes")), (&json!("keep"), &json!("main"), None));
    assert_eq!(main["madeBy"]["commit"], "11".repeat(20));
    assert_eq!((&main["madeBy"]["build"], &main["madeBy"]["knownBy"]), (&json!("app:7"), &json!("manifest")));
    assert_eq!(main["lines"], json!([{"line": "main", "scope": "app", "isNow": true}]));
    assert_eq!(main["shares"], json!({"blobs": 1, "bytes": 100_000_000, "images": 4}));
    assert_eq!(main["freesAlone"], 10_001_000);

    let living = explain(&format!("stoker/app@{}", images["living"]), 0).await;
    assert_eq!(living["goes"]["rule"], "idle-branch");
    let at: jiff::Timestamp = living["goes"]["at"].as_str().unwrap().parse().unwrap();
    let off = at.duration_since(days_ago(2 - 30)).as_secs();
    assert!((-120..=1).contains(&off), "30 days after it was pushed: {off}");

    let leased = explain(&format!("--project app {}", &images["leased"]["sha256:".len()..][..8]), 0).await;
    assert_eq!(leased["readBy"][0]["build"], "app:9");
    assert_eq!(leased["lastUse"]["by"], "given");

    let export = explain("--project app app.export.k2", 0).await;
    assert_eq!(export["madeBy"]["knownBy"], "codebuild");
    assert_eq!(
        (&export["madeBy"]["build"], &export["madeBy"]["commit"]),
        (&json!("app:9"), &json!("ab".repeat(20)))
    );
    assert_eq!(export["goes"]["rule"], "abandoned-export");

    let left = explain(&format!("--project app {}", images["left"]), 0).await;
    assert_eq!((&left["lines"][0]["line"], &left["lines"][0]["isNow"]), (&json!("main"), &json!(false)));
    assert!(left["lines"][0]["leftAt"].is_string() && left.get("goes").is_none());

    let ran = account.stoker(&policy(""), "explain --policy POLICY stoker/app:app.branch.idle").await;
    for text in [
        "build app:7 of commit 2222",
        "branch/idle is this cache",
        "no running build",
        "delete, rule idle-branch",
        "goes      with the next run",
        "deleted alone",
    ] {
        assert!(ran.out.contains(text), "{text}: {}", ran.out);
    }
    for (line, why) in [
        ("explain --policy POLICY app.main", "--project"),
        ("explain --policy POLICY stoker/other:app.main", "stoker/app"),
        ("explain --policy POLICY stoker/app:nothing", "plan --all"),
        ("explain --policy POLICY --project nobody app.main", "it has these: app"),
        ("explain --policy POLICY stoker/app", "expected repository:tag"),
    ] {
        let ran = account.stoker(&policy(""), line).await;
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{line}: {}", ran.err);
        assert!(ran.err.contains(why), "{line}: {}", ran.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn globs_mean_what_codebuild_has() {
    let account = Account::start().await;
    account.env().projects.extend(["team-web".to_owned(), "team-api".to_owned(), "alien".to_owned()]);
    account.push("stoker/team-web", &cache("w", &[("w", 1)], &json!({})), &["team-web.export.k"], 9);
    account.push("stoker/team-api-builds", &cache("a", &[("a", 1)], &json!({})), &["team-api.export.k"], 9);
    let policy = "version: 1\nprojects:\n  - name: team-api\n    repository: github.com/example/api\n    \
                  builds-repository: stoker/team-api-builds\n  - name: \"team-*\"\n    repository: \
                  github.com/example/{project}\n";
    let report = json_of(&account.stoker(policy, "plan --policy POLICY --json").await, 0);
    let repositories: Vec<(&str, u64)> = report["repositories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| (of["repository"].as_str().unwrap(), of["delete"].as_u64().unwrap()))
        .collect();
    assert_eq!(repositories, [("stoker/team-api", 0), ("stoker/team-api-builds", 1), ("stoker/team-web", 1)]);
    let ran = account.stoker(policy, "plan --policy POLICY --project team-web").await;
    assert!(ran.out.starts_with("team-web (stoker/team-web), mode report\n"), "{}", ran.out);
    assert!(!ran.out.contains("team-api"), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_region_or_credentials_is_reported() {
    let account = Account::start().await;
    let ran = account.stoker_in(&policy(""), "plan --policy POLICY", &[("AWS_REGION", "")]).await;
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("AWS_REGION"), "{}", ran.err);
    let ran = account
        .stoker_in(
            &policy(""),
            "plan --policy POLICY",
            &[("AWS_ACCESS_KEY_ID", ""), ("AWS_MAX_ATTEMPTS", "1")],
        )
        .await;
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert!(ran.err.contains("aws sts get-caller-identity") && ran.err.lines().count() == 2, "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_checked() {
    let home = Home::new();
    let path = home.path().join("policy.yaml");
    let check = async |text: &str, more: &[&str]| {
        std::fs::write(&path, text).unwrap();
        home.stoker_given(&[&["policy", "check", path.to_str().unwrap()], more].concat(), "").await
    };
    let sound = policy("") + "  - name: \"team-*\"\n    repository: github.com/example/{project}\n";
    let ran = check(&sound, &[]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.out.contains("is sound: 1 project, and those of CodeBuild's that match `team-*`"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("  app      github.com/example/app  stoker/app"), "{}", ran.out);
    let reported = json_of(&check(&sound, &["--json"]).await, 0);
    assert_eq!(
        (&reported["sound"], &reported["globs"], &reported["projects"][0]["mode"]),
        (&json!(true), &json!(["team-*"]), &json!("apply"))
    );
    let wrong = "version: 1\nprojects:\n  - nam: app\n    repository: here\n  - name: b\n    repository: \
         x/y/z\n    retention: {mode: \"\u{202e}x\"}\n";
    let ran = check(wrong, &[]).await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.out.contains("policy.yaml:3:") && ran.out.contains("policy.yaml:7:"), "{}", ran.out);
    assert!(!ran.out.contains('\u{202e}'));
    let reported = json_of(&check(wrong, &["--json"]).await, 1);
    assert!(
        reported["mistakes"].as_array().unwrap().len() >= 3 && reported["mistakes"][0]["line"] == 3,
        "{reported}"
    );
    let ran = home.stoker("policy check /nowhere/policy.yaml").await;
    assert_eq!(ran.code, 2, "{}", ran.err);
}
