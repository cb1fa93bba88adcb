//! An AWS account in memory: every port, each call under the policy of the acting function's role, and faults
//! on demand.

mod requests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::{pending, poll_fn};
use std::ops::Deref;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use stoker_core::build_inputs::GivenInputs;
use stoker_core::error::{CallError, Failure};
use stoker_core::event::Event;
use stoker_core::names::{CacheRepository, Commit, Digest, ProjectName, Tag};
use stoker_core::ports::{
    Build, BuildOrder, BuildStatus, Catalogue, CheckBlobs, FindDigests, Image, ListProjects, ListedImage,
    MAX_BUILDS, MakeRepositories, MountBlobs, Mounted, Ordered, Pause, Publish, ReadBlobs, ReadBuilds,
    ReadImages, ReadManifests, ReadSecrets, StartBuilds, StopBuilds, WriteImages,
};

use self::requests::record;
use crate::iam::{self, Deployed};

/// How one call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and nothing happened.
    Before(Failure),
    /// It happened, and the answer was lost.
    After(Failure),
    /// The function is killed before it happened.
    KilledBefore,
    /// The function is killed after it happened.
    KilledAfter,
    /// Only a part of it happens, where a call is of many things.
    Partial,
    /// It answers as if what happened last had not, where it only reads. The account has to remember that.
    Stale,
    /// It takes so long, and then happens.
    Slow(Duration),
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

/// Whoever is no function of the stack, such as builds: their roles are not judged here.
pub const OTHERS: &str = "others";

/// Calls that only read what AWS need not have brought everywhere yet.
const READS: [&str; 4] =
    ["codebuild:BatchGetBuilds", "codebuild:ListBuildsForProject", "ecr:BatchGetImage", "ecr:DescribeImages"];

type Images = BTreeMap<CacheRepository, Vec<Stored>>;

/// The account. Its clones are the same account, so that others can act in it while somebody waits.
#[derive(Clone, Default)]
pub struct Account(Rc<State>);

/// What an account holds.
#[derive(Default)]
pub struct State {
    now: Cell<Timestamp>,
    images: RefCell<Images>,
    blobs: RefCell<HashMap<Digest, Bytes>>,
    /// Which repository has which blob.
    held: RefCell<BTreeSet<(CacheRepository, Digest)>>,
    /// Repositories whose tags never move.
    pub immutable: RefCell<BTreeSet<CacheRepository>>,
    /// Whether functions make the repositories that are missing.
    pub makes_repositories: Cell<bool>,
    /// Those that they made, each with whether it is immutable.
    pub made: RefCell<BTreeMap<CacheRepository, bool>>,
    /// Whether a blob goes the moment that no manifest of its repository names it any more. ECR takes its time.
    pub reconciles_at_once: Cell<bool>,
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
    acting: Cell<&'static str>,
    /// Whether the function that acts has been killed.
    is_killed: Cell<bool>,
    /// The template in force; that of a policy with neither repositories for builds nor base images, unless said.
    deployed: RefCell<Option<Arc<Deployed>>>,
    /// What each function did: its action, and the subjects of that.
    touched: RefCell<HashMap<(&'static str, &'static str), BTreeSet<String>>>,
    /// What functions did that their roles do not let them. The account's end ends the test unless they are taken.
    pub denied: RefCell<Vec<String>>,
    /// Whether it remembers what there was before the last change.
    pub remembers: Cell<bool>,
    before: RefCell<(Images, Vec<Build>)>,
    /// Whether the call that is being made does only a part of what it is to do.
    is_partial: Cell<bool>,
    /// Whether whoever reads or writes images lets others go first, so that what runs at once meets.
    pub yields: Cell<bool>,
    /// Faults by the number of the call, counted from 0.
    pub faults: RefCell<HashMap<usize, Fault>>,
    /// How long every call takes, of functions too, and how many of an operation AWS lets through in a
    /// second: the others wait.
    pub latency: Cell<Duration>,
    /// See `latency`.
    pub per_second: RefCell<HashMap<&'static str, u32>>,
    /// When the next call of such an operation goes through.
    next: RefCell<HashMap<&'static str, tokio::time::Instant>>,
    /// Faults of every call of an operation by a function, for as long as they are here.
    pub outages: RefCell<HashMap<(&'static str, &'static str), Fault>>,
}

