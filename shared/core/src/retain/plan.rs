//! The plan: a verdict on every image, from the inventory, the policy and what is known of builds and
//! branches. Pure: the same input makes the same plan.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use hashbrown::HashSet;
use jiff::{SignedDuration, Timestamp};

use super::inventory::{Inventory, ManifestInfo, Shape};
use super::rule::Rule;
use super::why::{Reason, Why};
use crate::names::{CacheRepository, Commit, Digest, Line, LineKey, Scope, Tag, TagKind};
use crate::policy::{Mode, Project};
use crate::ports::ListedImage;
use crate::sources::GIVEN_FOR;

/// What ECR asks for a gigabyte in a month, in US dollars: the price of us-east-1, beyond the free tier.
pub const DOLLARS_PER_GB_MONTH: f64 = 0.10;

/// A line whose branch or pull request is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedLine {
    /// Its scope.
    pub scope: Scope,
    /// The line.
    pub line: LineKey,
    /// When it went. What was pushed later belongs to a new branch of the same name.
    pub at: Timestamp,
}

/// What the planner knows beside the inventory and the policy.
#[derive(Debug, Clone, Default)]
pub struct PlanInputs {
    /// Caches that running builds were given.
    pub leased: BTreeSet<Digest>,
    /// When a build was last given a cache.
    pub given_at: HashMap<Digest, Timestamp>,
    /// Lines whose branch or pull request is known to be gone.
    pub deleted_lines: Vec<DeletedLine>,
}

/// What to do with one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Keep it.
    Keep,
    /// Delete it.
    Delete,
    /// Delete it later: a running build may still read it.
    Wait,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keep => "keep",
            Self::Delete => "delete",
            Self::Wait => "wait",
        })
    }
}

/// What a budget may take all the same.
const EVICTABLE: [Rule; 4] = [Rule::Line, Rule::History, Rule::KeepAtLeast, Rule::Head];

/// The verdict on one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The image.
    pub image: Arc<ListedImage>,
    /// What to do.
    pub action: Action,
    /// The rule that says so.
    pub rule: Rule,
    /// Why: of an image that goes, what each of its tags says; see [`Verdict::why`].
    why: Why,
    more: Vec<Why>,
    /// Its scope, where a tag tells it.
    pub scope: Option<Scope>,
    /// Its line, where a tag or its manifest tells it.
    pub line: Option<LineKey>,
    /// Bytes that its deletion frees, after those before it in the plan: what it shares with nothing that stays.
    pub frees: u64,
}

/// What retention would do to a repository, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The repository.
    pub repository: CacheRepository,
    /// A verdict for every image, in the order of scope, line and time.
    pub verdicts: Vec<Verdict>,
    /// Bytes of all layers and configs, each counted once, as they are billed.
    pub bytes: u64,
    /// What of it is left when the plan has been carried out.
    pub bytes_after: u64,
    /// Why nothing may be deleted by this plan, whatever its verdicts say.
    pub refused: Option<String>,
    /// What could not be met or judged, for people.
    pub notes: Vec<String>,
}

impl Verdict {
    /// On an image that no tag of Stoker's says anything of.
    #[must_use]
    pub fn unnamed(image: Arc<ListedImage>, action: Action, rule: Rule, frees: u64) -> Self {
        let why = Why { reason: Reason::Unnamed, tag: 0 };
        Self { image, action, rule, why, more: Vec::new(), scope: None, line: None, frees }
    }

    /// Why, for people.
    #[must_use]
    pub fn why(&self) -> String {
        let mut text = String::new();
        for (index, why) in std::iter::once(&self.why).chain(&self.more).enumerate() {
            text.push_str(if index > 0 { "; " } else { "" });
            // Writing to a string does not fail.
            let _ = why.write(&mut text, &self.image.tags, self.rule);
        }
        if self.action == Action::Wait {
            text.push_str("; a running build was given it");
        }
        text
    }
}

impl Plan {
    /// The verdicts of one action.
    pub fn of(&self, action: Action) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(move |verdict| verdict.action == action)
    }

    /// The images to delete, the least recently pushed first; none of a plan that is refused.
    #[must_use]
    pub fn deletions(&self) -> Vec<&Verdict> {
        if self.refused.is_some() {
            return Vec::new();
        }
        let mut deletions: Vec<&Verdict> = self.of(Action::Delete).collect();
        deletions.sort_by(|a, b| {
            a.image.pushed_at.cmp(&b.image.pushed_at).then_with(|| a.image.digest.cmp(&b.image.digest))
        });
        deletions
    }

    /// What the plan's deletions are worth in a month, in US dollars.
    #[must_use]
    pub fn dollars_per_month(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a price")]
        let gigabytes = (self.bytes - self.bytes_after) as f64 / 1e9;
        gigabytes * DOLLARS_PER_GB_MONTH
    }
}

