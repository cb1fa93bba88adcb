//! Which function acts on which event, and through which queue the event comes. The functions,
//! `stoker simulate` and the scenarios read this table, and a test holds the rules, queues and schedules of
//! `template.yaml` to it.

use crate::event::Event;
use crate::names::{Line, Tag, TagKind};

/// A function that queues feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// Starts the builds of pushes.
    StartBuild,
    /// Moves lines.
    PromoteCache,
    /// Keeps main's cache filled.
    WarmMain,
    /// Deletes what nothing needs.
    EnforceRetention,
}

impl Function {
    /// Its name, without the stack's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::StartBuild => "start-build",
            Self::PromoteCache => "promote-cache",
            Self::WarmMain => "warm-main",
            Self::EnforceRetention => "enforce-retention",
        }
    }

    /// Whether it acts on an event.
    #[must_use]
    pub fn acts_on(self, event: &Event) -> bool {
        queues(event).any(|queue| queue.function() == self)
    }
}

/// A queue between the bus or a schedule and a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Pushes to build.
    Start,
    /// All that updates a line, in order.
    Promotion,
    /// Projects that may have lost events.
    Reconcile,
    /// Mains that may want a build.
    Warm,
    /// Branches and pull requests that are over.
    Retention,
    /// Cache repositories that may hold what can go.
    NightlyRetention,
}

impl Queue {
    /// Every queue.
    pub const ALL: [Self; 6] =
        [Self::Start, Self::Promotion, Self::Reconcile, Self::Warm, Self::Retention, Self::NightlyRetention];

    /// Its name in `template.yaml`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "StartQueue",
            Self::Promotion => "PromotionQueue",
            Self::Reconcile => "ReconcileQueue",
            Self::Warm => "WarmQueue",
            Self::Retention => "RetentionQueue",
            Self::NightlyRetention => "NightlyRetentionQueue",
        }
    }

    /// The function that takes from it.
    #[must_use]
    pub const fn function(self) -> Function {
        match self {
            Self::Start => Function::StartBuild,
            Self::Promotion | Self::Reconcile => Function::PromoteCache,
            Self::Warm => Function::WarmMain,
            Self::Retention | Self::NightlyRetention => Function::EnforceRetention,
        }
    }
}

/// Which events of a kind are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// All of them.
    Always,
    /// Pushes to the default branch.
    ToDefaultBranch,
    /// Those of a fork.
    FromFork,
    /// Builds of main.
    OfMain,
    /// Builds that have ended and that nobody has stopped.
    BuildEnded,
    /// Pushes of what a build exports.
    ExportPushed,
}

impl When {
    fn holds(self, event: &Event) -> bool {
        match (self, event) {
            (Self::Always, _) => true,
            (Self::ToDefaultBranch, Event::BranchPushed(push)) => push.to_default_branch,
            (Self::FromFork, Event::PullRequestUpdated(pull)) => pull.from_fork,
            (Self::OfMain, Event::BuildFailed(failed)) => failed.line == Line::Main,
            (Self::BuildEnded, Event::BuildStateChange(change)) => {
                change.build_status == "SUCCEEDED" || change.has_failed()
            }
            (Self::ExportPushed, Event::ImageAction(action)) => {
                let tag = action.image_tag.as_deref().and_then(Tag::parse);
                let is_export = matches!(tag, Some((_, TagKind::Export(_))));
                action.action_type == "PUSH" && action.result == "SUCCESS" && is_export
            }
            _ => false,
        }
    }
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The event's `detail-type`.
    pub event: &'static str,
    /// Which of them.
    pub when: When,
    /// Where they go.
    pub queue: Queue,
}

const fn route(event: &'static str, when: When, queue: Queue) -> Route {
    Route { event, when, queue }
}

/// Where every event goes.
pub const ROUTES: [Route; 20] = [
    route("BranchPushed", When::Always, Queue::Start),
    route("BranchPushed", When::ToDefaultBranch, Queue::Promotion),
    route("BranchPushed", When::ToDefaultBranch, Queue::Warm),
    route("TagPushed", When::Always, Queue::Start),
    route("PullRequestUpdated", When::Always, Queue::Start),
    // So that no push brings what somebody else made of a fork's commit.
    route("PullRequestUpdated", When::FromFork, Queue::Promotion),
    route("PullRequestApproved", When::Always, Queue::Start),
    route("PullRequestMerged", When::Always, Queue::Promotion),
    route("PullRequestClosed", When::Always, Queue::Retention),
    route("BranchDeleted", When::Always, Queue::Retention),
    route("CodeBuild Build State Change", When::BuildEnded, Queue::Promotion),
    route("ECR Image Action", When::ExportPushed, Queue::Promotion),
    route("BuildFailed", When::OfMain, Queue::Warm),
    // A schedule ticks, and each project or repository whose turn it is comes back by itself.
    route("NightlyReconcile", When::Always, Queue::Reconcile),
    route("ReconcileRequested", When::Always, Queue::Reconcile),
    route("DriftFound", When::Always, Queue::Promotion),
    route("NightlyWarm", When::Always, Queue::Warm),
    route("WarmRequested", When::Always, Queue::Warm),
    route("NightlyRetention", When::Always, Queue::NightlyRetention),
    route("RetentionRequested", When::Always, Queue::NightlyRetention),
];

/// The events that are for people.
pub const NOTICES: [&str; 5] =
    ["BuildFailed", "BuildDelayed", "CacheHitRateDropped", "WebhookRefused", "PromotionFailed"];

/// The queues that an event goes to.
pub fn queues(event: &Event) -> impl Iterator<Item = Queue> + '_ {
    of_kind(event).filter(|route| route.when.holds(event)).map(|route| route.queue)
}

/// The rows of the table for events of this kind, whether they are for this one or not.
pub fn of_kind(event: &Event) -> impl Iterator<Item = &'static Route> + '_ {
    ROUTES.iter().filter(|route| route.event == event.detail_type())
}
