//! Lines, their history, and the way back.

use buildkit_cache::IMPORT_LIMIT;
use serde_json::{Value, json};
use stoker_core::names::{Branch, Digest, Line, ProjectName, Scope, Tag};

use crate::registry::{Door, Fake};
use crate::run::stoker;

fn provenance(line: &str, n: u32) -> Value {
    json!({
        "stoker.line": line,
        "stoker.trust": if line == "main" { "trusted" } else { "branch" },
        "stoker.project": "app",
        "stoker.commit": format!("{n:040x}"),
        "stoker.build": format!("app:{n}"),
        "stoker.built-at": format!("2026-01-{n:02}T09:00:00Z"),
        "stoker.merged": "ab".repeat(20),
    })
}

fn scope() -> Scope {
    Scope::of(&ProjectName::new("app").unwrap())
}

/// Puts a cache where a line left it, on a day of January.
fn put_left(fake: &Fake, line: &Line, day: u32, steps: &str) -> (String, Digest) {
    fake.put("app", "new", steps);
    let digest = fake.annotate("app", "new", &provenance(&line.to_string(), day));
    let left_at = format!("2026-01-{:02}T10:00:00Z", day + 1).parse().unwrap();
    let tag = Tag::history(&scope(), line, left_at, &digest).to_string();
    let mut env = fake.env();
    env.tags.remove(&("app".to_owned(), "new".to_owned()));
    env.tags.insert(("app".to_owned(), tag.clone()), digest.clone());
    (tag, digest)
}

fn put_line(fake: &Fake, line: &Line, day: u32, steps: &str) -> Digest {
    let tag = Tag::line(&scope(), line);
    fake.put("app", tag.as_str(), steps);
    fake.annotate("app", tag.as_str(), &provenance(&line.to_string(), day))
}

/// Main, with what it left on two days.
fn put_main(fake: &Fake) -> ([String; 2], [Digest; 3]) {
    let (older, first) = put_left(fake, &Line::Main, 1, "one");
    let (newer, second) = put_left(fake, &Line::Main, 2, "one two");
    ([older, newer], [first, second, put_line(fake, &Line::Main, 3, "one two three")])
}

fn feature() -> Line {
    Line::Branch(Branch::new("feature/a").unwrap())
}

fn json_of(out: &str) -> Value {
    serde_json::from_str(out).unwrap()
}

