//! An environment in which people push and merge: it signs webhooks, routes events as `template.yaml` does,
//! runs builds, and tries again what failed, as Lambda and SQS do.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_lambda_events::lambda_function_urls::LambdaFunctionUrlRequest;
use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use buildkit_cache::{Cache, Kind};
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use receive_webhook::Refusals;
use serde_json::{Value, json};
use sha2::Sha256;
use stoker_core::event::{Envelope, Event, Tick};
use stoker_core::forge::Meaning;
use stoker_core::line_update::LineUpdate;
use stoker_core::names::{CacheRepository, Commit, Digest, Line, ProjectName, Scope, Tag};
use stoker_core::policy::{Policy, Project};
use stoker_core::ports::{Build, BuildStatus, Image};
use stoker_core::routing::{self, Queue};

use crate::account::{Account, OTHERS};
use crate::iam;
use fastrand::Rng;

const SECRET: &[u8] = b"a secret for scenarios";
/// How often what waits is tried before a scenario goes on.
const TRIES: usize = 3;
/// Host of the registry in the scenarios.
pub const REGISTRY: &str = "registry.example";

/// What a commit's Dockerfile does: two independent stages, and a last step that needs both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Versions of stage A's dependencies, its source, and the same of stage B.
    pub versions: [u32; 4],
}

impl Source {
    /// The steps by the keys of what they need; the key of a step tells all that went into it.
    fn steps(&self) -> Vec<(String, Vec<String>)> {
        let [deps_a, source_a, deps_b, source_b] = self.versions;
        let deps = |stage: &str, version: u32| format!("deps-{stage}@{version}");
        let compile = |stage: &str, on: &str, version: u32| format!("compile-{stage}@{version}({on})");
        let (deps_a, deps_b) = (deps("a", deps_a), deps("b", deps_b));
        let (built_a, built_b) = (compile("a", &deps_a, source_a), compile("b", &deps_b, source_b));
        let link = format!("link({built_a},{built_b})");
        vec![
            (deps_a.clone(), vec![]),
            (deps_b.clone(), vec![]),
            (built_a.clone(), vec![deps_a]),
            (built_b.clone(), vec![deps_b]),
            (link, vec![built_a, built_b]),
        ]
    }
}

/// A build that ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its id.
    pub id: String,
    /// Its line.
    pub line: String,
    /// Names of the steps that ran, such as `deps-a`.
    pub ran: Vec<String>,
    /// What it read.
    pub reads: Vec<String>,
}

impl Ran {
    /// Whether any dependency step ran.
    #[must_use]
    pub fn ran_dependencies(&self) -> bool {
        self.ran.iter().any(|step| step.starts_with("deps"))
    }
}

/// A message in a queue.
#[derive(Debug, Clone)]
struct Message {
    id: String,
    body: String,
    receives: u32,
}

/// Messages that are late.
pub struct Late(Vec<Message>);

/// What becomes of events on their way.
pub struct FaultPlan {
    /// What decides.
    pub rng: Rng,
    /// One in so many events comes twice.
    pub doubles: u64,
    /// One in so many of AWS's own events never comes.
    pub loses: u64,
}

impl FaultPlan {
    fn is_one_in(&mut self, many: u64) -> bool {
        self.rng.u64(..many) == 0
    }
}

/// The test environment.
pub struct TestEnvironment {
    /// The AWS account.
    pub account: Account,
    /// Host of the registry, as builds are told.
    pub registry: String,
    policy: Policy,
    sources: HashMap<Commit, Source>,
    promotions: Vec<Message>,
    reconciliations: Vec<Message>,
    retentions: Vec<Message>,
    nightly_retentions: Vec<Message>,
    starts: Vec<Message>,
    warms: Vec<Message>,
    /// What people were told.
    pub notices: Vec<Event>,
    /// Events that were given up.
    pub dead: Vec<String>,
    /// Every signed webhook so far: its event, its body.
    pub deliveries: Vec<(&'static str, Vec<u8>)>,
    /// Every event of AWS's own so far.
    pub aws_events: Vec<String>,
    /// Whether AWS's own events are lost.
    pub loses_aws_events: bool,
    /// Which faults meet events; without, each comes once, and in order.
    pub fault_plan: Option<FaultPlan>,
    /// Whether what Stoker's bus has for the promotion queue is lost.
    pub loses_promotions: bool,
    /// What the forge calls the default branch.
    pub default_branch: String,
    /// By which number the forge knows its repositories.
    pub repository_id: u64,
    refusals: Refusals,
    /// The one instance of `start-build`.
    starter: start_build::Instance,
    /// And that of `promote-cache`.
    promoter: promote_cache::Instance,
    /// Each branch's head.
    heads: HashMap<String, Commit>,
    next: u32,
}

/// The policy of the scenarios.
pub const POLICY: &str = "
version: 1
defaults:
  retention: { mode: apply, lease: 24h, idle-branch: 30d }
  warm: { stale-after: 7d }
projects:
  - name: app
    repository: github.com/example/app
";

/// The same, with builds that cannot write where lines are.
pub const ISOLATED: &str = "
version: 1
defaults:
  builds-repository: stoker-builds/{project}
  retention: { mode: apply, lease: 24h, idle-branch: 30d }
  warm: { stale-after: 7d }
projects:
  - name: app
    repository: github.com/example/app
";

impl Default for TestEnvironment {
    fn default() -> Self {
        Self::new()
    }
}

impl TestEnvironment {
    /// A test environment with one project, `app`, of `github.com/example/app`.
    #[must_use]
    pub fn new() -> Self {
        Self::with_policy(POLICY)
    }

