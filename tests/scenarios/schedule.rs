//! The night of a fleet: every project and every repository has its turn, and none waits for another.

use std::collections::BTreeMap;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use jiff::{SignedDuration, Timestamp};
use scenarios::account::{Account, Fault};
use scenarios::environment::REGISTRY;
use scenarios::{iam, template};
use stoker_core::error::Failure;
use stoker_core::event::{Due, Envelope, Event, RetentionRequested, Tick};
use stoker_core::names::{CacheRepository, ProjectName};
use stoker_core::policy::Policy;

/// All projects of the fleet, each with a repository for what builds write.
const POLICY: &str = "
version: 1
projects:
  - { name: '*', repository: 'github.com/example/{project}', builds-repository: 'stoker-builds/{project}' }
";

/// The three schedules, by what ticks.
const SCHEDULES: [fn(Tick) -> Event; 3] =
    [Event::NightlyReconcile, Event::NightlyWarm, Event::NightlyRetention];

fn policy() -> Policy {
    Policy::parse("the fleet's policy", POLICY).unwrap()
}

/// An account with so many projects.
fn fleet(projects: u32) -> Account {
    let account = Account::default();
    account.deploy(iam::deployed(true, false));
    account.set_now("2026-11-21T20:00:00Z".parse().unwrap());
    let names = (0..projects).map(|n| ProjectName::new(format!("p{n:05}")).unwrap());
    account.projects.borrow_mut().extend(names);
    account
}

fn message(event: Event, time: Option<Timestamp>) -> SqsEvent {
    let envelope = Envelope { time, source: "stoker".to_owned(), event };
    let mut message = SqsMessage::default();
    message.message_id = Some("1".to_owned());
    message.body = Some(serde_json::to_string(&envelope).unwrap());
    let mut batch = SqsEvent::default();
    batch.records.push(message);
    batch
}

/// The function whose queue the event comes by handles it; whether it is to come again.
async fn handle(account: &Account, policy: &Policy, event: Event) -> bool {
    let now = account.now();
    let batch = message(event.clone(), Some(now));
    let response: Option<SqsBatchResponse> = match event {
        Event::NightlyWarm(_) => {
            let handled = warm_main::handle(&batch, policy, REGISTRY, account, now);
            account.invoke("warm-main", Some("WarmQueue"), handled).await
        }
        Event::NightlyRetention(_) | Event::RetentionRequested(_) => {
            let handled = enforce_retention::handle(&batch, policy, account, now);
            account.invoke("enforce-retention", Some("NightlyRetentionQueue"), handled).await
        }
        _ => {
            let promoter = promote_cache::Instance::default();
            let handled = promote_cache::handle(&batch, policy, account, &promoter, now);
            account.invoke("promote-cache", Some("ReconcileQueue"), handled).await
        }
    };
    !response.unwrap().batch_item_failures.is_empty()
}

/// What was put on the bus, by whose turn it is.
fn turns(account: &Account) -> Vec<String> {
    let turn = |event| match event {
        Event::WarmRequested(Due { project }) | Event::ReconcileRequested(Due { project }) => {
            project.to_string()
        }
        Event::RetentionRequested(RetentionRequested { repository, .. }) => repository.to_string(),
        other => panic!("{other:?} is nobody's turn"),
    };
    account.bus.borrow_mut().drain(..).map(turn).collect()
}