/// The tags that were written, in their order.
fn written(fake: &Fake) -> Vec<String> {
    let env = fake.env();
    let puts = env.asked.iter().filter_map(|asked| asked.line.strip_prefix("PUT /v2/app/"));
    puts.map(|path| path.strip_prefix("manifests/").unwrap().to_owned()).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_listed_with_what_is_known_of_them() {
    let fake = Fake::start().await;
    let (_, [.., main]) = put_main(&fake);
    put_line(&fake, &feature(), 4, "four");
    fake.put("app", "app.pr.7", "seven");
    fake.put("app", "app.export.x", "five");
    fake.put("app", "latest", "six");
    fake.put("other", "app.branch.elsewhere", "six");
    let app = format!("{}/app", fake.address);
    let ran = stoker(&format!("lines {app}")).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 5, "{}", ran.out);
    assert!(lines[1].starts_with("  LINE              PROJECT  TRUST    DIGEST "), "{}", ran.out);
    assert!(
        lines[2].starts_with(&format!("  main              app      trusted  {} ", main.short())),
        "{}",
        ran.out
    );
    assert!(lines[2].ends_with(" app:3") && lines[2].contains(" 50 B "), "{}", ran.out);
    assert!(lines[3].starts_with("  branch/feature/a  app      branch "), "{}", ran.out);
    assert!(lines[4].starts_with("  pr.7              app      -  "), "{}", ran.out);

    let json = json_of(&stoker(&format!("lines {app} --json --project app")).await.out);
    assert_eq!(
        (json["repository"].as_str(), json["lines"].as_array().unwrap().len()),
        (Some(app.as_str()), 3)
    );
    let expected = [
        "build",
        "builtAt",
        "bytes",
        "commit",
        "digest",
        "importBytes",
        "importLimit",
        "importable",
        "keys",
        "line",
        "merged",
        "onProbation",
        "project",
        "scope",
        "steps",
        "tag",
        "trust",
    ];
    assert_eq!(keys(&json["lines"][0]), expected);
    assert_eq!(json["lines"][0]["digest"], main.to_string());
    assert_eq!((&json["lines"][0]["steps"], &json["lines"][0]["keys"]), (&json!(3), &json!(6)));
    assert_eq!(json["lines"][0]["builtAt"], "2026-01-03T09:00:00Z");

    let none = stoker(&format!("lines {}/none", fake.address)).await;
    assert_eq!((none.code, none.out.contains("has no lines")), (0, true), "{}{}", none.out, none.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_buildkit_does_not_import_are_reported() {
    let fake = Fake::start().await;
    put_main(&fake);
    fake.put("app", "app.branch.large", "one");
    fake.annotate("app", "app.branch.large", &json!({"note": "x".repeat(IMPORT_LIMIT)}));
    fake.put("app", "app.branch.image", "one");
    let mut image = fake.manifest("app", "app.branch.image").unwrap();
    image["config"]["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    let image = axum::body::Bytes::from(image.to_string());
    fake.env().tags.insert(("app".to_owned(), "app.branch.image".to_owned()), Digest::of(&image));
    fake.env().manifests.insert(("app".to_owned(), Digest::of(&image)), image);
    let ran = stoker(&format!("lines {}/app", fake.address)).await;
    assert_eq!((ran.code, ran.out.matches("  NO  ").count()), (0, 2), "{}", ran.out);
    assert!(ran.out.contains("an image, not a cache"), "{}", ran.out);
    assert!(ran.out.contains("1 cache over BuildKit's import limit"), "{}", ran.out);
    let json = json_of(&stoker(&format!("lines {}/app --json", fake.address)).await.out);
    let importable: Vec<&Value> =
        json["lines"].as_array().unwrap().iter().map(|line| &line["importable"]).collect();
    assert_eq!(importable, [true, false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_tags_is_read() {
    let fake = Fake::start().await;
    fake.env().door = Door::Bearer { password: None, refresh_token: None };
    for n in 0..7 {
        fake.put("app", &format!("app.branch.b{n}"), "one");
    }
    fake.env().page = 2;
    let json = json_of(&stoker(&format!("lines {}/app --json", fake.address)).await.out);
    assert_eq!(json["lines"].as_array().unwrap().len(), 7);
    // The first page is refused once, for the token.
    assert_eq!(fake.count("GET", "/tags/list"), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_fetched_nowhere_else_and_not_for_ever() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    put_main(&fake);
    let line = format!("lines {}/app", fake.address);
    for (next, why) in [
        (format!("http://{}/v2/app/tags/list", other.address), "another host"),
        ("//evil.example/".to_owned(), "status 404"),
        ("?last=x".to_owned(), "another host"),
        ("/v2/app/tags/list".to_owned(), "more than 300 pages"),
    ] {
        fake.env().next_page = Some(next.clone());
        let ran = stoker(&line).await;
        assert_eq!((ran.code, ran.err.contains(why)), (3, true), "{next}: {}{}", ran.out, ran.err);
    }
    assert_eq!(other.count("", ""), 0);
    fake.env().next_page = None;
    for nonsense in ["", "<html>", "[]", "{\"tags\":7}", "{\"tags\":[7]}", "{\"tags\":{}}"] {
        fake.env().tags_instead = Some(nonsense.into());
        let ran = stoker(&line).await;
        assert_eq!((ran.code, ran.err.contains("list")), (3, true), "{nonsense}: {}{}", ran.out, ran.err);
    }
    for none in ["{}", "{\"tags\":null}", "{\"tags\":[\"\\u001b[31m\",\"app.branch./../x\",\"..\",\"app.\"]}"]
    {
        fake.env().tags_instead = Some(none.into());
        let ran = stoker(&line).await;
        assert_eq!((ran.code, ran.out.contains("has no lines")), (0, true), "{none}: {}{}", ran.out, ran.err);
    }
    // A tag that is gone when it is read is not told.
    fake.env().tags_instead = Some("{\"tags\":[\"app.main\",\"app.pr.1\",\"app.main\"]}".into());
    let json = json_of(&stoker(&format!("{line} --json")).await.out);
    assert_eq!(json["lines"].as_array().unwrap().len(), 1);
    fake.env().is_endless = true;
    let ran = stoker(&line).await;
    assert_eq!((ran.code, ran.err.contains("length limit")), (3, true), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_reported_the_newest_first() {
    let fake = Fake::start().await;
    let ([older, newer], [first, second, current]) = put_main(&fake);
    put_left(&fake, &feature(), 5, "five");
    put_line(&fake, &feature(), 6, "six");
    let ran = stoker(&format!("history {}/app main", fake.address)).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let lines: Vec<&str> = ran.out.lines().skip(2).take(3).collect();
    for (line, digest) in lines.iter().zip([&current, &second, &first]) {
        assert!(line.contains(&digest.short()), "{}", ran.out);
    }
    assert!(lines[0].starts_with("  is now ") && lines[0].ends_with(" app:3"), "{}", ran.out);
    assert!(ran.out.contains("stays as long as the policy says (`retention.history`)"), "{}", ran.out);
    let json = json_of(&stoker(&format!("history {}/app main --json", fake.address)).await.out);
    assert_eq!((&json["line"], json["caches"].as_array().unwrap().len()), (&json!("main"), 3));
    let reported: Vec<(&Value, &Value)> =
        json["caches"].as_array().unwrap().iter().map(|cache| (&cache["tag"], &cache["leftAt"])).collect();
    assert_eq!(
        reported,
        [
            (&json!("app.main"), &Value::Null),
            (&json!(newer), &json!("2026-01-03T10:00:00Z")),
            (&json!(older), &json!("2026-01-02T10:00:00Z")),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_keeps_what_was_and_says_when() {
    let fake = Fake::start().await;
    let (_, [_, second, current]) = put_main(&fake);
    let before = fake.manifest("app", "app.main").unwrap();
    let ran = stoker(&format!("rollback {}/app main", fake.address)).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let [kept, line] = written(&fake).try_into().unwrap();
    assert!(
        kept.starts_with("app.history.main.2") && kept.ends_with(&format!("Z-{}", &current.short()[..8])),
        "{kept}"
    );
    assert_eq!((line.as_str(), fake.manifest("app", &kept)), ("app.main", Some(before)));
    let now = fake.manifest("app", "app.main").unwrap();
    let old: Value = serde_json::from_slice(&fake.env().manifests[&("app".to_owned(), second)]).unwrap();
    assert_eq!((&now["config"], &now["layers"]), (&old["config"], &old["layers"]));
    let mut annotations = now["annotations"].clone();
    let rolled_back = annotations.as_object_mut().unwrap().remove("stoker.rolled-back-at").unwrap();
    assert!(rolled_back.as_str().unwrap().parse::<jiff::Timestamp>().unwrap() > jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(annotations.as_object_mut().unwrap().remove("stoker.parent"), Some(json!(current)));
    assert_eq!(annotations, provenance("main", 2));
    let json = json_of(&stoker(&format!("lines {}/app --json", fake.address)).await.out);
    assert_eq!(json["lines"][0]["rolledBackAt"], rolled_back);
}

#[tokio::test(flavor = "multi_thread")]
async fn rolled_back_twice_a_line_is_what_it_was() {
    let fake = Fake::start().await;
    let (_, [.., current]) = put_main(&fake);
    let before = fake.manifest("app", "app.main").unwrap();
    let line = format!("rollback {}/app main --json", fake.address);
    let first = json_of(&stoker(&line).await.out);
    let second = json_of(&stoker(&line).await.out);
    assert_eq!(keys(&first), ["dryRun", "from", "is", "line", "repository", "rolledBackAt", "to"]);
    assert_eq!((&second["from"]["digest"], &second["to"]), (&first["is"]["digest"], &first["from"]));
    assert_eq!(second["to"]["digest"], current.to_string());
    let now = fake.manifest("app", "app.main").unwrap();
    assert_eq!((&now["config"], &now["layers"]), (&before["config"], &before["layers"]));
    assert_eq!(now["annotations"]["stoker.commit"], before["annotations"]["stoker.commit"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_cache_of_the_history_can_be_named() {
    let fake = Fake::start().await;
    let ([older, _], [first, second, current]) = put_main(&fake);
    let (elsewhere, _) = put_left(&fake, &feature(), 5, "five");
    let to = async |to: &str| {
        stoker(&format!("rollback {}/app main --dry-run --json --to {to}", fake.address)).await
    };
    let whole = first.to_string();
    for name in [older.as_str(), &whole, &first.short(), &whole[..15]] {
        assert_eq!(json_of(&to(name).await.out)["to"], json!({"tag": older, "digest": first}), "{name}");
    }
    assert_eq!(json_of(&to(&second.to_string()).await.out)["to"]["digest"], second.to_string());
    let not_all = format!("{}0000", first.short());
    for name in ["00000000", &current.to_string(), &elsewhere, "1234567", "app.main", "latest", &not_all] {
        let ran = to(name).await;
        assert_eq!(ran.code, 2, "{name}: {}{}", ran.out, ran.err);
    }
    // A tag that no longer holds what the line left.
    fake.env().tags.insert(("app".to_owned(), older.clone()), second);
    let ran = to(&older).await;
    assert_eq!((ran.code, ran.err.contains("does not hold what main left")), (1, true), "{}", ran.err);
    assert_eq!(written(&fake), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_and_a_refusal_write_nothing() {
    let fake = Fake::start().await;
    let (_, [_, second, current]) = put_main(&fake);
    let line = format!("rollback {}/app main", fake.address);
    let dry = stoker(&format!("{line} --dry-run")).await;
    assert_eq!((dry.code, dry.out.matches("would ").count()), (0, 3), "{}{}", dry.out, dry.err);

    let gone = Digest::of(b"the layer of two");
    let blob = fake.env().blobs.remove(&("app".to_owned(), gone.clone())).unwrap();
    let ran = stoker(&line).await;
    assert_eq!(
        (ran.code, ran.err.contains(&format!("blob {gone} (16 B) is missing"))),
        (1, true),
        "{}",
        ran.err
    );
    fake.env().blobs.insert(("app".to_owned(), gone), blob);

    let config = fake.manifest("app", "app.main").unwrap()["config"]["digest"].as_str().unwrap().to_owned();
    let old: Value =
        serde_json::from_slice(&fake.env().manifests[&("app".to_owned(), second.clone())]).unwrap();
    let old = old["config"]["digest"].as_str().unwrap();
    assert_ne!(old, config);
    let blob = fake.env().blobs.remove(&("app".to_owned(), Digest::new(old).unwrap())).unwrap();
    let ran = stoker(&line).await;
    assert_eq!((ran.code, ran.err.contains("is gone")), (1, true), "{}", ran.err);
    fake.env().blobs.insert(("app".to_owned(), Digest::new(old).unwrap()), blob);

    // Somebody moves the line while its history is looked at.
    fake.env().moved_meanwhile = Some((("app".to_owned(), "app.main".to_owned()), second));
    let ran = stoker(&line).await;
    assert_eq!((ran.code, ran.err.contains("moved in the meantime")), (1, true), "{}", ran.err);
    fake.env().tags.insert(("app".to_owned(), "app.main".to_owned()), current);

    assert_eq!(written(&fake), Vec::<String>::new());
    assert_eq!(stoker(&line).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_something_else_was_written_to_is_put_back() {
    let fake = Fake::start().await;
    let (_, [_, second, _]) = put_main(&fake);
    let media_type = "application/vnd.oci.image.index.v1+json";
    let image = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": []}).to_string();
    fake.env().tags.insert(("app".to_owned(), "app.main".to_owned()), Digest::of(image.as_bytes()));
    fake.env().manifests.insert(("app".to_owned(), Digest::of(image.as_bytes())), image.into());
    let ran = stoker(&format!("rollback {}/app main --json", fake.address)).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(json_of(&ran.out)["to"]["digest"], second.to_string());
    assert_eq!(fake.manifest("app", &written(&fake)[0]).unwrap()["mediaType"], media_type);
    let ran = stoker(&format!("rollback {}/app main", fake.address)).await;
    assert_eq!((ran.code, ran.err.contains("not a cache")), (1, true), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_buildkit_does_not_import_is_no_way_back() {
    let fake = Fake::start().await;
    put_line(&fake, &Line::Main, 3, "one");
    let (tag, _) = put_left(&fake, &Line::Main, 1, "two");
    let mut annotations = provenance("main", 1);
    annotations["note"] = json!("x".repeat(IMPORT_LIMIT));
    let digest = fake.annotate("app", &tag, &annotations);
    let left_at = "2026-01-02T10:00:00Z".parse().unwrap();
    let large = Tag::history(&scope(), &Line::Main, left_at, &digest).to_string();
    fake.env().tags.remove(&("app".to_owned(), tag));
    fake.env().tags.insert(("app".to_owned(), large), digest);
    let ran = stoker(&format!("rollback {}/app main", fake.address)).await;
    assert_eq!((ran.code, ran.err.contains("of what BuildKit imports")), (1, true), "{}{}", ran.out, ran.err);
    assert_eq!(written(&fake), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_failed_halfway_is_no_way_back() {
    let fake = Fake::start().await;
    let (_, [_, second, current]) = put_main(&fake);
    let left_at = "2026-01-20T10:00:00Z".parse().unwrap();
    let tag = Tag::history(&scope(), &Line::Main, left_at, &current).to_string();
    fake.env().tags.insert(("app".to_owned(), tag.clone()), current);
    let line = format!("rollback {}/app main --json", fake.address);
    let ran = stoker(&format!("{line} --to {tag}")).await;
    assert_eq!((ran.code, ran.err.contains("is that cache already")), (1, true), "{}", ran.err);
    assert_eq!(json_of(&stoker(&line).await.out)["to"]["digest"], second.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_reported_with_what_is() {
    let fake = Fake::start().await;
    let app = format!("{}/app", fake.address);
    let ran = stoker(&format!("history {app} main")).await;
    assert_eq!((ran.code, ran.err.contains("has no line main")), (2, true), "{}", ran.err);
    put_line(&fake, &Line::Main, 3, "one");
    put_line(&fake, &feature(), 4, "two");
    for command in ["history", "rollback"] {
        let ran = stoker(&format!("{command} {app} branch/b")).await;
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(
            ran.err.contains("has no line branch/b\n next: it has these: main, branch/feature/a"),
            "{}",
            ran.err
        );
        let ran = stoker(&format!("{command} {app} b")).await;
        assert_eq!((ran.code, ran.err.contains("`branch/<name>`")), (2, true), "{}", ran.err);
        let ran = stoker(&format!("{command} {app}:main main")).await;
        assert_eq!((ran.code, ran.err.contains("without `:main`")), (2, true), "{}", ran.err);
        assert_eq!(stoker(&format!("{command} --help")).await.code, 0);
    }
    let ran = stoker(&format!("rollback {app} main")).await;
    assert_eq!((ran.code, ran.err.contains("no history to go back to")), (1, true), "{}", ran.err);
    let ran = stoker(&format!("lines {app} --project other")).await;
    assert_eq!((ran.code, ran.err.contains("it has lines of these: app;")), (2, true), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_projects_share_a_repository() {
    let fake = Fake::start().await;
    put_main(&fake);
    fake.put("app", "lib.main", "nine");
    let app = format!("{}/app", fake.address);
    let json = json_of(&stoker(&format!("lines {app} --json")).await.out);
    let scopes: Vec<&Value> = json["lines"].as_array().unwrap().iter().map(|line| &line["scope"]).collect();
    assert_eq!(scopes, ["app", "lib"]);
    let json = json_of(&stoker(&format!("lines {app} --json --project lib")).await.out);
    assert_eq!(json["lines"].as_array().unwrap().len(), 1);
    for command in ["history", "rollback"] {
        let ran = stoker(&format!("{command} {app} main")).await;
        assert_eq!(
            (ran.code, ran.err.contains("these: app, lib; choose one with --project")),
            (2, true),
            "{}",
            ran.err
        );
    }
    assert_eq!(stoker(&format!("rollback {app} main --project lib")).await.code, 1);
    let ran = stoker(&format!("rollback {app} main --project app")).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(fake.manifest("app", "lib.main").unwrap().get("annotations"), None);
}