    /// The same with another policy.
    #[must_use]
    pub fn with_policy(policy: &str) -> Self {
        let account = Account::default();
        account.set_now("2026-11-21T08:00:00Z".parse().unwrap());
        account.secrets.borrow_mut().push(SECRET.to_vec());
        account.projects.borrow_mut().push(ProjectName::new("app").unwrap());
        let policy = Policy::parse("the scenario's policy", policy).unwrap();
        let projects = policy.named_projects();
        let isolates_builds = projects.iter().any(|project| project.builds_repository.is_some());
        let reads_base_images = projects.iter().any(|project| !project.warm.base_images.is_empty());
        account.deploy(iam::deployed(isolates_builds, reads_base_images));
        // As the template makes it.
        account
            .immutable
            .borrow_mut()
            .extend(policy.named_projects().into_iter().filter_map(|p| p.builds_repository));
        Self {
            account,
            registry: REGISTRY.to_owned(),
            policy,
            sources: HashMap::new(),
            promotions: Vec::new(),
            reconciliations: Vec::new(),
            retentions: Vec::new(),
            nightly_retentions: Vec::new(),
            starts: Vec::new(),
            warms: Vec::new(),
            notices: Vec::new(),
            dead: Vec::new(),
            deliveries: Vec::new(),
            aws_events: Vec::new(),
            loses_aws_events: false,
            fault_plan: None,
            loses_promotions: false,
            default_branch: "main".to_owned(),
            repository_id: 1_296_269,
            refusals: Refusals::default(),
            heads: HashMap::new(),
            starter: start_build::Instance::default(),
            promoter: promote_cache::Instance::default(),
            next: 0,
        }
    }

    /// Main is warm, and a branch has changed the dependencies of one stage and been built; its head.
    pub async fn with_branch(policy: &str) -> (Self, Commit) {
        let mut env = Self::with_policy(policy);
        env.built_branch("main", [1, 1, 1, 1]).await;
        let head = env.built_branch("feature-a", [2, 2, 1, 1]).await;
        (env, head)
    }

    /// A branch is pushed and built, and some time passes; its head.
    pub async fn built_branch(&mut self, branch: &str, versions: [u32; 4]) -> Commit {
        let head = self.commit(versions);
        self.push(branch, &[&head]).await;
        self.build().await;
        self.wait(SignedDuration::from_mins(10));
        head
    }

    /// The repository with the caches.
    #[must_use]
    pub fn repository(&self) -> CacheRepository {
        CacheRepository::new("stoker/app").unwrap()
    }

    /// The repository that builds write to.
    #[must_use]
    pub fn builds_repository(&self) -> CacheRepository {
        self.policy.named_projects().remove(0).exports().clone()
    }

    /// The scenario's project.
    #[must_use]
    pub fn project(&self) -> Project {
        self.policy.named_projects().remove(0)
    }

    /// A branch's line appears with a layer of so many bytes, as if a build had made it.
    pub async fn push_large(&mut self, branch: &str, commit: &Commit, bytes: usize) {
        self.push(branch, &[commit]).await;
        self.settle().await;
        let build = self.running().pop().expect("its build");
        let inputs = build.inputs.clone().expect("a build of Stoker's");
        let source = self.sources.get(commit).expect("a known commit").clone();
        let now = self.account.now();
        let layer = |key: &str| format!("{branch} {key} {}", "x".repeat(bytes / 5));
        let (manifest, blobs) = exported_with(&source, |_| now, layer);
        for tag in &inputs.exports {
            self.push_cache(tag, manifest.clone(), blobs.clone());
        }
        self.end(&build.id, BuildStatus::Succeeded, commit);
        self.settle().await;
    }

    /// A new commit with this source.
    pub fn commit(&mut self, versions: [u32; 4]) -> Commit {
        let commit = Commit::new(format!("{:040x}", self.sources.len() + 1)).unwrap();
        self.sources.insert(commit.clone(), Source { versions });
        commit
    }

    /// Time goes by.
    pub fn wait(&self, duration: SignedDuration) {
        self.account.set_now(self.account.now() + duration);
    }

    fn forge_repository(&self) -> Value {
        self.forge_repository_called("app")
    }