impl Deref for Account {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let denied = self.denied.take();
        assert!(denied.is_empty() || std::thread::panicking(), "roles do not allow {denied:#?}");
    }
}

/// The IAM actions that a call of the ports needs, and what each of them is about.
fn needs<'a>(call: &'static str, subjects: &[&'a str]) -> Vec<(&'static str, &'a str)> {
    let token = ("ecr:GetAuthorizationToken", "*");
    match (call, subjects) {
        // The adapter lists ids and then asks for the builds.
        ("codebuild:ListBuildsForProject", [project]) => {
            vec![(call, project), ("codebuild:BatchGetBuilds", project)]
        }
        ("registry:GetBlob", [repository]) => vec![token, ("ecr:GetDownloadUrlForLayer", repository)],
        ("registry:PutBlob", [repository]) => vec![
            token,
            ("ecr:BatchCheckLayerAvailability", repository),
            ("ecr:InitiateLayerUpload", repository),
            ("ecr:UploadLayerPart", repository),
            ("ecr:CompleteLayerUpload", repository),
        ],
        // A blob is mounted from where it can be read.
        ("registry:MountBlob", [to, from]) => {
            vec![
                token,
                ("ecr:InitiateLayerUpload", to),
                ("ecr:GetDownloadUrlForLayer", from),
                // One that is not mounted is looked for.
                ("ecr:BatchCheckLayerAvailability", from),
            ]
        }
        ("registry:PutManifest", [repository]) => vec![token, ("ecr:PutImage", repository)],
        _ => subjects.iter().map(|subject| (call, *subject)).collect(),
    }
}

impl Account {
    /// Deploys the template anew.
    pub fn deploy(&self, deployed: Arc<Deployed>) {
        self.touched.borrow_mut().clear();
        *self.deployed.borrow_mut() = Some(deployed);
    }

    /// The template in force.
    #[must_use]
    pub fn deployed(&self) -> Arc<Deployed> {
        self.deployed.borrow_mut().get_or_insert_with(|| iam::deployed(false, false)).clone()
    }

