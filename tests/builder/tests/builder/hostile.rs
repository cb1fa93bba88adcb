//! Caches that somebody has forged, on the real builder. Each is made from a real export by editing its
//! config, and merged into main's line by the real promotion; then main builds, again and again: what its
//! image holds is never the attacker's. Without what keeps it out, by a plain merge, it is: so each scene can
//! fail.

use std::path::Path;

use anyhow::{Context as _, ensure};
use axum::body::Bytes;
use buildkit_cache::{Cache, Kind, MANIFEST_MEDIA_TYPE, classify};
use jiff::{SignedDuration, Timestamp};
use scenarios::environment::{ISOLATED, TestEnvironment};
use serde_json::{Value, json};
use stoker_core::build_inputs::GivenInputs;
use stoker_core::names::{Commit, Digest, Line, ProjectName, Repository};
use stoker_core::policy::Policy;
use stoker_core::ports::{Build, BuildStatus};
use stoker_core::promote::{Outcome, PromotionTrigger, promote};

use crate::again::Group;
use crate::engine::{Engine, FAILED};
use crate::lines::Stage;
use crate::registry::Registry;
use crate::versions::{Versions, are_in};

/// How often main builds from each cache, unless `STOKER_HOSTILE` says otherwise.
const ROUNDS: u64 = 5;

/// After so many builds without what keeps it out the attacker's file has been seen.
const TRIES: u64 = 10;

const MAIN: Versions = [1; 4];
/// The commit whose head is somebody else's pull request.
const REVIEWED: Versions = [1, 2, 1, 1];
/// What the attacker wants to be in main's image, in the place of what `MAIN` and `REVIEWED` make of their sources.
const EVIL: Versions = [1, 666, 1, 1];

/// How a cache is forged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forged {
    /// The results of the head of another's pull request, which the attacker's branch has built, too.
    SameCommit,
    /// A record that repeats a step of main's with one alternative more.
    OneMore,
    /// A forged result for a step of main's, in the cache of the merged commit, which main's own build is
    /// given before the promotion.
    CommitCache,
    /// Another size for a layer of main's.
    Size,
}

const KINDS: [Forged; 4] = [Forged::CommitCache, Forged::Size, Forged::SameCommit, Forged::OneMore];

/// An export, as JSON, with its blobs.
#[derive(Clone)]
struct Export {
    manifest: Value,
    config: Value,
    blobs: Vec<Bytes>,
}

impl Export {
    fn read(registry: &Registry, tag: &str) -> anyhow::Result<Self> {
        let (manifest, config) = registry.raw(tag)?;
        let digests = manifest["layers"].as_array().context("no layers")?.iter();
        let blobs = digests.map(|layer| registry.blob(layer["digest"].as_str().unwrap_or_default()));
        let blobs = blobs.map(|blob| blob.map(Bytes::from)).collect::<anyhow::Result<_>>()?;
        Ok(Self { manifest, config, blobs })
    }

    /// The record of the step that copies what stage `a` made, and the number of the layer that it results in.
    fn copied(&self, token: &str, source: u32) -> anyhow::Result<(usize, usize)> {
        let (path, content) = (format!("{token}/a"), format!("{token} compile a {source}\n"));
        let has = |blob: &Bytes, text: &str| blob.windows(text.len()).any(|window| window == text.as_bytes());
        let layers = self.config["layers"].as_array().context("no layers")?;
        let is_it = |layer: &Value| {
            let of = |blob: &&Bytes| layer["blob"] == json!(Digest::of(blob));
            self.blobs.iter().find(of).is_some_and(|blob| has(blob, &path) && has(blob, &content))
        };
        let layer = layers.iter().position(is_it).context("no layer holds the file")?;
        let records = self.config["records"].as_array().context("no records")?;
        let results = |record: &Value| record["layers"].as_array().cloned().unwrap_or_default();
        let record =
            records.iter().position(|record| results(record).iter().any(|result| result["layer"] == layer));
        Ok((record.context("no record has the layer")?, layer))
    }