/// One tag's say on its image.
struct TagVerdict {
    action: Action,
    rule: Rule,
    reason: Reason,
}

fn keep(rule: Rule, reason: Reason) -> TagVerdict {
    TagVerdict { action: Action::Keep, rule, reason }
}

fn delete(rule: Rule, reason: Reason) -> TagVerdict {
    TagVerdict { action: Action::Delete, rule, reason }
}

/// What all tags of an image say together.
struct CombinedVerdict {
    action: Action,
    rule: Rule,
    why: Why,
    more: Vec<Why>,
}

impl CombinedVerdict {
    fn of(TagVerdict { action, rule, reason }: TagVerdict, tag: usize) -> Self {
        let tag = u32::try_from(tag).unwrap_or(u32::MAX);
        Self { action, rule, why: Why { reason, tag }, more: Vec::new() }
    }
}

/// What was an image's last use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It was pushed.
    Pushed,
    /// The newest build in it started.
    Built,
    /// A build was given it.
    Given,
}

/// When an image was last of use: pushed, built, or given to a build. When it was pulled does not count: ECR
/// takes every look at a manifest for a pull, and whoever plans looks at all.
#[must_use]
pub fn last_use(
    image: &ListedImage,
    facts: Option<ManifestInfo<'_>>,
    plan_inputs: &PlanInputs,
) -> (Timestamp, Use) {
    let known = [
        (facts.and_then(ManifestInfo::built_at), Use::Built),
        (plan_inputs.given_at.get(&image.digest).copied(), Use::Given),
    ];
    let known = known.into_iter().filter_map(|(at, by)| Some((at?, by)));
    known.fold((image.pushed_at, Use::Pushed), |last, next| if next.0 > last.0 { next } else { last })
}

/// What every judgement needs.
struct Planner<'w> {
    inventory: &'w Inventory,
    scopes: BTreeMap<&'w Scope, &'w Project>,
    plan_inputs: &'w PlanInputs,
    now: Timestamp,
    /// Commits that living lines hold.
    living: HashSet<(Scope, Commit)>,
    /// Commits that lines held whose branch is gone. Those of an idle line have their lease like any other.
    dead: HashSet<(Scope, Commit)>,
    /// The newest caches that main has left in each scope.
    kept_history: HashSet<Digest>,
    /// Parts of indexes.
    children: HashSet<Digest>,
    /// Every line that a verdict names, once.
    lines: HashSet<LineKey>,
}

/// Plans the retention of one repository. `projects` are all projects whose caches it holds.
#[must_use]
pub fn plan(inventory: &Inventory, projects: &[Project], plan_inputs: &PlanInputs, now: Timestamp) -> Plan {
    let scopes = projects.iter().flat_map(|project| project.all_scopes().map(move |scope| (scope, project)));
    let mut planner = Planner {
        inventory,
        scopes: scopes.collect(),
        plan_inputs,
        now,
        living: HashSet::new(),
        dead: HashSet::new(),
        kept_history: HashSet::new(),
        children: HashSet::new(),
        lines: HashSet::new(),
    };
    planner.survey(&HashSet::new());
    let mut verdicts: Vec<Verdict> = inventory.images.iter().map(|image| planner.verdict(image)).collect();
    let mut notes = planner.evict(projects, &mut verdicts);
    let mut evicted = of_budgets(&verdicts);
    // What a budget takes keeps nothing else: the commit of a line that goes is the head of none. Each round
    // takes some more.
    while !evicted.is_empty() {
        planner.survey(&evicted);
        for verdict in verdicts.iter_mut().filter(|verdict| verdict.action != Action::Delete) {
            *verdict = planner.verdict(&verdict.image);
        }
        notes = planner.evict(projects, &mut verdicts);
        let more = of_budgets(&verdicts);
        if more.len() == evicted.len() {
            break;
        }
        evicted = more;
    }
    let (bytes, bytes_after) = account(inventory, &mut verdicts);
    verdicts.sort_unstable_by(order);
    let unread = inventory.unread.len();
    let refused = (unread > 0).then(|| {
        format!("unread manifests: {unread}. What they keep alive is not known, so nothing is deleted")
    });
    Plan { repository: inventory.repository.clone(), verdicts, bytes, bytes_after, refused, notes }
}