    /// What each function's role was needed for so far: actions and the ARNs of what they are about.
    #[must_use]
    pub fn touched(&self) -> BTreeMap<&'static str, BTreeSet<(&'static str, String)>> {
        let deployed = self.deployed();
        let mut touched: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for ((function, action), subjects) in self.touched.borrow().iter() {
            let arns = subjects.iter().map(|subject| (*action, deployed.subject(action, subject)));
            touched.entry(*function).or_default().extend(arns);
        }
        touched
    }

    /// A function handles what came from a queue, or was invoked, with its role's rights; nothing if it was killed.
    pub async fn invoke<F: Future>(
        &self,
        function: &'static str,
        queue: Option<&str>,
        handling: F,
    ) -> Option<F::Output> {
        let deployed = self.deployed();
        let known = deployed.functions.get(function).expect("a function of the template");
        for (action, arn) in &known.always {
            self.judge(function, action, arn);
        }
        if let Some(queue) = queue {
            assert!(known.queues.contains(queue), "{function} is told of {queue}");
            let arn = deployed.arn_of(queue);
            for action in ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"] {
                self.judge(function, action, &arn);
            }
        }
        self.act(function, Box::pin(handling)).await
    }

    /// Somebody does something: a function with its role's rights, or [`OTHERS`]; nothing if it was killed.
    pub async fn act<F: Future>(&self, function: &'static str, handling: F) -> Option<F::Output> {
        let mut handling = pin!(handling);
        poll_fn(|context| {
            // Others may act while this one waits.
            let before = self.acting.replace(function);
            let polled = handling.as_mut().poll(context);
            self.acting.set(before);
            match polled {
                Poll::Pending if self.is_killed.take() => Poll::Ready(None),
                polled => polled.map(Some),
            }
        })
        .await
    }

    /// Whether a function's role lets it do this; that it does not is never forgotten.
    fn judge(&self, function: &'static str, action: &'static str, subject: &str) -> bool {
        if function == OTHERS {
            return true;
        }
        let mut touched = self.touched.borrow_mut();
        let touched = touched.entry((function, action)).or_default();
        if touched.contains(subject) {
            return true;
        }
        let deployed = self.deployed();
        let arn = deployed.subject(action, subject);
        let known = deployed.functions.get(function);
        let may = known.is_some_and(|known| iam::may(&known.grants, action, &arn));
        if may {
            touched.insert(subject.to_owned());
        } else {
            self.denied.borrow_mut().push(format!("{function:?}: {action} on {arn}"));
        }
        may
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
        let digest = Digest::new(reference).ok();
        let is_asked = |stored: &&Stored| {
            digest.as_ref() == Some(&stored.image.digest) || stored.tags.iter().any(|tag| tag == reference)
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
        self.remember();
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
    fn collect_garbage(&self, repository: &CacheRepository, deleted: &[Stored]) {
        let images = self.images.borrow();
        let left = images.get(repository).into_iter().flatten();
        let left: BTreeSet<Digest> = left.flat_map(|stored| named(&stored.image.manifest)).collect();
        let mut held = self.held.borrow_mut();
        for digest in deleted.iter().flat_map(|stored| named(&stored.image.manifest)) {
            if !left.contains(&digest) {
                held.remove(&(repository.clone(), digest));
            }
        }
    }

    /// Something is about to change.
    pub fn remember(&self) {
        if self.remembers.get() {
            *self.before.borrow_mut() = (self.images.borrow().clone(), self.builds.borrow().clone());
        }
    }

    /// Exchanges what there is and what there was.
    fn turn_back(&self) {
        let mut before = self.before.borrow_mut();
        std::mem::swap(&mut before.0, &mut self.images.borrow_mut());
        std::mem::swap(&mut before.1, &mut self.builds.borrow_mut());
    }

    async fn let_others_go(&self) {
        if self.yields.get() {
            tokio::task::yield_now().await;
        }
    }

    async fn call<T>(
        &self,
        operation: &'static str,
        subjects: &[&str],
        effect: impl FnOnce() -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let number = self.calls.borrow().len();
        self.calls.borrow_mut().push(operation);
        for (action, subject) in needs(operation, subjects) {
            if !self.judge(self.acting.get(), action, subject) {
                return Err(CallError::new(operation, subject, Failure::Refused, "AccessDeniedException"));
            }
        }
        self.take_time(operation).await;
        let of_this_call = self.faults.borrow_mut().remove(&number);
        let lasting = || self.outages.borrow().get(&(self.acting.get(), operation)).copied();
        let fault = of_this_call.or_else(lasting);
        let error =
            |failure| Err(CallError::new(operation, "the account in memory", failure, "an injected fault"));
        match fault {
            Some(Fault::Before(failure)) => error(failure),
            Some(Fault::After(failure)) => effect().and_then(|_| error(failure)),
            Some(Fault::KilledBefore) => self.die().await,
            Some(Fault::KilledAfter) => {
                drop(effect());
                self.die().await
            }
            Some(Fault::Stale) if READS.contains(&operation) && self.remembers.get() => {
                self.turn_back();
                let answer = effect();
                self.turn_back();
                answer
            }
            Some(Fault::Partial) => {
                self.is_partial.set(true);
                let answer = effect();
                self.is_partial.set(false);
                answer
            }
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                effect()
            }
            Some(Fault::Stale) | None => effect(),
        }
    }

    /// A call takes its time, and waits for its turn.
    async fn take_time(&self, operation: &'static str) {
        let latency = self.latency.get();
        if latency.is_zero() {
            return;
        }
        let per_second = self.per_second.borrow().get(operation).copied();
        let turn = per_second.map(|per_second| {
            let mut next = self.next.borrow_mut();
            let now = tokio::time::Instant::now();
            let turn = next.entry(operation).or_insert(now);
            let mine = (*turn).max(now);
            *turn = mine + Duration::from_secs(1) / per_second;
            mine
        });
        if let Some(turn) = turn {
            tokio::time::sleep_until(turn).await;
        }
        tokio::time::sleep(latency).await;
    }

    /// How many of so many things the call is to do.
    fn part(&self, all: usize) -> usize {
        if self.is_partial.get() { all / 2 } else { all }
    }

    /// The function that acts ends here.
    async fn die<T>(&self) -> T {
        self.is_killed.set(true);
        pending().await
    }
}

