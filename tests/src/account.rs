//! An AWS account in memory: every port, and faults on demand.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use stoker::error::{CallError, Failure};
use stoker::event::Event;
use stoker::handout::Handed;
use stoker::names::{CacheRepository, Digest, ProjectName, Tag};
use stoker::ports::{
    Build, BuildOrder, BuildStatus, Catalogue, CheckBlobs, FindDigests, Image, KeepFacts, ListProjects,
    ListedImage, MAX_BUILDS, MountBlobs, Mounted, Ordered, Publish, ReadBlobs, ReadBuilds, ReadImages,
    ReadManifests, ReadSecrets, StartBuilds, StopBuilds, WriteImages,
};

/// How one call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and nothing happened.
    Before(Failure),
    /// It happened, and the answer was lost.
    After(Failure),
}

/// An image as the registry keeps it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The manifest.
    pub image: Image,
    /// Its tags.
    pub tags: Vec<String>,
    /// When it was first pushed.
    pub pushed_at: Timestamp,
}

/// The account. Its clones are the same account, so that others can act in it while somebody waits.
#[derive(Clone, Default)]
pub struct Account(Rc<State>);

/// What an account holds.
#[derive(Default)]
pub struct State {
    now: Cell<Timestamp>,
    images: RefCell<BTreeMap<CacheRepository, Vec<Stored>>>,
    blobs: RefCell<HashMap<Digest, Bytes>>,
    /// Which repository has which blob.
    held: RefCell<BTreeSet<(CacheRepository, Digest)>>,
    /// Repositories whose tags never move.
    pub immutable: RefCell<BTreeSet<CacheRepository>>,
    /// Whether a blob goes the moment that no manifest of its repository names it any more. ECR takes its time.
    pub sweeps_at_once: Cell<bool>,
    /// Where retention keeps what manifests say.
    pub facts: Option<CacheRepository>,
    /// Whether the registry refuses to mount.
    pub mounts_nothing: Cell<bool>,
    /// Every build, the oldest first.
    pub builds: RefCell<Vec<Build>>,
    /// What each of them was ordered with, by its id.
    pub orders: RefCell<HashMap<String, BuildOrder>>,
    tokens: RefCell<HashMap<String, (Timestamp, String)>>,
    /// How many builds may run at once; `None` is as many as one likes.
    pub limit: Cell<Option<usize>>,
    /// The CodeBuild projects there are.
    pub projects: RefCell<Vec<ProjectName>>,
    /// Events put on the bus and not yet taken.
    pub bus: RefCell<Vec<Event>>,
    /// Valid webhook secrets.
    pub secrets: RefCell<Vec<Vec<u8>>>,
    /// Every call so far, such as `ecr:BatchGetImage`.
    pub calls: RefCell<Vec<&'static str>>,
    /// The function that acts.
    pub acting: Cell<&'static str>,
    /// What each function has called.
    pub called: RefCell<BTreeMap<&'static str, BTreeSet<&'static str>>>,
    /// Whether whoever reads or writes images lets others go first, so that what runs at once meets.
    pub yields: Cell<bool>,
    /// Faults by the number of the call, counted from 0.
    pub faults: RefCell<HashMap<usize, Fault>>,
}

impl Deref for Account {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl Account {
    /// An account in which retention keeps what manifests say.
    #[must_use]
    pub fn with_facts_in(repository: CacheRepository) -> Self {
        Self(Rc::new(State { facts: Some(repository), ..State::default() }))
    }

    /// Sets the clock.
    pub fn set_now(&self, now: Timestamp) {
        self.now.set(now);
    }

    /// The clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now.get()
    }

    /// Where each tag of a repository points.
    #[must_use]
    pub fn tags(&self, repository: &CacheRepository) -> BTreeMap<String, Digest> {
        let images = self.images.borrow();
        let images = images.get(repository).into_iter().flatten();
        images.flat_map(|s| s.tags.iter().map(|tag| (tag.clone(), s.image.digest.clone()))).collect()
    }

    /// The image under a tag, or with a digest.
    #[must_use]
    pub fn image(&self, repository: &CacheRepository, reference: &str) -> Option<Image> {
        let images = self.images.borrow();
        let mut images = images.get(repository).into_iter().flatten();
        let is_asked = |stored: &&Stored| {
            stored.image.digest.to_string() == reference || stored.tags.iter().any(|tag| tag == reference)
        };
        images.find(is_asked).map(|stored| stored.image.clone())
    }