    fn forge_repository_called(&self, name: &str) -> Value {
        json!({
            "id": self.repository_id, "full_name": format!("example/{name}"),
            "html_url": format!("https://github.com/example/{name}"),
            "default_branch": self.default_branch, "pushed_at": self.account.now().as_second(),
        })
    }

    /// Somebody pushes `commits`, the last of them the new head.
    pub async fn push(&mut self, branch: &str, commits: &[&Commit]) {
        self.push_to("app", branch, commits).await;
    }

    /// Somebody pushes to another repository of the same owner.
    pub async fn push_to(&mut self, repository: &str, branch: &str, commits: &[&Commit]) {
        let ids = commits.iter().map(|commit| json!({ "id": commit.as_str() })).collect();
        self.push_listing(repository, branch, commits.last().expect("a push has a head"), ids).await;
    }

    /// Somebody pushes a commit that changes these files.
    pub async fn push_changing(&mut self, branch: &str, commit: &Commit, paths: &[&str]) {
        let listed = json!({ "id": commit.as_str(), "added": [], "modified": paths, "removed": [] });
        self.push_listing("app", branch, commit, vec![listed]).await;
    }

    async fn push_listing(&mut self, repository: &str, branch: &str, head: &Commit, ids: Vec<Value>) {
        let before = self.heads.insert(branch.to_owned(), head.clone());
        let before = before.map_or_else(|| "0".repeat(40), |commit| commit.to_string());
        let body = json!({
            "ref": format!("refs/heads/{branch}"), "before": before, "after": head.as_str(),
            "created": false, "deleted": false, "forced": false, "commits": ids,
            "repository": self.forge_repository_called(repository),
        });
        self.deliver("push", &body).await;
    }

    /// Somebody deletes a branch.
    pub async fn delete_branch(&mut self, branch: &str) {
        let body = json!({
            "ref": format!("refs/heads/{branch}"), "before": "1".repeat(40), "after": "0".repeat(40),
            "created": false, "deleted": true, "forced": false, "commits": [], "repository": self.forge_repository(),
        });
        self.deliver("push", &body).await;
    }

    /// A pull request's event: `action` is the forge's, or `merged`.
    pub async fn pull_request(
        &mut self,
        action: &str,
        branch: &str,
        head: &Commit,
        merge_commit: Option<&Commit>,
    ) {
        self.pull_request_to("main", "example/app", action, branch, head, merge_commit).await;
    }

    /// A pull request's event, from any repository to any base.
    pub async fn pull_request_to(
        &mut self,
        base: &str,
        from: &str,
        action: &str,
        branch: &str,
        head: &Commit,
        merge_commit: Option<&Commit>,
    ) {
        let merged = action == "merged";
        let body = json!({
            "action": if merged { "closed" } else { action },
            "number": 1,
            "pull_request": {
                "number": 1, "merged": merged,
                "merge_commit_sha": merge_commit.map(Commit::as_str),
                "head": { "ref": branch, "sha": head.as_str(), "repo": { "full_name": from } },
                "base": { "ref": base },
            },
            "repository": self.forge_repository(),
        });
        self.deliver("pull_request", &body).await;
    }

    /// Somebody approves the pull request's commit `approved` when its head is `head`: it comes from a fork.
    pub async fn review(&mut self, by: &str, approved: &Commit, head: &Commit) {
        let body = json!({
            "action": "submitted",
            "review": { "state": "approved", "user": { "login": "somebody", "id": by.parse::<u64>().expect("an \
             id") }, "commit_id": approved.as_str() },
            "pull_request": {
                "number": 1, "merged": false,
                "head": { "ref": "main", "sha": head.as_str(), "repo": { "full_name": "somebody/app" } },
                "base": { "ref": "main" },
            },
            "repository": self.forge_repository(),
        });
        self.deliver("pull_request_review", &body).await;
    }

    /// A push as the forge signs and sends it; what that is answered.
    pub async fn post_push(&mut self, branch: &str, commit: &Commit) -> i64 {
        let body = json!({
            "ref": format!("refs/heads/{branch}"), "before": "0".repeat(40), "after": commit.as_str(),
            "created": true, "deleted": false, "forced": false, "commits": [{ "id": commit.as_str() }],
            "repository": self.forge_repository(),
        });
        self.deliver_bytes("push", body.to_string().into_bytes()).await
    }

    /// The forge delivers a webhook, signed.
    pub async fn deliver(&mut self, event: &'static str, body: &Value) {
        let body = body.to_string().into_bytes();
        let status = self.deliver_bytes(event, body.clone()).await;
        assert!(!(300..500).contains(&status), "a genuine webhook was refused with {status}");
        self.deliveries.push((event, body));
    }