impl ReadImages for Account {
    async fn images(
        &self,
        repository: &CacheRepository,
        tags: &[Tag],
    ) -> Result<Vec<Option<Image>>, CallError> {
        self.let_others_go().await;
        record(async |aws| ReadImages::images(aws, repository, tags).await.is_ok());
        self.call("ecr:BatchGetImage", &[repository.as_str()], || {
            assert!(tags.len() <= 100, "one request names at most 100 images");
            Ok(tags.iter().map(|tag| self.image(repository, tag.as_str())).collect())
        })
        .await
    }
}

impl MakeRepositories for Account {
    async fn make_repository(
        &self,
        repository: &CacheRepository,
        is_immutable: bool,
    ) -> Result<bool, CallError> {
        if !self.makes_repositories.get() {
            return Ok(false);
        }
        let name = repository.as_str();
        let is_made = self
            .call("ecr:CreateRepository", &[name], || {
                let is_there = self.images.borrow().contains_key(repository);
                let mut made = self.made.borrow_mut();
                Ok(!is_there && made.insert(repository.clone(), is_immutable).is_none())
            })
            .await?;
        if is_made {
            self.call("ecr:PutLifecyclePolicy", &[name], || Ok(())).await?;
        }
        Ok(is_made)
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
        self.call(operation, &[repository.as_str()], || {
            let missing = || CallError::new(operation, digest, Failure::NotFound, "no such blob");
            let blob = self.raw_blob(digest).filter(|_| self.has_blob(repository, digest));
            blob.filter(|blob| blob.len() <= limit).ok_or_else(missing)
        })
        .await
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
        self.call("registry:PutBlob", &[repository.as_str()], || {
            assert_eq!(*digest, Digest::of(&bytes), "a registry checks the digest");
            self.keep_blob(repository, bytes);
            Ok(())
        })
        .await
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
        self.call(operation, &[repository.as_str()], || {
            if named(&manifest).iter().any(|digest| !self.has_blob(repository, digest)) {
                return Err(CallError::new(operation, tag, Failure::Refused, "LayersNotFound"));
            }
            let refused = || CallError::new(operation, tag, Failure::Refused, "ImageTagAlreadyExists");
            self.push(repository, tag.as_str(), media_type, manifest, Vec::new())
                .then_some(())
                .ok_or_else(refused)
        })
        .await
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
        self.call("registry:MountBlob", &[to.as_str(), from.as_str()], || {
            if !self.has_blob(from, digest) {
                return Ok(Mounted::Missing);
            }
            if self.mounts_nothing.get() {
                return Ok(Mounted::Refused);
            }
            self.held.borrow_mut().insert((to.clone(), digest.clone()));
            Ok(Mounted::Done)
        })
        .await
    }
}