    /// This export with the attacker's result, or another size, for the step that copies.
    fn forged(&self, kind: Forged, token: &str, source: u32, evil: &Self) -> anyhow::Result<Self> {
        let (record, own_layer) = self.copied(token, source)?;
        let (_, evil_layer) = evil.copied(token, EVIL[1])?;
        let mut forged = self.clone();
        if kind == Forged::Size {
            let own = self.config["layers"][own_layer]["blob"].clone();
            for layer in forged.manifest["layers"].as_array_mut().into_iter().flatten() {
                if layer["digest"] == own {
                    // Of two descriptors a plain merge takes the one whose JSON comes first.
                    layer["size"] = 1.into();
                }
            }
            return Ok(forged);
        }
        let blob = evil.config["layers"][evil_layer]["blob"].clone();
        let described = evil.manifest["layers"].as_array().into_iter().flatten();
        let described = described.clone().find(|layer| layer["digest"] == blob).context("no descriptor")?;
        let push = |list: &mut Value, value: Value| {
            let list = list.as_array_mut().context("no list")?;
            list.push(value);
            anyhow::Ok(list.len() - 1)
        };
        push(&mut forged.manifest["layers"], described.clone())?;
        forged.blobs.extend(evil.blobs.iter().find(|bytes| json!(Digest::of(bytes)) == blob).cloned());
        let layer = push(&mut forged.config["layers"], json!({ "blob": blob, "parent": -1 }))?;
        let newest = Timestamp::now() + SignedDuration::from_hours(1);
        if kind == Forged::OneMore {
            let junk = push(&mut forged.config["records"], json!({ "digest": Digest::of(b"junk") }))?;
            for input in forged.config["records"][record]["inputs"].as_array_mut().context("no inputs")? {
                push(input, json!({ "link": junk }))?;
            }
        }
        forged.config["records"][record]["layers"] = json!([{ "layer": layer, "createdAt": newest }]);
        Ok(forged)
    }

    /// As a builder would push it: its manifest, and its blobs with the config first.
    fn bytes(&self) -> (Bytes, Vec<Bytes>) {
        let config = Bytes::from(self.config.to_string());
        let mut manifest = self.manifest.clone();
        manifest["config"]["digest"] = json!(Digest::of(&config));
        manifest["config"]["size"] = config.len().into();
        (Bytes::from(manifest.to_string()), [config].into_iter().chain(self.blobs.iter().cloned()).collect())
    }

    fn cache(&self) -> anyhow::Result<Cache> {
        let (manifest, blobs) = self.bytes();
        match classify(&manifest) {
            Kind::Cache(manifest) => Ok(Cache::parse(&manifest, &blobs[0])?),
            Kind::Other { why } => anyhow::bail!(why),
        }
    }
}

/// Promotion as it is, in an account in memory: builds of lines end one after the other.
struct Account(TestEnvironment, u32);

impl Account {
    fn new() -> Self {
        let env = TestEnvironment::with_policy(ISOLATED);
        env.account.set_now(Timestamp::now());
        Self(env, 0)
    }

    async fn promote(&self, trigger: PromotionTrigger) -> anyhow::Result<()> {
        let policy = Policy::parse("the scenes' policy", ISOLATED)?;
        let (account, triggers) = (&self.0.account, [trigger]);
        let promoted = promote(account, &policy, &triggers, account.now());
        let promoted = account.invoke("promote-cache", None, promoted).await.context("it was killed")?;
        let is_done =
            |outcome: &Outcome| matches!(outcome, Outcome::Updated { .. } | Outcome::Unchanged { .. });
        ensure!(promoted.iter().flatten().flatten().any(is_done), "{promoted:?}");
        Ok(())
    }

    /// A build of this commit ends with this export.
    async fn build(&mut self, line: &Line, commit: &Commit, export: &Export) -> anyhow::Result<()> {
        self.1 += 1;
        let (env, tag) = (&self.0, format!("app.export.{}", self.1));
        let (manifest, blobs) = export.bytes();
        env.account.push(&env.builds_repository(), &tag, MANIFEST_MEDIA_TYPE, manifest, blobs);
        let (project, now) = (ProjectName::new("app")?, env.account.now());
        let inputs = GivenInputs {
            commit: Some(commit.clone()),
            exports: vec![tag],
            ..GivenInputs::of_line(line.clone())
        };
        let id = format!("app:{}", self.1);
        env.account.builds.borrow_mut().push(Build {
            id: id.clone(),
            project,
            status: BuildStatus::Succeeded,
            started_at: now - SignedDuration::from_mins(1),
            ended_at: Some(now),
            source_version: Some(commit.to_string()),
            resolved_commit: Some(commit.to_string()),
            inputs: Some(inputs),
            claims: false,
        });
        self.promote(PromotionTrigger::Built { build: id }).await
    }

