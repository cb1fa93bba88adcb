//! Plans as programs read them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use stoker_core::names::{Digest, ProjectName};
use stoker_core::retain::inventory::ManifestInfo;
use stoker_core::retain::plan::DOLLARS_PER_GB_MONTH;
use stoker_core::retain::{Action, Rule, Verdict};

use super::Planned;

/// The plans of all repositories.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) policy: String,
    pub(super) at: Timestamp,
    pub(super) dollars_per_gb_month: f64,
    pub(super) totals: Totals,
    pub(super) repositories: Vec<OfRepository>,
}

/// What comes to what.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Totals {
    pub(super) images: usize,
    pub(super) delete: usize,
    pub(super) wait: usize,
    pub(super) keep: usize,
    /// Bytes of all blobs, each counted once in a repository, as they are billed.
    pub(super) bytes: u64,
    pub(super) bytes_after: u64,
    pub(super) dollars_per_month: f64,
    pub(super) dollars_per_month_after: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfRepository {
    pub(super) repository: String,
    pub(super) projects: Vec<ProjectName>,
    pub(super) mode: String,
    pub(super) max_deletions: usize,
    #[serde(flatten)]
    pub(super) totals: Totals,
    /// Why nothing may be deleted, whatever the verdicts say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refused: Option<String>,
    pub(super) notes: Vec<String>,
    pub(super) rules: Vec<OfRule>,
    pub(super) verdicts: Vec<Judged>,
}

/// What one rule comes to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfRule {
    pub(super) action: String,
    pub(super) rule: &'static str,
    pub(super) images: usize,
    pub(super) frees: u64,
}

/// The verdict on an image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Judged {
    pub(super) digest: Digest,
    pub(super) tags: Vec<String>,
    pub(super) action: String,
    pub(super) rule: &'static str,
    pub(super) why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) project: Option<ProjectName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) commit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) build: Option<String>,
    pub(super) pushed_at: Timestamp,
    pub(super) bytes: u64,
    pub(super) frees: u64,
}

/// What so many bytes cost in a month.
#[expect(clippy::cast_precision_loss, reason = "a price")]
pub(super) fn dollars(bytes: u64) -> f64 {
    bytes as f64 / 1e9 * DOLLARS_PER_GB_MONTH
}

impl Totals {
    fn of(planned: &Planned) -> Self {
        let plan = &planned.plan;
        let count = |action| plan.of(action).count();
        Self {
            images: plan.verdicts.len(),
            delete: count(Action::Delete),
            wait: count(Action::Wait),
            keep: count(Action::Keep),
            bytes: plan.bytes,
            bytes_after: plan.bytes_after,
            dollars_per_month: dollars(plan.bytes),
            dollars_per_month_after: dollars(plan.bytes_after),
        }
    }

    fn add(&mut self, other: &Self) {
        self.images += other.images;
        self.delete += other.delete;
        self.wait += other.wait;
        self.keep += other.keep;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.bytes_after = self.bytes_after.saturating_add(other.bytes_after);
        self.dollars_per_month += other.dollars_per_month;
        self.dollars_per_month_after += other.dollars_per_month_after;
    }
}

impl Report {
    /// `all`: with the verdicts on what is kept.
    pub(super) fn new(policy: String, at: Timestamp, planned: &[Planned], all: bool) -> Self {
        let repositories: Vec<OfRepository> =
            planned.iter().map(|planned| OfRepository::new(planned, all)).collect();
        let mut totals = Totals::default();
        for repository in &repositories {
            totals.add(&repository.totals);
        }
        Self { policy, at, dollars_per_gb_month: DOLLARS_PER_GB_MONTH, totals, repositories }
    }
}

impl OfRepository {
    fn new(planned: &Planned, all: bool) -> Self {
        let plan = &planned.plan;
        let mut rules: BTreeMap<(Action, Rule), (usize, u64)> = BTreeMap::new();
        for verdict in &plan.verdicts {
            let (images, frees) = rules.entry((verdict.action, verdict.rule)).or_default();
            *images += 1;
            *frees += verdict.frees;
        }
        let rules = rules.into_iter().map(|((action, rule), (images, frees))| OfRule {
            action: action.to_string(),
            rule: rule.name(),
            images,
            frees,
        });
        let reported = plan.verdicts.iter().filter(|verdict| all || verdict.action != Action::Keep);
        Self {
            repository: plan.repository.to_string(),
            projects: planned.projects.iter().map(|project| project.name.clone()).collect(),
            mode: planned.mode().to_string(),
            max_deletions: planned.most(),
            totals: Totals::of(planned),
            refused: plan.refused.clone(),
            notes: plan.notes.clone(),
            rules: rules.collect(),
            verdicts: reported.map(|verdict| Judged::new(planned, verdict)).collect(),
        }
    }
}

impl Judged {
    pub(super) fn new(planned: &Planned, verdict: &Verdict) -> Self {
        let facts = planned.inventory.known.of(&verdict.image.digest);
        let owner = verdict
            .scope
            .as_ref()
            .and_then(|scope| planned.projects.iter().find(|project| project.has_scope(scope)));
        // A hashed slug does not tell the line; a name that is not the tag's is a lie.
        let named = facts.and_then(ManifestInfo::line);
        let named = named.filter(|line| Some(line.key()) == verdict.line);
        Self {
            digest: verdict.image.digest.clone(),
            tags: verdict.image.tags.clone(),
            action: verdict.action.to_string(),
            rule: verdict.rule.name(),
            why: verdict.why(),
            project: owner.map(|project| project.name.clone()),
            scope: verdict.scope.as_ref().map(ToString::to_string),
            line: named.map(ToString::to_string).or_else(|| verdict.line.as_ref().map(ToString::to_string)),
            commit: facts.and_then(ManifestInfo::commit).map(|commit| commit.to_string()),
            build: facts.and_then(ManifestInfo::build).map(str::to_owned),
            pushed_at: verdict.image.pushed_at,
            bytes: verdict.image.bytes,
            frees: verdict.frees,
        }
    }
}