impl CheckBlobs for Account {
    async fn unavailable(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, CallError> {
        record(async |aws| aws.unavailable(repository, digests).await.is_ok());
        self.call("ecr:BatchCheckLayerAvailability", &[repository.as_str()], || {
            Ok(digests.iter().filter(|digest| !self.has_blob(repository, digest)).cloned().collect())
        })
        .await
    }
}

impl ReadManifests for Account {
    async fn manifests(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
        longest: usize,
    ) -> Result<Option<Vec<(Digest, Bytes)>>, CallError> {
        self.let_others_go().await;
        record(async |aws| aws.manifests(repository, digests, longest).await.is_ok());
        self.call("ecr:BatchGetImage", &[repository.as_str()], || {
            assert!(digests.len() <= 100, "one request names at most 100 images");
            let images = self.images.borrow();
            let images = images.get(repository).into_iter().flatten().map(|stored| &stored.image);
            let asked = images.filter(|image| digests.contains(&image.digest));
            let found: Vec<_> = asked.map(|image| (image.digest.clone(), image.manifest.clone())).collect();
            // Beside a manifest the answer has its ids.
            let bytes: usize = found.iter().map(|(_, manifest)| manifest.len() + 100).sum();
            Ok((bytes <= longest).then_some(found))
        })
        .await
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
        record(async |aws| aws.list(repository).await.is_ok());
        self.call("ecr:DescribeImages", &[repository.as_str()], || {
            let images = self.images.borrow();
            Ok(images.get(repository).into_iter().flatten().map(listed).collect())
        })
        .await
    }

    async fn describe(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<ListedImage>, CallError> {
        self.let_others_go().await;
        record(async |aws| aws.describe(repository, digests).await.is_ok());
        self.call("ecr:DescribeImages", &[repository.as_str()], || {
            assert!(digests.len() <= 100, "one request names at most 100 images");
            let images = self.images.borrow();
            let images = images.get(repository).into_iter().flatten();
            Ok(images.filter(|stored| digests.contains(&stored.image.digest)).map(listed).collect())
        })
        .await
    }

    async fn delete(
        &self,
        repository: &CacheRepository,
        digests: &[Digest],
    ) -> Result<Vec<(Digest, String)>, CallError> {
        self.let_others_go().await;
        record(async |aws| aws.delete(repository, digests).await.is_ok());
        self.call("ecr:BatchDeleteImage", &[repository.as_str()], || {
            assert!(digests.len() <= 100, "one request names at most 100 images");
            self.remember();
            let (digests, left) = digests.split_at(self.part(digests.len()));
            let mut gone = Vec::new();
            if let Some(images) = self.images.borrow_mut().get_mut(repository) {
                let is_named = |stored: &mut Stored| digests.contains(&stored.image.digest);
                gone.extend(images.extract_if(.., is_named));
            }
            if self.reconciles_at_once.get() {
                self.collect_garbage(repository, &gone);
            }
            Ok(left.iter().map(|digest| (digest.clone(), "InternalServerError".to_owned())).collect())
        })
        .await
    }
}

impl StartBuilds for Account {
    async fn start(&self, order: &BuildOrder) -> Result<Ordered, CallError> {
        record(async |aws| aws.start(order).await.is_ok());
        self.call("codebuild:StartBuild", &[order.project.as_str()], || {
            if !self.projects.borrow().contains(&order.project) {
                return Ok(Ordered::NoSuchProject);
            }
            // Linux runs no program with one that is longer.
            let longest = order.environment.iter().map(|(name, value)| name.len() + value.len() + 2).max();
            assert!(longest <= Some(128 << 10), "a variable of {longest:?} bytes");
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
            self.remember();
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
                resolved_commit: order.source_version.as_deref().and_then(commit_of),
                inputs: GivenInputs::read(&order.environment.iter().cloned().collect()),
                claims: false,
            });
            Ok(Ordered::Started(id))
        })
        .await
    }
}

/// The commit that a source version names; a branch's is known once the build has fetched it.
fn commit_of(source_version: &str) -> Option<String> {
    let pinned = source_version.split_once("^{").and_then(|(_, commit)| commit.strip_suffix('}'));
    Commit::new(pinned.unwrap_or(source_version)).ok().map(String::from)
}

