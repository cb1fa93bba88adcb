//! The scenario: what happens in it, and what must hold.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use stoker_core::names::{Line, ProjectName, Tag};
use stoker_core::policy::Policy;

use super::forge::Forge;
use super::report::{Build, Report};
use super::stage::{Builder, Stage};

const ECR: &str = "AmazonEC2ContainerRegistry_V20150921";
/// The cache repositories of the two projects that are built.
const APP: &str = "stoker/app";
const DOCS: &str = "stoker/docs";
/// Longer than any build of the demo takes, on a slow machine.
const PATIENCE: Duration = Duration::from_mins(3);
/// Nothing has happened for so long: nothing will.
const QUIET: Duration = Duration::from_millis(2500);
const POLL: Duration = Duration::from_millis(40);

/// Plays the scenario, and answers what was found.
pub(crate) fn report(stage: &Stage) -> anyhow::Result<Report> {
    let mut scenario = Scenario { stage, forge: stage.forge()?, report: Report::default() };
    scenario.branches()?;
    scenario.merges()?;
    scenario.again()?;
    scenario.night()?;
    scenario.deletion()?;
    Ok(scenario.report)
}

struct Scenario<'a> {
    stage: &'a Stage,
    forge: Forge,
    report: Report,
}

impl Scenario<'_> {
    /// a, b and c: two branches, each with the dependencies of one stage changed.
    fn branches(&mut self) -> anyhow::Result<()> {
        let (app, forge) = (&self.stage.app, &self.forge);
        say("somebody pushes the branch feature-a, which changes the dependencies of stage A");
        app.branch("feature-a", "main")?;
        app.change("feature-a", "a/dependencies.txt", "left 2.0 {run}\n")?;
        forge.pushed(app, "feature-a", None)?;
        forge.pull_request(app, 1, "feature-a", "main", None)?;
        let a = self.next_build()?;
        let exported = self.line_moved("app.branch.feature-a", None).is_ok();
        self.report.check(
            "a",
            a.reused == 0 && exported,
            "a new branch builds cold, and its cache is exported to its line",
        );
        self.report.figures.cold_seconds = a.seconds;

        say("a second push to feature-a changes a source file of stage A");
        let (app, forge) = (&self.stage.app, &self.forge);
        let before = app.head("feature-a")?;
        let line = self.digest("app.branch.feature-a")?;
        app.change("feature-a", "a/source.txt", "a, second version\n")?;
        forge.pushed(app, "feature-a", Some(&before))?;
        let b = self.next_build()?;
        self.line_moved("app.branch.feature-a", line.as_deref())?;
        let only_changed =
            !b.ran_dependencies("a") && !b.ran_dependencies("b") && b.reused > 0 && b.steps - b.reused < 6;
        self.report.check("b", only_changed, "a second push runs only what changed");

        say("somebody pushes to main, which had no cache yet");
        let (app, forge) = (&self.stage.app, &self.forge);
        let before = app.head("main")?;
        app.change("main", "version.txt", "2 {run}\n")?;
        forge.pushed(app, "main", Some(&before))?;
        self.next_build()?;
        self.line_moved("app.main", None)?;

        say("somebody pushes the branch feature-b, which changes the dependencies of stage B");
        let (app, forge) = (&self.stage.app, &self.forge);
        app.branch("feature-b", "main")?;
        app.change("feature-b", "b/dependencies.txt", "right 2.0 {run}\n")?;
        forge.pushed(app, "feature-b", None)?;
        forge.pull_request(app, 2, "feature-b", "main", None)?;
        let c = self.next_build()?;
        self.line_moved("app.branch.feature-b", None)?;
        let partly = c.reads == ["main"] && !c.ran_dependencies("a") && c.ran_dependencies("b");
        self.report.check("c", partly, "a branch reads main and is partly warm");
        Ok(())
    }

    /// d and f: both pull requests merge; the event of the second merge comes after its push.
    fn merges(&mut self) -> anyhow::Result<()> {
        // What still goes on after the last build must not be counted as the promotion's.
        self.quiet()?;
        say("the pull request of feature-a is merged");
        let (app, forge) = (&self.stage.app, &self.forge);
        let before = app.head("main")?;
        let merge = app.merge("feature-a")?;
        let line = self.digest("app.main")?;
        let (started, from) = (Instant::now(), self.stage.setup.requests()?.len());
        forge.pull_request(app, 1, "feature-a", "main", Some(&merge))?;
        let hot = self.line_moved("app.main", line.as_deref())?;
        self.report.figures.promotion_seconds = started.elapsed().as_secs_f64();
        // The last answers are written to the log a moment after they were given.
        thread::sleep(Duration::from_millis(300));
        let requests = self.stage.setup.requests()?;
        let of_promotion = |agent: &str| {
            agent.contains("app/receive-webhook") || agent.contains("app/promote-cache") || agent == "stoker"
        };
        let requests = requests.iter().skip(from).filter(|request| of_promotion(&request.agent));
        self.report.figures.promotion_requests = requests.count();
        let (app, forge) = (&self.stage.app, &self.forge);
        forge.pushed(app, "main", Some(&before))?;
        let first = self.next_build()?;
        self.line_moved("app.main", Some(&hot))?;

        say("the pull request of feature-b is merged; the forge tells of the merge only after the push");
        let (app, forge) = (&self.stage.app, &self.forge);
        let before = app.head("main")?;
        let merge = app.merge("feature-b")?;
        forge.pushed(app, "main", Some(&before))?;
        let second = self.next_build()?;
        self.quiet()?;
        let (lines, builds) = (self.tags()?, self.builds()?.len());
        let merged = |build: &Build| !build.ran_dependencies("a") && !build.ran_dependencies("b");
        self.report.check(
            "d",
            !first.ran_dependencies("a") && merged(&second) && first.line == "main" && second.line == "main",
            "after both merges main's first build runs no dependency step of either",
        );
        self.report.figures.main_after_merge_seconds = second.seconds;

        self.reference()?;
        let (app, forge) = (&self.stage.app, &self.forge);
        forge.pull_request(app, 2, "feature-b", "main", Some(&merge))?;
        self.quiet()?;
        self.report.check(
            "f",
            merged(&second) && self.tags()? == lines && self.builds()?.len() == builds,
            "a merge event that comes after the push to main gives the same result",
        );
        Ok(())
    }

    /// The reference: the same steps run again, with every layer in the local builder and Stoker not involved.
    fn reference(&mut self) -> anyhow::Result<()> {
        say("for comparison: the same steps with every layer in the local builder");
        let app = &self.stage.app;
        self.stage.local("POST", "machine", Some(&json!({ "fresh": false })))?;
        app.branch("reference", "main")?;
        let commit = app.change("reference", "version.txt", "local {run}\n")?;
        let mut order = json!({ "projectName": "app", "sourceVersion": commit });
        if self.stage.builder == Builder::Simulated {
            // It has no layers of its own, and reads those of a registry at no cost: main's cache is as good as local.
            let main = self.digest("app.main")?.context("main has no cache")?;
            let from =
                format!("--cache-from type=registry,ref={}/stoker/app@{main}", self.stage.setup.registry());
            order["environmentVariablesOverride"] =
                json!([{ "name": "STOKER_CACHE_FLAGS", "value": from, "type": "PLAINTEXT" }]);
        }
        let started = self.stage.codebuild("StartBuild", &order)?;
        let id =
            started["build"]["id"].as_str().context("the local CodeBuild did not start the reference")?;
        let build = self.wait("the reference to end", || {
            let builds = self.all_builds()?;
            let build = builds.iter().map(Build::read).find(|build| build.id == id);
            Ok(build.filter(|build| build.status != "IN_PROGRESS"))
        })?;
        ensure!(build.status == "SUCCEEDED", "the reference build ended with {}", build.status);
        self.report.figures.local_cache_seconds = build.seconds;
        println!("       {:.1} s, {} of {} steps reused", build.seconds, build.reused, build.steps);
        self.stage.local("POST", "machine", Some(&json!({ "fresh": true })))?;
        Ok(())
    }

    /// e: everything a second time.
    fn again(&mut self) -> anyhow::Result<()> {
        say("every webhook and every event of AWS is delivered a second time, in reverse order");
        self.quiet()?;
        let (tags, builds) = (self.tags()?, self.builds()?.len());
        let deliveries = self.forge.redeliver()?;
        let replayed = self.stage.local("POST", "replay", Some(&json!({ "order": "reverse" })))?;
        self.quiet()?;
        let same = self.tags()? == tags && self.builds()?.len() == builds;
        let events = replayed["replayed"].as_u64().unwrap_or_default();
        self.report.check(
            "e",
            same,
            &format!("{deliveries} deliveries and {events} events a second time change nothing"),
        );
        Ok(())
    }

    /// g and i: the nightly tick, and the cache mount that the build of that night saves.
    fn night(&mut self) -> anyhow::Result<()> {
        say("the night comes: a second project, docs, has never been built");
        let builds = self.builds()?.len();
        self.stage.tick("WarmQueueUrl")?;
        let build = self.next_build()?;
        self.quiet()?;
        let only = build.project == "docs" && self.builds()?.len() == builds + 1;
        self.report.check("g", only, "the nightly tick warms only what needs it");

        say("somebody pushes the first branch of docs, whose Dockerfile has a cache mount");
        let (docs, forge) = (&self.stage.docs, &self.forge);
        let mount = mount_tag()?;
        let saved = self.wait("the mount's line to begin", || Ok(self.tags_of(DOCS)?.remove(&mount)))?;
        docs.branch("typo", "main")?;
        docs.change("typo", "index.txt", "documentation, corrected {run}\n")?;
        forge.pushed(docs, "typo", None)?;
        let build = self.next_build()?;
        let (_, digits) = saved.split_once(':').unwrap_or_default();
        let is_given = build.mounts == format!("demo: given {}", digits.get(..12).unwrap_or_default());
        self.report.check("i", is_given, "a branch is given the cache mount that main's build saved");
        Ok(())
    }

    /// h: a branch is deleted while a build reads its cache.
    fn deletion(&mut self) -> anyhow::Result<()> {
        say("a pull request on top of feature-a is opened; feature-a is deleted while its build runs");
        let (app, forge) = (&self.stage.app, &self.forge);
        app.branch("stacked", "feature-a")?;
        app.change("stacked", "a/source.txt", "a, third version\n")?;
        forge.pull_request(app, 3, "stacked", "feature-a", None)?;
        let (seen, head) = (self.report.builds.len(), app.head("feature-a")?);
        self.wait("the build to run", || {
            let builds = self.all_builds()?;
            Ok((builds.len() > seen && self.is_running()?).then_some(()))
        })?;
        let before = self.tags()?;
        let (held, main) = (before.get("app.branch.feature-a").cloned(), before.get("app.main").cloned());
        let of_branch = |tags: &BTreeMap<String, String>| -> Vec<String> {
            tags.keys()
                .filter(|tag| tag.contains(".feature-a.") || tag.ends_with(".feature-a"))
                .cloned()
                .collect()
        };
        let (app, forge) = (&self.stage.app, &self.forge);
        app.delete("feature-a")?;
        forge.deleted(app, "feature-a", &head)?;
        let during = self.wait("the branch's history to go", || {
            let tags = self.tags()?;
            Ok((of_branch(&tags).len() < of_branch(&before).len()).then_some(tags))
        })?;
        let still_running = self.is_running()?;
        let leased = of_branch(&during) == ["app.branch.feature-a"]
            && during.get("app.branch.feature-a") == held.as_ref();
        let build = self.next_build()?;
        let unhurt = build.status == "SUCCEEDED"
            && build.reads.first().is_some_and(|read| read == "branch/feature-a")
            && !build.ran_dependencies("a");
        let after = self.wait("the leased cache to go", || {
            let tags = self.tags()?;
            Ok(of_branch(&tags).is_empty().then_some(tags))
        })?;
        let main_stays = main.is_some()
            && during.get("app.main") == main.as_ref()
            && after.get("app.main") == main.as_ref();
        self.report.check(
            "h",
            still_running && leased,
            "a deleted branch's caches go, but for the one that a running build holds",
        );
        self.report.check("h", unhurt, "that build is not hurt");
        self.report.check("h", main_stays, "then that one goes too, and main's stays");
        Ok(())
    }

    /// Waits for the next build to end, tells of it and notes it.
    fn next_build(&mut self) -> anyhow::Result<Build> {
        let seen: Vec<String> = self.report.builds.iter().map(|build| build.id.clone()).collect();
        let build = self.ended(|build| !seen.contains(&build.id))?;
        println!(
            "       {} {}: {} of {} steps reused, {:.1} s",
            build.project, build.line, build.reused, build.steps, build.seconds
        );
        ensure!(
            build.status == "SUCCEEDED" || build.status.is_empty(),
            "a build ended with {}",
            build.status
        );
        self.report.builds.push(build.clone());
        Ok(build)
    }

    fn ended(&self, wanted: impl Fn(&Build) -> bool) -> anyhow::Result<Build> {
        self.wait("a build to end", || {
            let mut builds = self.builds()?.into_iter();
            Ok(builds.find(|build| wanted(build) && build.status != "IN_PROGRESS"))
        })
    }

    /// Every build that Stoker started.
    fn builds(&self) -> anyhow::Result<Vec<Build>> {
        Ok(self.all_builds()?.iter().map(Build::read).filter(|build| !build.line.is_empty()).collect())
    }

    fn all_builds(&self) -> anyhow::Result<Vec<Value>> {
        let builds = self.stage.local("GET", "builds", None)?;
        builds.as_array().cloned().context("the local CodeBuild lists no builds")
    }

    fn is_running(&self) -> anyhow::Result<bool> {
        Ok(!self.stage.local("GET", "health", None)?["running"].is_null())
    }

    /// Where the tags of the application's cache repository point.
    fn tags(&self) -> anyhow::Result<BTreeMap<String, String>> {
        self.tags_of(APP)
    }

    fn tags_of(&self, repository: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let input = json!({ "repositoryName": repository });
        let images = self.stage.setup.aws().call("ecr", &format!("{ECR}.DescribeImages"), &input)?;
        let mut tags = BTreeMap::new();
        for image in images["imageDetails"].as_array().into_iter().flatten() {
            let digest = image["imageDigest"].as_str().unwrap_or_default();
            for tag in image["imageTags"].as_array().into_iter().flatten() {
                tags.insert(tag.as_str().unwrap_or_default().to_owned(), digest.to_owned());
            }
        }
        Ok(tags)
    }

    fn digest(&self, tag: &str) -> anyhow::Result<Option<String>> {
        Ok(self.tags()?.remove(tag))
    }

    /// Waits until a line has left a digest; answers where it points then.
    fn line_moved(&self, tag: &str, from: Option<&str>) -> anyhow::Result<String> {
        self.wait(&format!("{tag} to move"), || {
            Ok(self.digest(tag)?.filter(|digest| Some(digest.as_str()) != from))
        })
    }

    /// Waits until no queue holds a message, no build runs, and no function asks for anything.
    fn quiet(&self) -> anyhow::Result<()> {
        let mut last = (0, Instant::now());
        self.wait("everything to settle", || {
            let asked =
                self.stage.setup.requests()?.iter().filter(|request| request.is_from_function()).count();
            let busy = self.is_running()? || self.stage.waiting()? > 0;
            if busy || asked != last.0 {
                last = (asked, Instant::now());
            }
            Ok((last.1.elapsed() > QUIET).then_some(()))
        })
    }

    fn wait<T>(&self, what: &str, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
        let started = Instant::now();
        let mut reported = Instant::now();
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if started.elapsed() > PATIENCE {
                let builder =
                    if self.stage.builder == Builder::Docker { "Docker" } else { "the simulated builder" };
                let logs = self.stage.setup.dir().join("logs");
                bail!(
                    "waited {} s in vain for {what} with {builder}; see {}",
                    PATIENCE.as_secs(),
                    logs.display()
                );
            }
            if reported.elapsed() > Duration::from_secs(10) {
                println!("       ... waiting for {what}, {} s", started.elapsed().as_secs());
                reported = Instant::now();
            }
            thread::sleep(POLL);
        }
    }
}

/// Where main's line of the cache mount of docs is.
fn mount_tag() -> anyhow::Result<String> {
    let policy = Policy::parse("the demo's policy", super::POLICY)?;
    let project = policy.project(&ProjectName::new("docs")?).context("the policy names no docs")?;
    let mount = project.mounts().next().context("the policy names no mount")?;
    Ok(Tag::line(&mount.scope, &Line::Main).to_string())
}

fn say(what: &str) {
    println!("- {what}");
}