    /// A branch is merged into main; what main's line holds then.
    async fn merge(&self, line: &Line, head: &Commit) -> anyhow::Result<Cache> {
        let repository = Repository::new("github.com/example/app")?;
        let head = Some((line.clone(), head.clone().into()));
        let merged =
            PromotionTrigger::Merged { repository, line: Line::Main, commits: Vec::new(), head, at: None };
        self.promote(merged).await?;
        Ok(self.0.line("main").context("there is no line main")?.1)
    }
}

/// One scene: main's line after the merge, and what the forged cache does where nothing keeps it out.
async fn scene(
    kind: Forged,
    token: &str,
    [main, reviewed, evil]: [&Export; 3],
) -> anyhow::Result<(Cache, Cache)> {
    let commit = |number: u32| Commit::new(format!("{number:040x}"));
    let branch = |name: &str| Line::parse(&format!("branch/{name}"));
    let (mut account, evil_line) = (Account::new(), branch("evil")?);
    account.build(&Line::Main, &commit(1)?, main).await?;
    let (forged, merged) = if kind == Forged::SameCommit {
        let forged = reviewed.forged(kind, token, REVIEWED[1], evil)?;
        let reviewed_line = branch("reviewed")?;
        account.build(&reviewed_line, &commit(2)?, reviewed).await?;
        account.build(&evil_line, &commit(2)?, &forged).await?;
        (forged, account.merge(&reviewed_line, &commit(2)?).await?)
    } else {
        let forged = main.forged(kind, token, MAIN[1], evil)?;
        account.build(&evil_line, &commit(3)?, &forged).await?;
        (forged, account.merge(&evil_line, &commit(3)?).await?)
    };
    // Beside main's own, as main's build would be given it, or merged with that.
    let forged = forged.cache()?;
    let plain = if kind == Forged::CommitCache { forged } else { Cache::merge([&main.cache()?, &forged]) };
    Ok((merged, plain))
}

/// Every kind: as often as is asked, and then once without what keeps it out.
pub(crate) fn scenes<'a>(
    seed: u64,
    engine: &'a Engine,
    registry: &'a Registry,
    dir: &Path,
) -> anyhow::Result<(String, Option<Group<'a>>)> {
    let rounds = crate::number("STOKER_HOSTILE")?.unwrap_or(ROUNDS);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (number, kind) in (0..).zip(KINDS) {
        // What a builder has of one scene serves no other, nor of an earlier run: of a build that could not
        // pull a layer it keeps what that held for good.
        let seed = seed ^ (number << 32) ^ u64::try_from(Timestamp::now().as_millisecond())?;
        let mut stage = Stage::new(seed, engine, registry, &dir.join(format!("{kind:?}")))?;
        let mut exports = Vec::new();
        for (name, versions) in [("main", MAIN), ("reviewed", REVIEWED), ("evil", EVIL)] {
            stage.build(versions, &[], Some(name))?;
            stage.exported(name)?;
            exports.push(Export::read(registry, &stage.tag(name))?);
        }
        let [main, reviewed, evil] = &exports[..] else { anyhow::bail!("three are built") };
        let (merged, plain) = runtime.block_on(scene(kind, stage.token(), [main, reviewed, evil]))?;
        stage.put("merged", &merged)?;
        stage.put("plain", &plain)?;
        let [own, source] = [MAIN, REVIEWED].map(|versions| versions[1]);
        let source = if kind == Forged::SameCommit { source } else { own };
        // The last step is another each time, so that what it is put upon is taken from the cache.
        let next = |round: u64, source| [1, source, 1, u32::try_from(round + 10).unwrap_or_default()];
        for round in 1..=rounds {
            let built = stage.build(next(round, source), &["merged"], None);
            built.with_context(|| format!("{kind:?}, round {round}"))?;
        }
        // Of several results BuildKit does not always take the same one.
        let mut harms = false;
        for round in 0..TRIES {
            let next = next(rounds + 1 + round, source);
            let imports: &[&str] = if kind == Forged::CommitCache { &["main", "plain"] } else { &["plain"] };
            harms = match stage.attempt(next, imports) {
                Ok(built) => are_in(stage.token(), [next[0], EVIL[1], next[2], next[3]], &built),
                Err(error) if kind == Forged::Size => error.to_string().contains(FAILED),
                Err(error) => return Err(error.context(format!("{kind:?}, a plain merge"))),
            };
            if harms {
                break;
            }
        }
        ensure!(harms, "{kind:?}: a plain merge does no harm, so the scene shows nothing");
        if kind != Forged::Size {
            stage.free()?;
        }
    }
    let builds = rounds * KINDS.len() as u64;
    Ok((format!("{builds} builds of main after merges of {} forged caches", KINDS.len()), None))
}