/// The project of a build, by the build's id.
fn project_of(id: &str) -> &str {
    id.split_once(':').map_or(id, |(project, _)| project)
}

impl StopBuilds for Account {
    async fn stop(&self, id: &str) -> Result<(), CallError> {
        record(async |aws| aws.stop(id).await.is_ok());
        self.call("codebuild:StopBuild", &[project_of(id)], || {
            self.remember();
            let mut builds = self.builds.borrow_mut();
            let running = |build: &&mut Build| build.id == id && build.status == BuildStatus::InProgress;
            if let Some(build) = builds.iter_mut().find(running) {
                build.status = BuildStatus::Stopped;
                build.ended_at = Some(self.now());
            }
            Ok(())
        })
        .await
    }
}

impl Pause for Account {
    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

impl FindDigests for Account {
    async fn digest_of(&self, repository: &CacheRepository, tag: &str) -> Result<Option<Digest>, CallError> {
        record(async |aws| aws.digest_of(repository, tag).await.is_ok());
        self.call("ecr:DescribeImages", &[repository.as_str()], || {
            Ok(self.image(repository, tag).map(|image| image.digest))
        })
        .await
    }
}

impl ReadBuilds for Account {
    async fn recent(
        &self,
        project: &ProjectName,
        since: Option<Timestamp>,
    ) -> Result<Vec<Arc<Build>>, CallError> {
        self.let_others_go().await;
        record(async |aws| aws.recent(project, since).await.is_ok());
        self.call("codebuild:ListBuildsForProject", &[project.as_str()], || {
            let builds = self.builds.borrow();
            let newest = builds.iter().rev().filter(|build| build.project == *project).take(MAX_BUILDS);
            let is_asked = |(index, build): &(usize, &Build)| {
                *index < 100 || since.is_some_and(|since| build.started_at >= since)
            };
            Ok(newest.enumerate().take_while(is_asked).map(|(_, build)| Arc::new(build.clone())).collect())
        })
        .await
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Build>, CallError> {
        record(async |aws| aws.get(ids).await.is_ok());
        let projects: BTreeSet<&str> = ids.iter().map(|id| project_of(id)).collect();
        let projects: Vec<&str> = projects.into_iter().collect();
        self.call("codebuild:BatchGetBuilds", &projects, || {
            let builds = self.builds.borrow();
            Ok(builds.iter().filter(|build| ids.contains(&build.id)).cloned().collect())
        })
        .await
    }
}

impl ListProjects for Account {
    async fn projects(&self) -> Result<Vec<ProjectName>, CallError> {
        record(async |aws| aws.projects().await.is_ok());
        self.call("codebuild:ListProjects", &["*"], || Ok(self.projects.borrow().clone())).await
    }
}

impl Publish for Account {
    async fn publish(&self, events: &[Event]) -> Result<(), CallError> {
        record(async |aws| aws.publish(events).await.is_ok());
        for events in events.chunks(10) {
            self.call("events:PutEvents", &["Bus"], || {
                let (put, left) = events.split_at(self.part(events.len()));
                self.bus.borrow_mut().extend_from_slice(put);
                let failed =
                    || CallError::new("events:PutEvents", "Bus", Failure::Unavailable, "some are left");
                left.is_empty().then_some(()).ok_or_else(failed)
            })
            .await?;
        }
        Ok(())
    }
}

impl ReadSecrets for Account {
    async fn webhook_secrets(&self, anew: bool) -> Result<Vec<Vec<u8>>, CallError> {
        if anew {
            return Ok(self.secrets.borrow().clone()); // it was read a moment ago
        }
        record(async |aws| aws.webhook_secrets(anew).await.is_ok());
        self.call("secretsmanager:GetSecretValue", &["WebhookSecret"], || Ok(self.secrets.borrow().clone()))
            .await
    }
}