    async fn deliver_bytes(&mut self, event: &str, body: Vec<u8>) -> i64 {
        let request = signed(SECRET, event, &body);
        let mut status = self.receive(&request).await;
        for _ in 1..TRIES {
            if status >= 500 {
                // Somebody presses "redeliver".
                status = self.receive(&request).await;
            }
        }
        self.route();
        status
    }

    /// A request comes to the webhooks' URL as it is; what it is answered.
    pub async fn post(&mut self, request: &LambdaFunctionUrlRequest) -> i64 {
        let status = self.receive(request).await;
        self.route();
        status
    }

    /// An event of CodeCommit's comes.
    pub async fn codecommit(&mut self, event: Value) -> Meaning {
        let handled = receive_codecommit::handle(event, &self.policy, &self.account);
        let handled = self.account.invoke("receive-codecommit", None, handled).await;
        let meaning = handled.expect("nobody kills it").unwrap();
        self.route();
        meaning
    }

    /// An event comes as the rule or the schedule for it delivers it.
    pub fn event(&mut self, envelope: &Envelope) {
        self.route_one(envelope);
    }

    async fn receive(&self, request: &LambdaFunctionUrlRequest) -> i64 {
        let (policy, now) = (&self.policy, self.account.now());
        let handled = receive_webhook::handle(request, policy, &self.account, &self.refusals, now);
        let response = self.account.invoke("receive-webhook", None, handled).await;
        // Lambda answers for a function that was killed.
        response.map_or(502, |response| response.status_code)
    }

    /// Everything that was ever delivered comes once more, in this order.
    pub async fn replay(&mut self, reversed: bool) {
        let mut deliveries = self.deliveries.clone();
        let mut aws_events = self.aws_events.clone();
        if reversed {
            deliveries.reverse();
            aws_events.reverse();
        }
        for body in aws_events {
            self.enqueue_promotion(body);
        }
        for (event, body) in deliveries {
            self.deliver_bytes(event, body).await;
        }
        self.settle().await;
    }

    /// The rules of Stoker's bus.
    fn route(&mut self) {
        let events: Vec<Event> = self.account.bus.borrow_mut().drain(..).collect();
        for event in events {
            let envelope = Envelope { time: Some(self.account.now()), source: "stoker".to_owned(), event };
            self.route_one(&envelope);
        }
    }

    fn route_one(&mut self, envelope: &Envelope) {
        self.route_once(envelope);
        if self.fault_plan.as_mut().is_some_and(|fault_plan| fault_plan.is_one_in(fault_plan.doubles)) {
            self.route_once(envelope);
        }
    }

    /// What waits is taken in any order.
    fn shuffle(&mut self) {
        let Some(fault_plan) = &mut self.fault_plan else { return };
        let rng = &mut fault_plan.rng;
        for queue in [
            &mut self.promotions,
            &mut self.reconciliations,
            &mut self.retentions,
            &mut self.nightly_retentions,
            &mut self.starts,
            &mut self.warms,
        ] {
            for last in (1..queue.len()).rev() {
                queue.swap(last, rng.usize(..=last));
            }
        }
    }

    fn route_once(&mut self, envelope: &Envelope) {
        let event = &envelope.event;
        let body = serde_json::to_string(envelope).unwrap();
        for queue in routing::queues(event) {
            let is_lost = queue == Queue::Promotion && !matches!(event, Event::DriftFound(_));
            if !(is_lost && self.loses_promotions && envelope.source == "stoker") {
                let message = self.message(body.clone());
                self.queue(queue).push(message);
            }
        }
        if routing::NOTICES.contains(&event.detail_type()) {
            self.notices.push(event.clone());
        }
    }

    fn queue(&mut self, queue: Queue) -> &mut Vec<Message> {
        match queue {
            Queue::Start => &mut self.starts,
            Queue::Promotion => &mut self.promotions,
            Queue::Reconcile => &mut self.reconciliations,
            Queue::Warm => &mut self.warms,
            Queue::Retention => &mut self.retentions,
            Queue::NightlyRetention => &mut self.nightly_retentions,
        }
    }

    fn message(&mut self, body: String) -> Message {
        self.next += 1;
        Message { id: self.next.to_string(), body, receives: 0 }
    }

    fn enqueue_promotion(&mut self, body: String) {
        let message = self.message(body);
        self.promotions.push(message);
    }

    /// Lets everything that is under way end: promotions, then starts, then, as if their delay had passed, warming and
    /// retention. What is tried again waits for the next time.
    pub async fn settle(&mut self) {
        self.shuffle();
        for _ in 0..TRIES {
            while !self.promotions.is_empty() {
                self.promote().await;
            }
            self.start().await;
        }
        for _ in 0..TRIES {
            self.warm().await;
        }
        self.retain().await;
        self.route();
    }

    /// Lets only the promotions happen, those that the night looks for included.
    pub async fn settle_promotions(&mut self) {
        while !(self.promotions.is_empty() && self.reconciliations.is_empty()) {
            self.reconcile().await;
            while !self.promotions.is_empty() {
                self.promote().await;
            }
        }
    }