    /// A blob, whoever asks.
    #[must_use]
    pub fn raw_blob(&self, digest: &Digest) -> Option<Bytes> {
        self.blobs.borrow().get(digest).cloned()
    }

    /// Whether a repository has a blob.
    #[must_use]
    pub fn has_blob(&self, repository: &CacheRepository, digest: &Digest) -> bool {
        self.held.borrow().contains(&(repository.clone(), digest.clone()))
    }

    /// A repository loses a blob, as no registry should.
    pub fn lose_blob(&self, repository: &CacheRepository, digest: &Digest) {
        self.held.borrow_mut().remove(&(repository.clone(), digest.clone()));
    }

    fn keep_blob(&self, repository: &CacheRepository, blob: Bytes) {
        let digest = Digest::of(&blob);
        self.held.borrow_mut().insert((repository.clone(), digest.clone()));
        self.blobs.borrow_mut().insert(digest, blob);
    }

    /// What a build (or anybody else with push rights) does. False if the tag is taken and does not move.
    pub fn push(
        &self,
        repository: &CacheRepository,
        tag: &str,
        media_type: &str,
        manifest: Bytes,
        blobs: Vec<Bytes>,
    ) -> bool {
        for blob in blobs {
            self.keep_blob(repository, blob);
        }
        let digest = Digest::of(&manifest);
        let mut repositories = self.images.borrow_mut();
        let images = repositories.entry(repository.clone()).or_default();
        let is_taken = images.iter().any(|stored| stored.tags.iter().any(|held| held == tag));
        if is_taken && self.immutable.borrow().contains(repository) {
            return false;
        }
        for stored in images.iter_mut() {
            stored.tags.retain(|held| held != tag);
        }
        if let Some(stored) = images.iter_mut().find(|stored| stored.image.digest == digest) {
            stored.tags.push(tag.to_owned());
        } else {
            let image = Image { digest, media_type: media_type.to_owned(), manifest };
            images.push(Stored { image, tags: vec![tag.to_owned()], pushed_at: self.now() });
        }
        true
    }

    /// Takes the blobs of images that went from a repository, but for those that others of its images name.
    fn sweep(&self, repository: &CacheRepository, gone: &[Stored]) {
        let images = self.images.borrow();
        let left = images.get(repository).into_iter().flatten();
        let left: BTreeSet<Digest> = left.flat_map(|stored| named(&stored.image.manifest)).collect();
        let mut held = self.held.borrow_mut();
        for digest in gone.iter().flat_map(|stored| named(&stored.image.manifest)) {
            if !left.contains(&digest) {
                held.remove(&(repository.clone(), digest));
            }
        }
    }

    async fn let_others_go(&self) {
        if self.yields.get() {
            tokio::task::yield_now().await;
        }
    }

    fn call<T>(
        &self,
        operation: &'static str,
        effect: impl FnOnce() -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let number = self.calls.borrow().len();
        self.calls.borrow_mut().push(operation);
        self.called.borrow_mut().entry(self.acting.get()).or_default().insert(operation);
        let fault = self.faults.borrow_mut().remove(&number);
        let error =
            |failure| Err(CallError::new(operation, "the account in memory", failure, "an injected fault"));
        match fault {
            Some(Fault::Before(failure)) => error(failure),
            Some(Fault::After(failure)) => effect().and_then(|_| error(failure)),
            None => effect(),
        }
    }
}

impl ReadImages for Account {
    async fn images(
        &self,
        repository: &CacheRepository,
        tags: &[Tag],
    ) -> Result<Vec<Option<Image>>, CallError> {
        self.let_others_go().await;
        self.call("ecr:BatchGetImage", || {
            assert!(tags.len() <= 100, "one request names at most 100 images");
            Ok(tags.iter().map(|tag| self.image(repository, tag.as_str())).collect())
        })
    }
}

impl ReadBlobs for Account {
    async fn blob(
        &self,
        repository: &CacheRepository,
        digest: &Digest,
        limit: usize,
    ) -> Result<Bytes, CallError> {
        self.let_others_go().await;
        let operation = "registry:GetBlob";
        self.call(operation, || {
            let missing = || CallError::new(operation, digest, Failure::NotFound, "no such blob");
            let blob = self.raw_blob(digest).filter(|_| self.has_blob(repository, digest));
            blob.filter(|blob| blob.len() <= limit).ok_or_else(missing)
        })
    }
}