/// By scope, line and time. Scopes and lines are shared by many verdicts, and to be the same is cheaper to
/// find than which comes first.
fn order(a: &Verdict, b: &Verdict) -> Ordering {
    let by_scope = if a.scope == b.scope { Ordering::Equal } else { a.scope.cmp(&b.scope) };
    let by_line = || if a.line == b.line { Ordering::Equal } else { a.line.cmp(&b.line) };
    let by_image = || (a.image.pushed_at, &a.image.digest).cmp(&(b.image.pushed_at, &b.image.digest));
    by_scope.then_with(by_line).then_with(by_image)
}

/// The images that a budget takes.
fn of_budgets(verdicts: &[Verdict]) -> HashSet<Digest> {
    let taken = |verdict: &&Verdict| matches!(verdict.rule, Rule::ScopeBudget | Rule::RepositoryBudget);
    verdicts.iter().filter(taken).map(|verdict| verdict.image.digest.clone()).collect()
}

impl<'w> Planner<'w> {
    fn facts(&self, image: &ListedImage) -> Option<ManifestInfo<'w>> {
        self.inventory.known.of(&image.digest)
    }

    /// First the lines: which commits a living line holds, and which went with a branch. `evicted` holds nothing.
    fn survey(&mut self, evicted: &HashSet<Digest>) {
        self.living.clear();
        self.kept_history.clear();
        let mut history: BTreeMap<Scope, Vec<(Timestamp, Digest)>> = BTreeMap::new();
        for image in self.inventory.images.iter().filter(|image| !evicted.contains(&image.digest)) {
            let facts = self.facts(image);
            self.children.extend(facts.into_iter().flat_map(ManifestInfo::children).cloned());
            for tag in &image.tags {
                let Some((scope, kind)) = Tag::parse(tag) else { continue };
                let (line, is_line) = match kind {
                    TagKind::Line(line) => (line, true),
                    TagKind::History { line, left_at } => {
                        if line.is_main() {
                            let of_scope = history.entry(scope.clone()).or_default();
                            of_scope.push((left_at, image.digest.clone()));
                        }
                        (line, false)
                    }
                    _ => continue,
                };
                let Some(project) = self.scopes.get(&scope).copied() else { continue };
                let Some(head) = facts.and_then(ManifestInfo::commit) else { continue };
                let say = self.line_verdict(&scope, project, &line, image);
                if is_line && say.action == Action::Keep {
                    self.living.insert((scope, head));
                } else if say.rule == Rule::DeletedLine {
                    self.dead.insert((scope, head));
                }
            }
        }
        for (scope, mut left) in history {
            let Some(project) = self.scopes.get(&scope) else { continue };
            left.sort_unstable();
            let newest = left.into_iter().rev().take(project.retention.keep_at_least as usize);
            self.kept_history.extend(newest.map(|(_, digest)| digest));
        }
    }

    fn line_verdict(
        &self,
        scope: &Scope,
        project: &Project,
        line: &LineKey,
        image: &ListedImage,
    ) -> TagVerdict {
        let is_gone =
            |gone: &&DeletedLine| gone.scope == *scope && gone.line == *line && image.pushed_at <= gone.at;
        if line.is_main() {
            return keep(Rule::Main, Reason::Main);
        }
        if let Some(gone) = self.plan_inputs.deleted_lines.iter().find(is_gone) {
            return delete(Rule::DeletedLine, Reason::DeletedLine(gone.at));
        }
        if let Some(named) = self.facts(image).and_then(ManifestInfo::shared_line)
            && let Line::Branch(branch) = &**named
            && project.retention.keep_branches.as_ref().is_some_and(|globs| globs.matches(branch.as_str()))
        {
            return keep(Rule::KeepBranches, Reason::KeepBranches(Arc::clone(named)));
        }
        let used = self.last_used(image);
        if self.age(used) > project.retention.idle_branch {
            delete(Rule::IdleBranch, Reason::Idle(used))
        } else {
            keep(Rule::Line, Reason::Line)
        }
    }

    fn age(&self, time: Timestamp) -> SignedDuration {
        self.now.duration_since(time)
    }

    fn last_used(&self, image: &ListedImage) -> Timestamp {
        last_use(image, self.facts(image), self.plan_inputs).0
    }

    fn tag_verdict(&self, tag: &str, parsed: Option<(Scope, TagKind)>, image: &ListedImage) -> TagVerdict {
        let Some((scope, kind)) = parsed else {
            return keep(Rule::NotOurs, Reason::NoTagOfOurs);
        };
        let Some(project) = self.scopes.get(&scope).copied() else {
            return keep(Rule::NotOurs, Reason::NoProject);
        };
        let retention = &project.retention;
        if retention.pinned.iter().any(|pin| pin == tag || is_digest(pin, image)) {
            return keep(Rule::Pinned, Reason::Pinned);
        }
        match kind {
            TagKind::Line(line) => self.line_verdict(&scope, project, &line, image),
            TagKind::History { line, left_at } => {
                let say = self.line_verdict(&scope, project, &line, image);
                if say.rule == Rule::DeletedLine {
                    return say;
                }
                let age = self.age(left_at);
                if age <= retention.lease {
                    keep(Rule::Lease, Reason::LeftWithinLease)
                } else if self.kept_history.contains(&image.digest) {
                    keep(Rule::KeepAtLeast, Reason::LeftNewest)
                } else if say.rule == Rule::IdleBranch {
                    say
                } else if age <= retention.history {
                    keep(Rule::History, Reason::Left)
                } else {
                    delete(Rule::ExpiredHistory, Reason::Left)
                }
            }
            TagKind::Commit(commit) => {
                let key = (scope, commit);
                if self.living.contains(&key) {
                    keep(Rule::Head, Reason::Head)
                } else if self.dead.contains(&key) {
                    delete(Rule::OldCommit, Reason::WentWithLine)
                } else if self.age(image.pushed_at) > retention.lease {
                    delete(Rule::OldCommit, Reason::NoHead)
                } else {
                    keep(Rule::Lease, Reason::CommitWithinLease)
                }
            }
            TagKind::Fork(_) if self.age(image.pushed_at) > retention.idle_branch => {
                delete(Rule::OldFork, Reason::OldFork)
            }
            TagKind::Fork(_) => keep(Rule::Fork, Reason::Fork),
            TagKind::Export(_) if self.age(image.pushed_at) > retention.lease => {
                delete(Rule::AbandonedExport, Reason::OldExport)
            }
            TagKind::Export(_) => keep(Rule::Lease, Reason::ExportWithinLease),
            TagKind::Given(_) if self.age(image.pushed_at) > retention.lease + GIVEN_FOR => {
                delete(Rule::OldGiven, Reason::OldGiven)
            }
            TagKind::Given(_) => keep(Rule::Lease, Reason::GivenWithinLease),
        }
    }

    /// One tag that wants its image kept keeps it, and so does whatever else is not known to be a cache of ours.
    fn verdict(&mut self, image: &Arc<ListedImage>) -> Verdict {
        let facts = self.facts(image);
        let parsed: Vec<Option<(Scope, TagKind)>> = image.tags.iter().map(|tag| Tag::parse(tag)).collect();
        let first = parsed.iter().flatten().next();
        let line = first.and_then(|(_, kind)| match kind {
            TagKind::Line(line) | TagKind::History { line, .. } => Some(line.clone()),
            _ => facts.and_then(ManifestInfo::line).map(Line::key),
        });
        let own = |scope: &Scope| self.scopes.get_key_value(scope).map_or(scope, |(own, _)| *own).clone();
        let scope = first.map(|(scope, _)| own(scope));
        let mut judged = self.untagged_or_tags(parsed, image);
        if judged.action == Action::Delete {
            if image.is_archived || facts.is_none() {
                judged = CombinedVerdict::of(keep(Rule::Unread, Reason::Unread), 0);
            } else if facts.is_some_and(|facts| facts.shape() == Shape::TooLarge) {
                judged = CombinedVerdict::of(keep(Rule::Unread, Reason::TooLarge), 0);
            } else if facts.is_some_and(|facts| !facts.shape().is_ours()) {
                judged = CombinedVerdict::of(keep(Rule::NotCache, Reason::NotCache), 0);
            } else if self.children.contains(&image.digest) {
                judged = CombinedVerdict::of(keep(Rule::Child, Reason::Child), 0);
            } else if self.plan_inputs.leased.contains(&image.digest) {
                judged.action = Action::Wait;
            }
        }
        let CombinedVerdict { action, rule, why, more } = judged;
        let image = Arc::clone(image);
        Verdict { image, action, rule, why, more, scope, line: line.map(|line| self.one(line)), frees: 0 }
    }

    /// The one copy of a line's key.
    fn one(&mut self, line: LineKey) -> LineKey {
        if let Some(known) = self.lines.get(&line) {
            return known.clone();
        }
        self.lines.insert(line.clone());
        line
    }

    fn untagged_or_tags(
        &self,
        parsed: Vec<Option<(Scope, TagKind)>>,
        image: &ListedImage,
    ) -> CombinedVerdict {
        let mut kept: Option<(TagVerdict, usize)> = None;
        let mut deleted: Option<CombinedVerdict> = None;
        // What a budget cannot take has the word: a pinned or foreign tag beside a line's keeps that line's cache, too.
        let rank = |say: &TagVerdict| (EVICTABLE.contains(&say.rule), say.rule);
        for (index, (tag, parsed)) in image.tags.iter().zip(parsed).enumerate() {
            let say = self.tag_verdict(tag, parsed, image);
            if say.action == Action::Keep {
                if kept.as_ref().is_none_or(|(best, _)| rank(&say) < rank(best)) {
                    kept = Some((say, index));
                }
            } else if let Some(first) = &mut deleted {
                first.more.push(CombinedVerdict::of(say, index).why);
            } else {
                deleted = Some(CombinedVerdict::of(say, index));
            }
        }
        kept.map(|(say, index)| CombinedVerdict::of(say, index))
            .or(deleted)
            .unwrap_or_else(|| CombinedVerdict::of(self.orphan_verdict(image), 0))
    }

    /// An image without a tag: what an export over an older one leaves behind. No tag tells its project, so the most
    /// patient of the repository's projects speaks.
    fn orphan_verdict(&self, image: &ListedImage) -> TagVerdict {
        let patience = self.scopes.values().filter_map(|project| project.retention.orphans).max();
        let is_patient = self.scopes.values().any(|project| project.retention.orphans.is_none());
        let pinned = self.scopes.values().flat_map(|project| &project.retention.pinned);
        if pinned.clone().any(|pin| is_digest(pin, image)) {
            return keep(Rule::Pinned, Reason::DigestPinned);
        }
        let used = self.last_used(image);
        match patience.filter(|_| !is_patient) {
            Some(patience) if self.age(used) > patience => delete(Rule::Orphan, Reason::Orphan(used)),
            Some(_) => keep(Rule::Lease, Reason::OrphanWithinLease),
            None => keep(Rule::NotOurs, Reason::Unnamed),
        }
    }

    /// Brings scopes and the repository within their budgets: of what may go, what was used least lately goes first.
    /// Answers what cannot be met.
    fn evict(&self, projects: &[Project], verdicts: &mut [Verdict]) -> Vec<String> {
        let mut notes = Vec::new();
        for project in projects {
            let Some(budget) = project.retention.scope_budget else { continue };
            for scope in project.all_scopes() {
                let of_scope = |verdict: &Verdict| verdict.scope.as_ref() == Some(scope);
                let left = self.evict_from(verdicts, &of_scope, Rule::ScopeBudget, budget);
                if left > budget {
                    notes.push(format!(
                        "{scope} holds {left} bytes of caches that may not go, {budget} are its budget"
                    ));
                }
            }
        }
        let budgets = projects.iter().filter_map(|project| project.retention.repository_budget);
        if let Some(budget) = budgets.max() {
            let left = self.evict_from(verdicts, &|_| true, Rule::RepositoryBudget, budget);
            if left > budget {
                let name = &self.inventory.repository;
                notes.push(format!("{name} holds {left} bytes that may not go, {budget} are its budget"));
            }
        }
        notes
    }

    fn evict_from(
        &self,
        verdicts: &mut [Verdict],
        is_asked: &dyn Fn(&Verdict) -> bool,
        rule: Rule,
        budget: u64,
    ) -> u64 {
        let known = &self.inventory.known;
        let mut counts = Counts::new(self.inventory);
        for verdict in verdicts.iter().filter(|verdict| is_asked(verdict) && verdict.action != Action::Delete)
        {
            counts.add(self.inventory, &verdict.image.digest);
        }
        let mut left = counts.bytes(self.inventory);
        let may_go = |verdict: &Verdict| {
            let is_ours = known.of(&verdict.image.digest).is_some_and(|facts| facts.shape().is_ours());
            is_asked(verdict)
                && verdict.action == Action::Keep
                && EVICTABLE.contains(&verdict.rule)
                && is_ours
                && !verdict.image.is_archived
                && !self.children.contains(&verdict.image.digest)
                && !self.plan_inputs.leased.contains(&verdict.image.digest)
                && self.age(verdict.image.pushed_at) > self.lease_of(verdict)
        };
        let mut candidates: Vec<usize> = (0..verdicts.len()).filter(|&at| may_go(&verdicts[at])).collect();
        candidates.sort_by_cached_key(|&at| {
            let image = &verdicts[at].image;
            (self.last_used(image), image.digest.clone())
        });
        for at in candidates {
            if left <= budget {
                break;
            }
            left -= counts.remove(self.inventory, &verdicts[at].image.digest);
            let used = self.last_used(&verdicts[at].image);
            let verdict = &mut verdicts[at];
            verdict.action = Action::Delete;
            verdict.rule = rule;
            verdict.why = Why { reason: Reason::Budget(used), tag: 0 };
            verdict.more = Vec::new();
        }
        left
    }

    fn lease_of(&self, verdict: &Verdict) -> SignedDuration {
        let project = verdict.scope.as_ref().and_then(|scope| self.scopes.get(scope));
        project.map_or(SignedDuration::MAX, |project| project.retention.lease)
    }
}