    /// Lets only builds start.
    pub async fn settle_starts(&mut self) {
        self.start().await;
    }

    /// The messages that wait for promotion, those of the reconciliation included, and those that wait for retention.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        (
            self.promotions.len() + self.reconciliations.len(),
            self.retentions.len() + self.nightly_retentions.len(),
        )
    }

    /// The projects that are still to be looked at for what was lost, and the messages that wait for a line to move.
    #[must_use]
    pub fn reconciling(&self) -> (usize, usize) {
        (self.reconciliations.len(), self.promotions.len())
    }

    /// The messages that wait for a build to start, and those that wait for main to be warmed.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        (self.starts.len(), self.warms.len())
    }

    /// Lets `start-build` be asked now, and the promotions that wait come seconds after.
    pub async fn start_before_promotions(&mut self, delay: std::time::Duration) {
        let starts = std::mem::take(&mut self.starts);
        let promotions = std::mem::take(&mut self.promotions);
        let (account, policy, now) = (&self.account, &self.policy, self.account.now());
        let promote = async {
            tokio::time::sleep(delay).await;
            let batch = sqs(&promotions);
            let handled = promote_cache::handle(&batch, policy, account, &self.promoter, now);
            account.invoke("promote-cache", Some("PromotionQueue"), handled).await
        };
        let batch = sqs(&starts);
        let start = start_build::handle(&batch, policy, &self.registry, account, &self.starter, now);
        let start = account.invoke("start-build", Some("StartQueue"), start);
        let (started, promoted) = tokio::join!(start, promote);
        let (started, promoted) = started.zip(promoted).expect("nobody kills them");
        assert!(started.batch_item_failures.is_empty() && promoted.batch_item_failures.is_empty());
    }

    /// Every message that waits is handled by an invocation of its own, all at once.
    pub async fn promote_each_at_once(&mut self) {
        let promotions = std::mem::take(&mut self.promotions);
        let (account, policy, now) = (&self.account, &self.policy, self.account.now());
        let promoter = &self.promoter;
        let handled = promotions.iter().map(|message| async move {
            let batch = sqs(std::slice::from_ref(message));
            let handled = promote_cache::handle(&batch, policy, account, promoter, now);
            account.invoke("promote-cache", Some("PromotionQueue"), handled).await
        });
        for response in futures_util::future::join_all(handled).await {
            let response = response.expect("nobody kills it");
            assert!(response.batch_item_failures.is_empty());
        }
    }

    /// One look at the pushes that wait.
    pub async fn start(&mut self) {
        let batch = std::mem::take(&mut self.starts);
        let now = self.account.now();
        for some in batch.chunks(10) {
            let event = sqs(some);
            let (policy, account) = (&self.policy, &self.account);
            let handled = start_build::handle(&event, policy, &self.registry, account, &self.starter, now);
            let response = account.invoke("start-build", Some("StartQueue"), handled).await;
            let again = self.failed(some, response.as_ref(), 720);
            self.starts.extend(again);
        }
        self.route();
    }

    /// Takes the pushes that wait, as if they were late.
    pub fn take_starts(&mut self) -> Late {
        Late(std::mem::take(&mut self.starts))
    }

    /// The late ones arrive.
    pub fn give_starts(&mut self, late: Late) {
        self.starts.extend(late.0);
    }

    /// One look at what wants main warmed.
    pub async fn warm(&mut self) {
        let batch = std::mem::take(&mut self.warms);
        let now = self.account.now();
        for some in batch.chunks(10) {
            let event = sqs(some);
            let handled = warm_main::handle(&event, &self.policy, &self.registry, &self.account, now);
            let response = self.account.invoke("warm-main", Some("WarmQueue"), handled).await;
            let again = self.failed(some, response.as_ref(), 480);
            self.warms.extend(again);
        }
        self.route();
    }

    /// The messages that come again; those that have come too often are given up.
    fn failed(
        &mut self,
        batch: &[Message],
        response: Option<&SqsBatchResponse>,
        at_most: u32,
    ) -> Vec<Message> {
        let failed = failures(response);
        let mut again = Vec::new();
        for message in batch.iter().filter(|message| is_in(failed.as_ref(), message)) {
            let message = Message { receives: message.receives + 1, ..message.clone() };
            if message.receives < at_most {
                again.push(message);
            } else {
                self.dead.push(message.body);
            }
        }
        again
    }

    /// One look at what the nightly reconciliation asks for.
    pub async fn reconcile(&mut self) {
        let batch = std::mem::take(&mut self.reconciliations);
        let now = self.account.now();
        for one in batch.chunks(1) {
            let event = sqs(one);
            let handled = promote_cache::handle(&event, &self.policy, &self.account, &self.promoter, now);
            let response = self.account.invoke("promote-cache", Some("ReconcileQueue"), handled).await;
            let again = self.failed(one, response.as_ref(), 5);
            self.reconciliations.extend(again);
        }
        self.route();
    }

    async fn promote(&mut self) {
        let take = self.promotions.len().min(10);
        let batch: Vec<Message> = self.promotions.drain(..take).collect();
        let now = self.account.now();
        let event = sqs(&batch);
        let handled = promote_cache::handle(&event, &self.policy, &self.account, &self.promoter, now);
        let response = self.account.invoke("promote-cache", Some("PromotionQueue"), handled).await;
        let again = self.failed(&batch, response.as_ref(), 5);
        self.promotions.extend(again);
        self.route();
    }

    /// One round of the retention queues; what is still leased stays in the one for branches that went.
    pub async fn retain(&mut self) {
        let now = self.account.now();
        let batch = std::mem::take(&mut self.retentions);
        let event = sqs(&batch);
        let handled = enforce_retention::handle(&event, &self.policy, &self.account, now);
        let response = self.account.invoke("enforce-retention", Some("RetentionQueue"), handled).await;
        let failed = failures(response.as_ref());
        self.retentions.extend(batch.into_iter().filter(|message| is_in(failed.as_ref(), message)));
        let batch = std::mem::take(&mut self.nightly_retentions);
        for one in batch.chunks(1) {
            let event = sqs(one);
            let handled = enforce_retention::handle(&event, &self.policy, &self.account, now);
            let queue = Some("NightlyRetentionQueue");
            let response = self.account.invoke("enforce-retention", queue, handled).await;
            let again = self.failed(one, response.as_ref(), 5);
            self.nightly_retentions.extend(again);
        }
        self.route();
    }

    /// A whole night at once: one tick of each schedule is for all.
    pub async fn night(&mut self) {
        let once = Tick { slots: 1, every_minutes: 1 };
        self.tick(Event::NightlyReconcile(once));
        self.settle_promotions().await;
        self.tick(Event::NightlyWarm(once));
        for _ in 0..2 {
            self.warm().await;
        }
        self.tick(Event::NightlyRetention(once));
        for _ in 0..2 {
            self.retain().await;
        }
        self.settle().await;
    }

    /// A tick of the night comes as its schedule sends it.
    pub fn tick(&mut self, tick: Event) {
        let time = Some(self.account.now());
        self.route_one(&Envelope { time, source: "stoker".to_owned(), event: tick });
    }

    /// Ends every build that runs, without a word.
    pub fn end_all(&self, status: BuildStatus) {
        for build in self.account.builds.borrow_mut().iter_mut() {
            if build.status == BuildStatus::InProgress {
                build.status = status;
                build.ended_at = Some(self.account.now());
            }
        }
    }

    /// The builds that run now.
    #[must_use]
    pub fn running(&self) -> Vec<Build> {
        let builds = self.account.builds.borrow();
        builds.iter().filter(|build| build.status == BuildStatus::InProgress).cloned().collect()
    }

    /// The variable that a build was started with.
    #[must_use]
    pub fn reported(&self, build: &Build, variable: &str) -> String {
        let orders = self.account.orders.borrow();
        let order = orders.get(&build.id).expect("a build that was started");
        let value = order.environment.iter().find_map(|(name, value)| (name == variable).then_some(value));
        value.expect("a variable of the build").clone()
    }

    /// Runs every started build to its end, with its real cache, and lets its event be handled.
    pub async fn build(&mut self) -> Vec<Ran> {
        self.settle().await;
        let mut all = Vec::new();
        for build in self.running() {
            all.push(self.run(&build));
        }
        self.settle().await;
        all
    }

    /// Runs one build: reuses what the caches that it was given hold, and exports.
    pub fn run(&mut self, build: &Build) -> Ran {
        let inputs = build.inputs.clone().expect("a build of Stoker's");
        let head = inputs.commit.clone().unwrap_or_else(|| Commit::new(format!("{:040x}", 1)).unwrap());
        let source = self.sources.get(&head).expect("a known commit").clone();
        let known = self.known_steps(&inputs.given);
        let now = self.account.now();
        let ran =
            source.steps().into_iter().map(|(key, _)| key).filter(|key| !known.contains_key(&record(key)));
        let ran = ran.map(|key| key.split_once(['@', '(']).expect("a step's key").0.to_owned()).collect();
        for tag in &inputs.exports {
            self.export(tag, &source, |key| known.get(&record(key)).copied().unwrap_or(now));
        }
        self.end(&build.id, BuildStatus::Succeeded, &head);
        let reads = self.reported(build, "STOKER_READS").split_whitespace().map(str::to_owned).collect();
        Ran { id: build.id.clone(), line: inputs.line.to_string(), ran, reads }
    }

    /// Ends a build, and tells it by AWS's event.
    pub fn end(&mut self, id: &str, status: BuildStatus, commit: &Commit) {
        self.account.remember();
        let mut builds = self.account.builds.borrow_mut();
        let build = builds.iter_mut().find(|build| build.id == id).expect("a known build");
        build.status = status;
        build.ended_at = Some(self.account.now());
        build.resolved_commit = Some(commit.to_string());
        let project = build.project.clone();
        drop(builds);
        let said = if status == BuildStatus::Succeeded { "SUCCEEDED" } else { "FAILED" };
        let arn = format!("arn:aws:codebuild:us-east-1:123456789012:build/{id}");
        let detail = json!({"build-status": said, "project-name": project, "build-id": arn});
        self.aws_event("aws.codebuild", "CodeBuild Build State Change", &detail);
    }

    fn aws_event(&mut self, source: &str, kind: &str, detail: &Value) {
        let event = json!({"version": "0", "id": "1", "source": source, "detail-type": kind, "detail": detail,
            "account": "123456789012", "time": self.account.now(), "region": "us-east-1", "resources": []});
        self.aws_events.push(event.to_string());
        let (mut times, fault_plan) = (usize::from(!self.loses_aws_events), &mut self.fault_plan);
        if let Some(fault_plan) = fault_plan {
            times *= 1 + usize::from(fault_plan.is_one_in(fault_plan.doubles));
            times *= usize::from(!fault_plan.is_one_in(fault_plan.loses));
        }
        for _ in 0..times {
            self.enqueue_promotion(event.to_string());
        }
    }

    /// Writes a cache under a tag and tells it by ECR's event, as a build's export does.
    pub fn export(&mut self, tag: &str, source: &Source, created_at: impl Fn(&str) -> Timestamp) {
        let (manifest, blobs) = exported(source, created_at);
        self.push_cache(tag, manifest, blobs);
    }

    /// Writes a manifest and blobs where builds may, and tells it by ECR's event. A registry may refuse the
    /// tag; the build goes on.
    pub fn push_cache(&mut self, tag: &str, manifest: Bytes, blobs: Vec<Bytes>) {
        let repository = self.builds_repository();
        if !self.account.push(&repository, tag, buildkit_cache::MANIFEST_MEDIA_TYPE, manifest, blobs) {
            return;
        }
        let detail = json!({"result": "SUCCESS", "repository-name": repository, "image-tag": tag,
            "action-type": "PUSH"});
        self.aws_event("aws.ecr", "ECR Image Action", &detail);
    }

    /// When each record of these caches was made.
    fn known_steps(&self, digests: &BTreeSet<Digest>) -> BTreeMap<Digest, Timestamp> {
        let repository = self.repository();
        let mut known = BTreeMap::new();
        for tag in self.account.tags(&repository).keys() {
            let image = self.account.image(&repository, tag).expect("a listed tag");
            if digests.contains(&image.digest) {
                let config = self.config(&image.manifest);
                for found in config["records"].as_array().into_iter().flatten() {
                    let digest = Digest::new(found["digest"].as_str().unwrap()).unwrap();
                    if let Some(made_at) = found["layers"][0]["createdAt"].as_str() {
                        known.insert(digest, made_at.parse().unwrap());
                    }
                }
            }
        }
        known
    }

    fn config(&self, manifest: &[u8]) -> Value {
        let Kind::Cache(manifest) = buildkit_cache::classify(manifest) else { panic!("no cache") };
        let config = self.account.raw_blob(&manifest.config.digest).expect("its config");
        serde_json::from_slice(&config).unwrap()
    }

    /// Puts main back to an image that it was, as `stoker rollback` does; false where main holds nothing.
    pub async fn roll_back(&self, to: &Image) -> bool {
        let (repository, project) = (self.repository(), self.project());
        let Some(current) = self.account.image(&repository, "app.main") else { return false };
        let Kind::Cache(target) = buildkit_cache::classify(&to.manifest) else {
            panic!("not a cache: {to:?}")
        };
        let scope = project.scopes().next().expect("a target");
        let update = LineUpdate::rollback(scope, &Line::Main, current, &target, self.account.now());
        let update = update.expect("what BuildKit imports");
        let applied = self.account.act(OTHERS, update.apply(&self.account, &repository)).await;
        applied.expect("nobody kills it").expect("a rollback");
        true
    }

    /// The cache that a line points to, if any: checked as BuildKit would.
    #[must_use]
    pub fn line(&self, line: &str) -> Option<(Digest, Cache)> {
        let scope = Scope::of(&ProjectName::new("app").unwrap());
        let tag = Tag::line(&scope, &Line::parse(line).unwrap());
        let image = self.account.image(&self.repository(), tag.as_str())?;
        let Kind::Cache(manifest) = buildkit_cache::classify(&image.manifest) else {
            panic!("{line} is no cache")
        };
        let config = self.account.raw_blob(&manifest.config.digest).expect("its config");
        let cache = Cache::parse(&manifest, &config).expect("a line is always importable");
        for blob in cache.blobs() {
            assert!(self.account.has_blob(&self.repository(), &blob.digest), "{line} misses a blob");
        }
        Some((image.digest, cache))
    }

    /// The steps whose results a line's cache holds.
    #[must_use]
    pub fn holds(&self, line: &str, source: [u32; 4]) -> Vec<String> {
        let (digest, _) = self.line(line).expect("the line");
        let known = self.known_steps(&BTreeSet::from([digest]));
        let steps = Source { versions: source }.steps().into_iter().map(|(key, _)| key);
        steps.filter(|key| known.contains_key(&record(key))).collect()
    }

    /// Where every line points, leaving history, commits, exports and notes aside.
    #[must_use]
    pub fn lines(&self) -> BTreeMap<String, Digest> {
        let other = |tag: &str| {
            [".history.", ".export.", ".commit.", ".given.", ".fork."].iter().any(|kind| tag.contains(kind))
        };
        self.account.tags(&self.repository()).into_iter().filter(|(tag, _)| !other(tag)).collect()
    }
}

