//! The simulated builder against a registry in memory.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests may panic too")]

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cache_misses::{Log as BuildLog, Steps};
use common::{Dir, Fake, write_sources};
use serde_json::Value;
use stoker_local::simulated::{Output, docker_in};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Builds; returns whether it succeeded, the log, and what the log tells.
async fn build(dir: &Dir, from: &[String], to: &str, more: &[&str]) -> (bool, String, Steps) {
    let mut arguments: Vec<String> = ["buildx", "build", "-t", "app"].map(str::to_owned).to_vec();
    for reference in from {
        arguments.push("--cache-from".to_owned());
        arguments.push(format!("type=registry,ref={reference}"));
    }
    let how = "mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true";
    arguments.push(format!("--cache-to=type=registry,ref={to},{how}"));
    arguments.extend(more.iter().map(|&word| word.to_owned()));
    arguments.push(".".to_owned());
    let log = Log::default();
    let ok = docker_in(&arguments, &dir.0, Output::new(log.clone())).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let steps = BuildLog::read(&text).steps();
    (ok, text, steps)
}

async fn sources() -> (Dir, Fake) {
    let dir = Dir::new();
    write_sources(&dir.0);
    (dir, Fake::start().await)
}

#[tokio::test]
async fn a_cold_build_runs_all_and_the_next_one_reuses_all() {
    let (dir, fake) = sources().await;
    let tag = fake.reference("main");
    let from = [tag.clone()];
    let started = Instant::now();
    let (ok, log, steps) = build(&dir, &from, &tag, &[]).await;
    assert!(ok, "{log}");
    assert!(log.starts_with("#0 building with \"simulated\""), "{log}");
    assert!(log.contains(&format!("ERROR: failed to configure registry cache importer: {tag}: not found")));
    assert_eq!((steps.total, steps.reused), (10, 0), "{log}");
    let took = started.elapsed();
    assert!(took > Duration::from_millis(200) && took < Duration::from_millis(395), "in parallel: {took:?}");

    let (ok, log, steps) = build(&dir, &from, &fake.reference("next"), &[]).await;
    assert!(ok, "{log}");
    assert_eq!((steps.total, steps.reused), (10, 10), "{log}");

    let (_, log, steps) = build(&dir, &from, &fake.reference("refresh"), &["--no-cache"]).await;
    assert_eq!(steps.reused, 0, "{log}");
}

#[tokio::test]
async fn a_change_in_one_stage_leaves_the_other_warm() {
    let (dir, fake) = sources().await;
    let (main, branch) = (fake.reference("main"), fake.reference("branch"));
    build(&dir, &[], &main, &[]).await;
    dir.write("a/src", "2");
    let (ok, log, steps) = build(&dir, std::slice::from_ref(&main), &branch, &[]).await;
    assert!(ok, "{log}");
    assert_eq!(
        steps.ran,
        [
            "[a 4/5] COPY a/src /src",
            "[a 5/5] RUN make",
            "[stage-2 1/2] COPY --from=a /out /a",
            "[stage-2 2/2] COPY --from=b /out /b"
        ],
        "{log}"
    );
    assert_eq!(steps.reused, 6);

    // What was reused keeps its time and its layers.
    let times = |tag: &str| -> BTreeSet<String> {
        let config = fake.blob(&fake.manifest(tag)["config"]["digest"]);
        let records = config["records"].as_array().unwrap().clone();
        let times = records.iter().flat_map(|r| r["layers"].as_array().cloned().unwrap_or_default());
        times.map(|l| l["createdAt"].as_str().unwrap().to_owned()).collect()
    };
    // An image and six steps of the first build; stages share the image's record.
    assert_eq!(times("main").intersection(&times("branch")).count(), 7);
    assert_eq!(times("branch").difference(&times("main")).count(), 4);

    // Both lines together hold all of both.
    let (_, log, steps) = build(&dir, &[main, branch], &fake.reference("x"), &[]).await;
    assert_eq!(steps.reused, 10, "{log}");
}

#[tokio::test]
async fn an_export_is_a_valid_cache() {
    let (dir, fake) = sources().await;
    build(&dir, &[], &fake.reference("main"), &[]).await;
    let manifest = fake.manifest("main");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.buildkit.cacheconfig.v0");
    let config = fake.blob(&manifest["config"]["digest"]);
    let count = |value: &Value| i64::try_from(value.as_array().unwrap().len()).unwrap();
    let (records, layers) = (count(&config["records"]), count(&config["layers"]));
    for record in config["records"].as_array().unwrap() {
        for links in record["inputs"].as_array().into_iter().flatten() {
            assert!(count(links) > 0);
            assert!(
                links.as_array().unwrap().iter().all(|l| (0..records).contains(&l["link"].as_i64().unwrap()))
            );
        }
        for outcome in record["layers"].as_array().into_iter().flatten() {
            assert!((0..layers).contains(&outcome["layer"].as_i64().unwrap()));
        }
    }
    let described: BTreeSet<&str> =
        manifest["layers"].as_array().unwrap().iter().map(|l| l["digest"].as_str().unwrap()).collect();
    for layer in config["layers"].as_array().unwrap() {
        assert!(described.contains(layer["blob"].as_str().unwrap()));
        assert!((-1..layers).contains(&layer["parent"].as_i64().unwrap_or(0)));
    }
    for layer in manifest["layers"].as_array().unwrap() {
        assert_eq!(layer["annotations"]["containerd.io/uncompressed"], layer["digest"]);
        assert!(layer["annotations"]["buildkit/createdat"].is_string());
    }
}

#[tokio::test]
async fn a_layer_that_is_gone_fails_the_build() {
    let (dir, fake) = sources().await;
    let main = fake.reference("main");
    build(&dir, &[], &main, &[]).await;
    let layer = fake.manifest("main")["layers"][1]["digest"].as_str().unwrap().to_owned();
    fake.store.lock().unwrap().blobs.remove(&("cache/app".to_owned(), layer.clone()));
    let (ok, log, _) = build(&dir, &[main], &fake.reference("x"), &[]).await;
    assert!(!ok);
    assert!(
        log.contains(&format!("could not fetch content descriptor {layer} from remote: not found")),
        "{log}"
    );
}

#[tokio::test]
async fn a_failing_command_fails_the_build() {
    let (dir, fake) = sources().await;
    dir.write("Dockerfile", "FROM scratch\nRUN make && exit 1\nRUN later\n");
    let (ok, log, steps) = build(&dir, &[], &fake.reference("main"), &[]).await;
    assert!(!ok);
    assert_eq!(steps.ran, ["[1/2] RUN make && exit 1"], "{log}");
    assert_eq!(steps.reused, 0);
    assert!(fake.store.lock().unwrap().tags.is_empty());
}