/// How many images hold each blob, by its place.
struct Counts(Vec<u32>);

impl Counts {
    fn new(inventory: &Inventory) -> Self {
        Self(vec![0; inventory.known.blobs()])
    }

    fn add(&mut self, inventory: &Inventory, digest: &Digest) {
        for blob in inventory.known.of(digest).into_iter().flat_map(ManifestInfo::blobs) {
            if let Some(count) = self.0.get_mut(*blob as usize) {
                *count += 1;
            }
        }
    }

    /// Answers the bytes that nothing holds any more.
    fn remove(&mut self, inventory: &Inventory, digest: &Digest) -> u64 {
        let mut freed = 0;
        for blob in inventory.known.of(digest).into_iter().flat_map(ManifestInfo::blobs) {
            if let Some(count) = self.0.get_mut(*blob as usize).filter(|count| **count > 0) {
                *count -= 1;
                if *count == 0 {
                    freed += inventory.known.size(*blob);
                }
            }
        }
        freed
    }

    fn bytes(&self, inventory: &Inventory) -> u64 {
        let held = (0..).zip(&self.0).filter(|(_, count)| **count > 0);
        held.map(|(blob, _)| inventory.known.size(blob)).sum()
    }
}

/// Says what each deletion frees, the least recently pushed first; answers the bytes before and after.
fn account(inventory: &Inventory, verdicts: &mut [Verdict]) -> (u64, u64) {
    let mut counts = Counts::new(inventory);
    for verdict in verdicts.iter() {
        counts.add(inventory, &verdict.image.digest);
    }
    let bytes = counts.bytes(inventory);
    let mut order: Vec<usize> =
        (0..verdicts.len()).filter(|&at| verdicts[at].action == Action::Delete).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&verdicts[a].image, &verdicts[b].image);
        (a.pushed_at, &a.digest).cmp(&(b.pushed_at, &b.digest))
    });
    let mut after = bytes;
    for at in order {
        verdicts[at].frees = counts.remove(inventory, &verdicts[at].image.digest);
        after -= verdicts[at].frees;
    }
    (bytes, after)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for verdict in &self.verdicts {
            let Verdict { image, action, .. } = verdict;
            let (digest, tags) = (image.digest.short(), image.tags.join(" "));
            writeln!(f, "{action:6} {digest} {tags} ({})", verdict.why())?;
        }
        let deletions = self.of(Action::Delete).count();
        write!(f, "{}: {deletions} of {} images to delete", self.repository, self.verdicts.len())
    }
}

/// Whether a plan of these projects is carried out: all of them have to agree.
#[must_use]
pub fn mode(projects: &[Project]) -> Mode {
    if projects.iter().all(|project| project.retention.mode == Mode::Apply) {
        Mode::Apply
    } else {
        Mode::Report
    }
}

fn is_digest(pin: &str, image: &ListedImage) -> bool {
    pin.starts_with("sha256:") && Digest::new(pin).is_ok_and(|pinned| pinned == image.digest)
}