/// How often each turn comes.
fn counted(turns: Vec<String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for turn in turns {
        *counts.entry(turn).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn over_a_night_everybody_has_one_turn_whatever_the_number_of_ticks() {
    let (account, policy) = (fleet(300), policy());
    for schedule in SCHEDULES {
        for (slots, every_minutes) in [(1, 1), (7, 13), (24, 10), (100, 2)] {
            let mut all = Vec::new();
            let mut most = 0;
            for _ in 0..slots {
                assert!(!handle(&account, &policy, schedule(Tick { slots, every_minutes })).await);
                let some = turns(&account);
                most = most.max(some.len());
                all.extend(some);
                account.set_now(account.now() + SignedDuration::from_mins(i64::from(every_minutes)));
            }
            let counts = counted(all);
            // Retention has the turns of repositories, two for each project.
            let is_retention = schedule(Tick { slots, every_minutes }).detail_type() == "NightlyRetention";
            let expected = if is_retention { 600 } else { 300 };
            assert_eq!(counts.len(), expected, "{slots} ticks");
            assert!(counts.values().all(|turns| *turns == 1), "{slots} ticks: {counts:?}");
            let fair = expected / slots as usize + 1;
            assert!(most <= 2 * fair + 10, "{slots} ticks: {most} at once");
        }
    }
}

#[tokio::test]
async fn a_tick_of_ten_thousand_projects_lists_them_and_puts_ten_turns_with_a_call() {
    let policy = policy();
    for schedule in SCHEDULES {
        let account = fleet(10_000);
        let tick = schedule(Tick { slots: 24, every_minutes: 10 });
        assert!(!handle(&account, &policy, tick.clone()).await);
        let turns = turns(&account).len();
        assert!((300..=1000).contains(&turns), "a share of the fleet: {turns}");
        let mut calls: BTreeMap<&str, usize> = BTreeMap::new();
        for call in account.calls.borrow().iter() {
            *calls.entry(*call).or_default() += 1;
        }
        let expected = [("codebuild:ListProjects", 1), ("events:PutEvents", turns.div_ceil(10))];
        assert_eq!(calls, BTreeMap::from(expected), "{}", tick.detail_type());
    }
}

#[tokio::test]
async fn what_a_tick_that_died_half_way_has_not_put_is_put_by_its_next_try() {
    let policy = policy();
    for schedule in SCHEDULES {
        let account = fleet(300);
        let tick = schedule(Tick { slots: 4, every_minutes: 10 });
        assert!(!handle(&account, &policy, tick.clone()).await);
        let baseline = counted(turns(&account));
        let calls = account.calls.borrow().len();
        // The list, some turns, and no more.
        account.faults.borrow_mut().insert(calls + 3, Fault::Before(Failure::Unavailable));
        assert!(handle(&account, &policy, tick.clone()).await, "it comes again");
        let some = counted(turns(&account));
        assert_eq!(some.len(), 20);
        assert!(!handle(&account, &policy, tick).await);
        let mut again = counted(turns(&account));
        assert_eq!(again, baseline);
        again.extend(some);
        assert_eq!(again, baseline, "what is put twice is the same turns");
    }
}

#[tokio::test]
async fn a_turn_of_a_repository_names_its_projects_and_lists_nothing() {
    let (account, policy) = (fleet(3), policy());
    // Repositories are in lower case, so this one shares that of `p00001`.
    account.projects.borrow_mut().push(ProjectName::new("P00001").unwrap());
    assert!(!handle(&account, &policy, Event::NightlyRetention(Tick { slots: 1, every_minutes: 1 })).await);
    let wanted: Vec<Event> = account.bus.borrow_mut().drain(..).collect();
    let named = |repository: &str| {
        let of = wanted.iter().find_map(|event| match event {
            Event::RetentionRequested(wanted) if wanted.repository.as_str() == repository => Some(wanted),
            _ => None,
        });
        of.unwrap().projects.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(named("stoker/p00000"), ["p00000"]);
    assert_eq!(named("stoker/p00001"), ["P00001", "p00001"]);
    assert_eq!(named("stoker-builds/p00001"), ["P00001", "p00001"]);
    account.calls.borrow_mut().clear();
    for event in wanted {
        assert!(!handle(&account, &policy, event).await);
    }
    let calls = account.calls.borrow();
    let count = |call| calls.iter().filter(|made| **made == call).count();
    assert_eq!(count("codebuild:ListProjects"), 0, "{calls:?}");
    // Each is a plan with the builds of all its projects.
    assert_eq!((count("ecr:DescribeImages"), count("codebuild:ListBuildsForProject")), (6, 8));
}

#[tokio::test]
async fn a_turn_for_what_the_policy_does_not_name_does_nothing() {
    let (account, policy) = (fleet(3), policy());
    // No repository can have such a name, so the project has none.
    let project = ProjectName::new("other-").unwrap();
    let projects = vec![project.clone(), ProjectName::new("p00001").unwrap()];
    for event in [
        Event::ReconcileRequested(Due { project: project.clone() }),
        Event::DriftFound(Due { project }),
        // Named projects that have their caches elsewhere.
        Event::RetentionRequested(RetentionRequested {
            repository: CacheRepository::new("library/app").unwrap(),
            projects,
        }),
    ] {
        assert!(!handle(&account, &policy, event).await);
    }
    assert!(account.calls.borrow().is_empty(), "{:?}", account.calls);
}

#[test]
fn no_message_comes_again_while_it_may_still_be_handled() {
    let template = template::read();
    let sources = template::events(&template, "SQS");
    assert_eq!(sources.len(), 6);
    for (function, source) in sources.into_values() {
        let queue = template::resource_of(&source["Queue"]).unwrap();
        let visible_after = template["Resources"][&queue]["Properties"]["VisibilityTimeout"].as_i64();
        let timeout = template["Resources"][function]["Properties"]["Timeout"].as_i64();
        assert!(visible_after >= timeout, "{queue} is shown again before {function} ends");
    }
}

#[test]
fn the_schedules_tick_as_often_as_they_say() {
    let template = template::read();
    let default = |parameter: &str| template["Parameters"][parameter]["Default"].to_string();
    let (slots, minutes) = (default("NightlySlots"), default("NightlyMinutes"));
    for (name, schedule) in template::of_type(&template, template::SCHEDULE) {
        let input = schedule["Target"]["Input"]["Fn::Sub"].as_str().unwrap();
        let input = input
            .replace("${NightlySlots}", &slots)
            .replace("${NightlyMinutes}", &minutes)
            .replace("<aws.scheduler.scheduled-time>", "2026-11-21T20:00:00Z");
        let Envelope { time, event, .. } = Envelope::parse(&input).unwrap();
        assert!(time.is_some(), "{name} says when it was due");
        let (Event::NightlyReconcile(tick) | Event::NightlyWarm(tick) | Event::NightlyRetention(tick)) =
            &event
        else {
            panic!("{event:?} is no tick");
        };
        assert_eq!(event.detail_type(), name);
        let cron = default(&format!("{name}Schedule"));
        let fields: Vec<&str> = cron.trim_start_matches("\"cron(").split(' ').collect();
        let (from, to) = fields[1].split_once('-').unwrap();
        let hours = to.parse::<u32>().unwrap() + 1 - from.parse::<u32>().unwrap();
        assert_eq!(fields[0], format!("0/{}", tick.every_minutes), "{name}");
        assert_eq!(hours * 60 / tick.every_minutes, tick.slots, "{name}");
    }
}