impl WriteImages for Account {
    async fn put_blob(
        &self,
        repository: &CacheRepository,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<(), CallError> {
        self.let_others_go().await;
        self.call("registry:PutBlob", || {
            assert_eq!(*digest, Digest::of(&bytes), "a registry checks the digest");
            self.keep_blob(repository, bytes);
            Ok(())
        })
    }

    async fn put_image(
        &self,
        repository: &CacheRepository,
        tag: &Tag,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<(), CallError> {
        let operation = "registry:PutManifest";
        self.let_others_go().await;
        self.call(operation, || {
            if named(&manifest).iter().any(|digest| !self.has_blob(repository, digest)) {
                return Err(CallError::new(operation, tag, Failure::Refused, "LayersNotFound"));
            }
            let refused = || CallError::new(operation, tag, Failure::Refused, "ImageTagAlreadyExists");
            self.push(repository, tag.as_str(), media_type, manifest, Vec::new())
                .then_some(())
                .ok_or_else(refused)
        })
    }
}

impl KeepFacts for Account {
    fn facts_repository(&self) -> Option<&CacheRepository> {
        self.facts.as_ref()
    }
}

impl MountBlobs for Account {
    async fn mount(
        &self,
        to: &CacheRepository,
        from: &CacheRepository,
        digest: &Digest,
    ) -> Result<Mounted, CallError> {
        self.let_others_go().await;
        self.call("registry:MountBlob", || {
            if !self.has_blob(from, digest) {
                return Ok(Mounted::Missing);
            }
            if self.mounts_nothing.get() {
                return Ok(Mounted::Refused);
            }
            self.held.borrow_mut().insert((to.clone(), digest.clone()));
            Ok(Mounted::Done)
        })
    }
}

impl CheckBlobs for Account {
    async fn unavailable(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, CallError> {
        self.call("ecr:BatchCheckLayerAvailability", || {
            Ok(digests.iter().filter(|digest| !self.has_blob(repository, digest)).cloned().collect())
        })
    }
}

impl ReadManifests for Account {
    async fn manifests(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<(Digest, Bytes)>, CallError> {
        self.let_others_go().await;
        self.call("ecr:BatchGetImage", || {
            assert!(digests.len() <= 100, "one request names at most 100 images");
            let images = self.images.borrow();
            let images = images.get(repository).into_iter().flatten().map(|stored| &stored.image);
            let asked = images.filter(|image| digests.contains(&image.digest));
            Ok(asked.map(|image| (image.digest.clone(), image.manifest.clone())).collect())
        })
    }
}

/// The blobs that an image's manifest names.
#[must_use]
pub fn named(manifest: &[u8]) -> Vec<Digest> {
    let parsed: serde_json::Value = serde_json::from_slice(manifest).expect("a manifest is JSON");
    let layers = parsed["layers"].as_array().expect("a manifest has layers").iter();
    let descriptors = layers.chain([&parsed["config"]]);
    descriptors
        .map(|found| Digest::new(found["digest"].as_str().expect("a digest")).expect("a digest"))
        .collect()
}

fn listed(stored: &Stored) -> ListedImage {
    ListedImage {
        digest: stored.image.digest.clone(),
        tags: stored.tags.clone(),
        pushed_at: stored.pushed_at,
        bytes: 0,
        pulled_at: None,
        is_archived: false,
    }
}

impl Catalogue for Account {
    async fn list(&self, repository: &CacheRepository) -> Result<Vec<ListedImage>, CallError> {
        self.let_others_go().await;
        self.call("ecr:DescribeImages", || {
            let images = self.images.borrow();
            Ok(images.get(repository).into_iter().flatten().map(listed).collect())
        })
    }

    async fn describe(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<ListedImage>, CallError> {
        self.let_others_go().await;
        self.call("ecr:DescribeImages", || {
            assert!(digests.len() <= 100, "one request names at most 100 images");
            let images = self.images.borrow();
            let images = images.get(repository).into_iter().flatten();
            Ok(images.filter(|stored| digests.contains(&stored.image.digest)).map(listed).collect())
        })
    }

    async fn delete(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<(Digest, String)>, CallError> {
        self.let_others_go().await;
        self.call("ecr:BatchDeleteImage", || {
            assert!(digests.len() <= 100, "one request names at most 100 images");
            let mut gone = Vec::new();
            if let Some(images) = self.images.borrow_mut().get_mut(repository) {
                let is_named = |stored: &mut Stored| digests.contains(&stored.image.digest);
                gone.extend(images.extract_if(.., is_named));
            }
            if self.sweeps_at_once.get() {
                self.sweep(repository, &gone);
            }
            Ok(Vec::new())
        })
    }
}

impl StartBuilds for Account {
    async fn start(&self, order: &BuildOrder) -> Result<Ordered, CallError> {
        self.call("codebuild:StartBuild", || {
            if !self.projects.borrow().contains(&order.project) {
                return Ok(Ordered::NoSuchProject);
            }
            let mut tokens = self.tokens.borrow_mut();
            let mut orders = self.orders.borrow_mut();
            if let Some((at, id)) = tokens.get(&order.token)
                && self.now().duration_since(*at) < jiff::SignedDuration::from_mins(5)
            {
                let same = orders.get(id) == Some(order);
                return Ok(if same { Ordered::Started(id.clone()) } else { Ordered::AlreadyOrdered });
            }
            let running = |build: &&Build| build.status == BuildStatus::InProgress;
            if self
                .limit
                .get()
                .is_some_and(|limit| self.builds.borrow().iter().filter(running).count() >= limit)
            {
                let operation = "codebuild:StartBuild";
                return Err(CallError::new(operation, &order.project, Failure::Throttled, "a limit"));
            }
            let mut builds = self.builds.borrow_mut();
            let id = format!("{}:{}", order.project, builds.len() + 1);
            tokens.insert(order.token.clone(), (self.now(), id.clone()));
            orders.insert(id.clone(), order.clone());
            builds.push(Build {
                id: id.clone(),
                project: order.project.clone(),
                status: BuildStatus::InProgress,
                started_at: self.now(),
                ended_at: None,
                source_version: order.source_version.clone(),
                resolved_commit: order.source_version.as_deref().map(|version| {
                    let pinned = version.split_once("^{").and_then(|(_, commit)| commit.strip_suffix('}'));
                    pinned.unwrap_or(version).to_owned()
                }),
                handed: Handed::read(&order.environment.iter().cloned().collect()),
                claims: false,
            });
            Ok(Ordered::Started(id))
        })
    }
}

impl StopBuilds for Account {
    async fn stop(&self, id: &str) -> Result<(), CallError> {
        self.call("codebuild:StopBuild", || {
            let mut builds = self.builds.borrow_mut();
            let running = |build: &&mut Build| build.id == id && build.status == BuildStatus::InProgress;
            if let Some(build) = builds.iter_mut().find(running) {
                build.status = BuildStatus::Stopped;
                build.ended_at = Some(self.now());
            }
            Ok(())
        })
    }
}

impl FindDigests for Account {
    async fn digest_of(&self, repository: &CacheRepository, tag: &str) -> Result<Option<Digest>, CallError> {
        self.call("ecr:DescribeImages", || Ok(self.image(repository, tag).map(|image| image.digest)))
    }
}

impl ReadBuilds for Account {
    async fn recent(
        &self,
        project: &ProjectName,
        since: Option<Timestamp>,
    ) -> Result<Vec<Arc<Build>>, CallError> {
        self.let_others_go().await;
        self.call("codebuild:ListBuildsForProject", || {
            let builds = self.builds.borrow();
            let newest = builds.iter().rev().filter(|build| build.project == *project).take(MAX_BUILDS);
            let is_asked = |(index, build): &(usize, &Build)| {
                *index < 100 || since.is_some_and(|since| build.started_at >= since)
            };
            Ok(newest.enumerate().take_while(is_asked).map(|(_, build)| Arc::new(build.clone())).collect())
        })
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Build>, CallError> {
        self.call("codebuild:BatchGetBuilds", || {
            let builds = self.builds.borrow();
            Ok(builds.iter().filter(|build| ids.contains(&build.id)).cloned().collect())
        })
    }
}

impl ListProjects for Account {
    async fn projects(&self) -> Result<Vec<ProjectName>, CallError> {
        self.call("codebuild:ListProjects", || Ok(self.projects.borrow().clone()))
    }
}

impl Publish for Account {
    async fn publish(&self, events: &[Event]) -> Result<(), CallError> {
        for events in events.chunks(10) {
            self.call("events:PutEvents", || {
                self.bus.borrow_mut().extend_from_slice(events);
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl ReadSecrets for Account {
    async fn webhook_secrets(&self) -> Result<Vec<Vec<u8>>, CallError> {
        self.call("secretsmanager:GetSecretValue", || Ok(self.secrets.borrow().clone()))
    }
}