/// A webhook as GitHub signs it with a secret.
#[must_use]
pub fn signed(secret: &[u8], event: &str, body: &[u8]) -> LambdaFunctionUrlRequest {
    let mac = Hmac::<Sha256>::new_from_slice(secret).unwrap().chain_update(body);
    let signature = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
    request("POST", &[("x-github-event", event), ("x-hub-signature-256", &signature)], body)
}

/// A request to the Function URL.
#[must_use]
pub fn request(method: &str, headers: &[(&str, &str)], body: &[u8]) -> LambdaFunctionUrlRequest {
    let mut request = LambdaFunctionUrlRequest::default();
    request.request_context.http.method = Some(method.to_owned());
    for (name, value) in headers {
        request.headers.insert(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    request.body = Some(String::from_utf8_lossy(body).into_owned());
    request
}

fn sqs(batch: &[Message]) -> SqsEvent {
    let mut event = SqsEvent::default();
    event.records = batch
        .iter()
        .map(|message| {
            let mut record = SqsMessage::default();
            record.message_id = Some(message.id.clone());
            record.body = Some(message.body.clone());
            let receives = (message.receives + 1).to_string();
            record.attributes.insert("ApproximateReceiveCount".to_owned(), receives);
            record
        })
        .collect();
    event
}

/// The ids of the messages that failed; nothing if the function was killed, and all of them did.
fn failures(response: Option<&SqsBatchResponse>) -> Option<BTreeSet<String>> {
    let failures = &response?.batch_item_failures;
    Some(failures.iter().map(|failure| failure.item_identifier.clone()).collect())
}

fn is_in(failed: Option<&BTreeSet<String>>, message: &Message) -> bool {
    failed.is_none_or(|failed| failed.contains(&message.id))
}

fn record(key: &str) -> Digest {
    Digest::of(format!("record {key}").as_bytes())
}

/// A cache as a build exports it: its manifest, and its blobs with the config first.
#[must_use]
pub fn exported(source: &Source, created_at: impl Fn(&str) -> Timestamp) -> (Bytes, Vec<Bytes>) {
    exported_with(source, created_at, |key| format!("layer of {key}"))
}

/// A cache with any bytes for layers.
#[must_use]
pub fn exported_with(
    source: &Source,
    created_at: impl Fn(&str) -> Timestamp,
    layer: impl Fn(&str) -> String,
) -> (Bytes, Vec<Bytes>) {
    let steps = source.steps();
    let index = |key: &String| steps.iter().position(|(known, _)| known == key).expect("a known step");
    let blobs: Vec<Bytes> = steps.iter().map(|(key, _)| Bytes::from(layer(key))).collect();
    let layers: Vec<Value> =
        blobs.iter().map(|blob| json!({ "blob": Digest::of(blob), "parent": -1 })).collect();
    let records: Vec<Value> = steps
        .iter()
        .enumerate()
        .map(|(i, (key, needs))| {
            let inputs: Vec<Value> = needs.iter().map(|need| json!([{ "link": index(need) }])).collect();
            json!({
                "digest": record(key), "inputs": inputs,
                "layers": [{ "layer": i, "createdAt": created_at(key) }],
            })
        })
        .collect();
    let config = Bytes::from(json!({ "layers": layers, "records": records }).to_string());
    let descriptor = |media_type: &str, blob: &Bytes| {
        json!({ "mediaType": media_type,
        "digest": Digest::of(blob), "size": blob.len() })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": buildkit_cache::MANIFEST_MEDIA_TYPE,
        "config": descriptor(buildkit_cache::CONFIG_MEDIA_TYPE, &config),
        "layers": blobs.iter().map(|b| descriptor("application/vnd.oci.image.layer.v1.tar+gzip",
        b)).collect::<Vec<_>>(),
    });
    (Bytes::from(manifest.to_string()), [config].into_iter().chain(blobs).collect())
}
