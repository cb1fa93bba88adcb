//! For every alarm of `template.yaml` a story: its condition comes about by what really happens, the alarm
//! goes on, and what its section of the runbook has under **End** ends it.
//!
//! All of them are lived in a process of its own: functions write metrics to standard output, and only
//! another process can read that. It also has the environment that the stack gives its functions.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stoker::error::Failure;
use stoker::names::{Commit, ProjectName};
use stories::account::Fault;
use stories::alarms::{Alarm, Metrics, State, alarms, line};
use stories::iam;
use stories::template::{ALARM, FUNCTION, QUEUE, events, of_type, resource_of};
use stories::world::{POLICY, World, signed};

/// What brings an alarm's condition about.
#[derive(Debug, Clone, Copy)]
enum Cause {
    /// Somebody switches off the trigger of a queue.
    SwitchedOff(&'static str),
    /// Somebody changes the policies of queues: that of its target lets a rule send no more.
    Undeliverable(&'static str),
    /// Nor does that of `DeadLetters`.
    Lost(&'static str),
    /// Somebody takes from the schedules' role what lets it send to this queue.
    Unscheduled(&'static str),
    /// A function's calls fail, or it is killed in them, or they take long.
    Calls(&'static str, &'static str, Fault),
    /// Somebody reserves no concurrency for a function.
    NoneReserved(&'static str),
    /// The account's functions have used up its concurrency.
    AccountFull,
    /// A policy with a mistake is deployed.
    BadPolicy,
    /// Somebody takes from the role of `receive-codecommit` what lets it send to `DeadLetters`.
    NoDestination,
    /// CodeBuild lets no build start.
    NoBuilds,
    /// The CodeBuild project is deleted.
    NoProject,
    /// A CI asks for a project that the policy does not name, every minute.
    WrongQuestions,
    /// A forge signs with another secret than Stoker's, every four minutes.
    WrongSecret,
}
use Cause::{
    AccountFull, BadPolicy, Calls, Lost, NoBuilds, NoDestination, NoProject, NoneReserved, SwitchedOff,
    Undeliverable, Unscheduled, WrongQuestions, WrongSecret,
};

/// What is done to end it beside mending the causes: deploying the template and a valid policy, switching on
/// again, giving room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// `stoker redrive` of a dead-letter queue.
    Redriven(&'static str),
    /// The forge delivers again what failed.
    Redelivered,
}
use End::{Redelivered, Redriven};

/// An alarm's story.
#[derive(Debug)]
struct Row {
    alarm: &'static str,
    /// When the cause comes: the hour, at its beginning.
    at: i8,
    causes: &'static [Cause],
    /// For how many minutes it stands before it is mended.
    stands: usize,
    /// What is done once its causes are mended.
    ends: &'static [End],
    /// At the end of which minute after the cause the alarm goes on.
    comes: usize,
    /// The alarms that come with it.
    beside: &'static [&'static str],
}

const DAY: i8 = 10;
const SWEEP: i8 = 20;
const RETENTION: i8 = 5;

/// Such a call takes a function more than four fifths of the time that it has.
const SLOW: Fault = Fault::Slow(Duration::from_secs(100));
const SLOWER: Fault = Fault::Slow(Duration::from_secs(245));
/// Longer than any function may run.
const CUT_OFF: Fault = Fault::Slow(Duration::from_hours(1));
const KILLED: Fault = Fault::KilledBefore;
const UNAVAILABLE: Fault = Fault::Before(Failure::Unavailable);
const REFUSED: Fault = Fault::Before(Failure::Refused);

impl Row {
    const fn new(alarm: &'static str, at: i8, causes: &'static [Cause], stands: usize, comes: usize) -> Self {
        Self { alarm, at, causes, stands, ends: &[], comes, beside: &[] }
    }

    const fn then(self, ends: &'static [End]) -> Self {
        Self { ends, ..self }
    }

    /// Whether dead letters are left when its causes are mended.
    fn leaves_letters(&self) -> bool {
        self.ends.iter().any(|end| matches!(end, Redriven(_)))
    }

    const fn beside(self, beside: &'static [&'static str]) -> Self {
        Self { beside, ..self }
    }
}

/// A calm day and its night, as the others are told of it.
const CALM: &str = "a calm day";

/// Of each alarm: when which causes come, for how many minutes they stand, and after how many of these the
/// alarm is on.
const ROWS: [Row; 42] = [
    Row::new("DeadLettersWaiting", DAY, &[Undeliverable("PushedRule")], 15, 1)
        .then(&[Redriven("DeadLetters")]),
    Row::new(
        "PromotionDeadLettersWaiting",
        DAY,
        &[Calls("promote-cache", "registry:PutManifest", UNAVAILABLE)],
        48,
        20,
    )
    .then(&[Redriven("PromotionDeadLetters")]),
    Row::new("StartQueueOld", DAY, &[SwitchedOff("StartQueue")], 20, 16),
    Row::new("WarmQueueOld", DAY, &[SwitchedOff("WarmQueue")], 150, 146),
    Row::new("PromotionQueueOld", DAY, &[SwitchedOff("PromotionQueue")], 30, 25),
    Row::new("RetentionQueueOld", DAY, &[SwitchedOff("RetentionQueue")], 350, 347),
    Row::new("SweepQueueOld", SWEEP, &[SwitchedOff("SweepQueue")], 125, 120),
    Row::new("NightlyRetentionQueueOld", RETENTION, &[SwitchedOff("NightlyRetentionQueue")], 125, 120),
    Row::new("ReceiveCodecommitChangedLost", DAY, &[Lost("ReceiveCodecommitChanged")], 15, 3),
    Row::new("PushedRuleLost", DAY, &[Lost("PushedRule")], 15, 1),
    Row::new("MergedRuleLost", DAY, &[Lost("MergedRule")], 15, 6),
    Row::new("BuildEndedRuleLost", DAY, &[Lost("BuildEndedRule")], 15, 5),
    Row::new("CachePushedRuleLost", DAY, &[Lost("CachePushedRule")], 15, 5),
    Row::new("MainPushedRuleLost", DAY, &[Lost("MainPushedRule")], 15, 6),
    Row::new("BranchGoneRuleLost", DAY, &[Lost("BranchGoneRule")], 15, 7),
    Row::new("SweepWantedRuleLost", SWEEP, &[Lost("SweepWantedRule")], 115, 110),
    Row::new("RetainWantedRuleLost", RETENTION, &[Lost("RetainWantedRule")], 145, 140),
    Row::new("SchedulesFailing", SWEEP, &[Unscheduled("SweepQueue")], 15, 3),
    Row::new("SchedulesDropped", SWEEP, &[Unscheduled("SweepQueue")], 40, 31)
        .then(&[Redriven("DeadLetters")])
        .beside(&["DeadLettersWaiting", "SchedulesFailing"]),
    Row::new("SchedulesLost", SWEEP, &[Unscheduled("SweepQueue"), Unscheduled("DeadLetters")], 40, 31)
        .beside(&["SchedulesDropped", "SchedulesFailing"]),
    Row::new("ReceiveWebhookErrors", DAY, &[BadPolicy], 10, 1)
        .then(&[Redelivered, Redriven("DeadLetters")])
        .beside(&["DeadLettersWaiting", "ReceiveCodecommitErrors"]),
    Row::new(
        "ReceiveCodecommitErrors",
        DAY,
        &[Calls("receive-codecommit", "events:PutEvents", UNAVAILABLE)],
        15,
        8,
    )
    .then(&[Redriven("DeadLetters")])
    .beside(&["DeadLettersWaiting"]),
    Row::new("StartBuildErrors", DAY, &[Calls("start-build", "codebuild:StartBuild", KILLED)], 12, 7),
    Row::new("ResolveCacheErrors", DAY, &[WrongQuestions], 15, 9),
    Row::new("PromoteCacheErrors", DAY, &[Calls("promote-cache", "registry:GetBlob", KILLED)], 12, 10),
    Row::new("WarmMainErrors", DAY, &[Calls("warm-main", "codebuild:ListBuildsForProject", CUT_OFF)], 20, 13),
    Row::new(
        "EnforceRetentionErrors",
        DAY,
        &[Calls("enforce-retention", "ecr:DescribeImages", KILLED)],
        20,
        17,
    ),
    Row::new("ReceiveWebhookThrottled", DAY, &[AccountFull], 10, 1)
        .then(&[Redelivered])
        .beside(&["ReceiveCodecommitThrottled"]),
    Row::new("ReceiveCodecommitThrottled", DAY, &[NoneReserved("receive-codecommit")], 10, 8),
    Row::new("StartBuildThrottled", DAY, &[NoneReserved("start-build")], 10, 7),
    Row::new("ResolveCacheThrottled", DAY, &[NoneReserved("resolve-cache")], 17, 14),
    Row::new("PromoteCacheThrottled", DAY, &[NoneReserved("promote-cache")], 14, 10),
    Row::new("WarmMainThrottled", DAY, &[NoneReserved("warm-main")], 16, 13),
    Row::new("EnforceRetentionThrottled", DAY, &[NoneReserved("enforce-retention")], 20, 17),
    Row::new("PromoteCacheSlow", DAY, &[Calls("promote-cache", "codebuild:BatchGetBuilds", SLOW)], 10, 5),
    Row::new("EnforceRetentionSlow", DAY, &[Calls("enforce-retention", "ecr:DescribeImages", SLOWER)], 10, 2),
    Row::new(
        "ReceiveCodecommitLost",
        DAY,
        &[NoDestination, Calls("receive-codecommit", "events:PutEvents", UNAVAILABLE)],
        12,
        6,
    )
    .beside(&["ReceiveCodecommitErrors"]),
    Row::new(
        "WebhooksUnanswered",
        DAY,
        &[Calls("receive-webhook", "secretsmanager:GetSecretValue", REFUSED)],
        10,
        1,
    )
    .then(&[Redelivered]),
    Row::new("WebhooksDistrusted", DAY, &[WrongSecret], 20, 8),
    Row::new("ProjectMissing", DAY, &[NoProject], 15, 2),
    Row::new("PushesDelayed", DAY, &[NoBuilds], 40, 30),
    Row::new("PromotionsRefused", DAY, &[Calls("promote-cache", "registry:PutManifest", REFUSED)], 15, 5),
];

/// How long a team works in calm before the cause comes, in minutes.
const BEFORE: usize = 20;
/// For how many minutes it works after the end, once CloudWatch looks back no more at what was: all is well
/// then, and what has not been mended would show again.
const AFTER: usize = ROUND;
/// How many minutes a team's round takes; twice as many in long lives.
const ROUND: usize = 20;

/// The policy of the stories, with a project in CodeCommit that somebody else builds.
fn policy() -> String {
    let repository = "git-codecommit.us-east-1.amazonaws.com/v1/repos/app";
    format!("{POLICY}  - {{ name: tools, repository: {repository}, builds: {{ start: false }} }}\n")
}

/// A team at work: in each round somebody pushes to a branch, it is built, merged and deleted, and other CIs
/// do the same.
struct Team {
    world: World,
    minutes: usize,
    /// How many minutes a round takes.
    round: usize,
    branch: Option<(String, Commit)>,
    asks_wrongly: bool,
    signs_wrongly: bool,
}

impl Team {
    fn new(at: Timestamp, round: usize) -> Self {
        let mut world = World::with_policy(&policy());
        world.account.set_now(at);
        world.live_by_the_clock();
        Self { world, minutes: 0, round, branch: None, asks_wrongly: false, signs_wrongly: false }
    }

    async fn minute(&mut self) {
        let number = u32::try_from(self.minutes / self.round + 1).unwrap();
        match self.minutes % self.round {
            1 => {
                let commit = self.world.commit([number % 4, 1, 1, 1]);
                let branch = format!("feature-{number}");
                self.world.push(&branch, &[&commit]).await;
                self.branch = Some((branch, commit));
            }
            3 => self.world.aws_tells(&pushed_to_codecommit(number)),
            6 => {
                let (branch, commit) = self.branch.as_ref().expect("a branch");
                let merge = self.world.commit([number % 4, number % 4, 1, 1]);
                self.world.pull_request("merged", branch, commit, Some(&merge)).await;
                self.world.push("main", &[commit, &merge]).await;
            }
            7 => {
                let (branch, _) = self.branch.take().expect("a branch");
                self.world.delete_branch(&branch).await;
            }
            8 | 14 => drop(self.world.ask(json!({"project": "app", "branch": "elsewhere"})).await),
            _ => {}
        }
        if self.asks_wrongly {
            self.world.ask(json!({"project": "unheard-of"})).await;
        }
        if self.signs_wrongly && self.minutes.is_multiple_of(4) {
            self.world.post(&signed(b"another secret", "push", b"{}")).await;
        }
        let now = self.world.account.now();
        for build in self.world.running() {
            if now.duration_since(build.started_at).as_mins() >= 3 {
                self.world.run(&build);
            }
        }
        self.world.minute().await;
        self.minutes += 1;
    }

    async fn work(&mut self, minutes: usize) {
        for _ in 0..minutes {
            self.minute().await;
        }
    }

    fn suffer(&mut self, cause: Cause) {
        match cause {
            SwitchedOff(queue) => drop(self.world.stack().switched_off.insert(queue)),
            Undeliverable(rule) => self.world.change(|template| unnamed_by_queues(template, rule, false)),
            Lost(rule) => {
                self.world.change(|template| unnamed_by_queues(template, rule, true));
                // The only rule whose target is a function.
                self.world.stack().lets_invoke = rule != "ReceiveCodecommitChanged";
            }
            Unscheduled(queue) => {
                self.world.change(|template| role_without(template, "SchedulerRole", queue));
            }
            NoDestination => {
                self.world.change(|template| role_without(template, "ReceiveCodecommitRole", "DeadLetters"));
            }
            Calls(function, call, fault) => {
                self.world.account.outages.borrow_mut().insert((function, call), fault);
            }
            NoneReserved(function) => drop(self.world.stack().reserved_none.insert(function)),
            AccountFull => self.world.stack().is_full = true,
            BadPolicy => self.world.deploy_policy("version: 1\nprojects: [{ name: app, repositry: x }]\n"),
            NoBuilds => self.world.account.limit.set(Some(0)),
            NoProject => self.world.account.projects.borrow_mut().clear(),
            WrongQuestions => self.asks_wrongly = true,
            WrongSecret => self.signs_wrongly = true,
        }
    }

    /// All causes are mended, whichever there were.
    fn mend(&mut self) {
        let world = &mut self.world;
        world.deploy(iam::deployed(false, false));
        world.deploy_policy(&policy());
        world.account.outages.borrow_mut().clear();
        // Lambda needs of a role what somebody took from it; that it was not there was the story.
        let denied = world.account.denied.take();
        assert!(denied.iter().all(|denied| denied.contains("sqs:SendMessage")), "{denied:?}");
        world.account.limit.set(None);
        *world.account.projects.borrow_mut() = vec![ProjectName::new("app").unwrap()];
        (self.asks_wrongly, self.signs_wrongly) = (false, false);
    }

    async fn end(&mut self, end: End) {
        let now = self.world.account.now();
        match end {
            Redriven(queue) => self.world.stack().redrive(queue, now),
            Redelivered => self.world.redeliver().await,
        }
    }
}

fn pushed_to_codecommit(number: u32) -> Value {
    let event = include_str!("../../events/receive-codecommit-branch-pushed.json");
    let mut event: Value = serde_json::from_str(event).unwrap();
    for name in ["referenceName", "referenceFullName"] {
        event["detail"][name] = json!(event["detail"][name].as_str().unwrap().replace("main", "tried"));
    }
    event["detail"]["commitId"] = json!(format!("{number:040x}"));
    event
}

/// The policies of all queues name a rule no more; that of `DeadLetters` only where it is said.
fn unnamed_by_queues(template: &mut Value, rule: &str, of_dead_letters: bool) {
    let arn = json!({"Fn::GetAtt": format!("{rule}.Arn")});
    for (name, resource) in template["Resources"].as_object_mut().unwrap() {
        if resource["Type"] != "AWS::SQS::QueuePolicy" || (name == "DeadLettersPolicy" && !of_dead_letters) {
            continue;
        }
        for statement in resource["Properties"]["PolicyDocument"]["Statement"].as_array_mut().unwrap() {
            let named = &mut statement["Condition"]["ArnEquals"]["aws:SourceArn"];
            let all = named.as_array().cloned().unwrap_or_else(|| vec![named.clone()]);
            *named = all.into_iter().filter(|named| *named != arn).collect();
        }
    }
}

/// A role that may send nothing to a queue.
fn role_without(template: &mut Value, role: &str, queue: &str) {
    let arn = json!({"Fn::GetAtt": format!("{queue}.Arn")});
    let policies = template["Resources"][role]["Properties"]["Policies"].as_array_mut().unwrap();
    for policy in policies {
        let statements = policy["PolicyDocument"]["Statement"].as_array_mut().unwrap();
        statements.retain(|statement| statement["Resource"] != arn);
        for statement in statements {
            if let Some(resources) = statement["Resource"].as_array_mut() {
                resources.retain(|resource| *resource != arn);
            }
        }
    }
}

/// What another process tells of a life before its metrics.
fn headline(name: &str, began: Timestamp) -> Value {
    json!({"life": name, "began": began.as_second()})
}

/// How long a row's life is, in minutes: until CloudWatch looks back no more at what was.
fn lasts(row: &Row, alarms: &[Alarm]) -> usize {
    let of_row =
        alarms.iter().filter(|alarm| alarm.name == row.alarm || row.beside.contains(&alarm.name.as_str()));
    let looks_back = of_row.map(Alarm::looks_back).max().expect("an alarm of the template");
    BEFORE + row.stands + looks_back + AFTER
}

#[expect(clippy::print_stdout, reason = "metrics go there too")]
fn say(line: &Value) {
    // Whatever runs the tests has begun a line of its own.
    println!("\n{line}");
    std::io::stdout().flush().unwrap();
}

fn began(hour: i8) -> Timestamp {
    let at: Timestamp = format!("2026-11-23T{hour:02}:00:00Z").parse().unwrap();
    at - SignedDuration::from_mins(i64::try_from(BEFORE).unwrap())
}

/// Lives a row's life of so many minutes, with these ends.
async fn live(row: &Row, name: &str, minutes: usize, ends: &[End]) {
    let mut team = Team::new(began(row.at), if minutes < 150 { ROUND } else { 2 * ROUND });
    say(&headline(name, team.world.account.now()));
    team.work(BEFORE).await;
    for cause in row.causes {
        team.suffer(*cause);
    }
    team.work(row.stands).await;
    team.mend();
    for end in ends {
        team.end(*end).await;
    }
    team.work(minutes - BEFORE - row.stands).await;
}

/// What a life is called in which the causes are mended, and nothing more is done.
fn only_mended(row: &Row) -> String {
    format!("{}, only mended", row.alarm)
}

/// How long it is then, in minutes.
fn lasts_only_mended(row: &Row) -> usize {
    BEFORE + row.stands + 2 * AFTER
}

/// Lives all lives, one after the other.
async fn live_all() {
    let deployed = alarms(&iam::deployed(false, false));
    for row in &ROWS {
        let minutes = lasts(row, &deployed);
        live(row, row.alarm, minutes, row.ends).await;
        if row.leaves_letters() {
            live(row, &only_mended(row), lasts_only_mended(row), &[]).await;
        }
    }
    let mut team = Team::new(began(9), 30);
    say(&headline(CALM, team.world.account.now()));
    team.work(9 * 60).await;
    team.round = 60;
    team.work(15 * 60).await;
}

/// The variable that asks for [`live_all`] rather than for a judgement.
const LIVES: &str = "STOKER_LIVES";

/// What CloudWatch has read of a life, and what its alarms then say at the end of each minute.
struct Life {
    metrics: Metrics,
    states: States,
}

type States = BTreeMap<String, Vec<State>>;

/// Every life, by the alarm that it is about.
fn lives() -> &'static BTreeMap<String, Life> {
    static LIVED: OnceLock<BTreeMap<String, Life>> = OnceLock::new();
    LIVED.get_or_init(|| {
        let deployed = alarms(&iam::deployed(false, false));
        let minutes = |name: &str| {
            let told = ROWS.iter().find(|row| row.alarm == name).map(|row| lasts(row, &deployed));
            let mended = ROWS.iter().find(|row| only_mended(row) == name).map(lasts_only_mended);
            told.or(mended).unwrap_or(24 * 60)
        };
        let mut lives = BTreeMap::new();
        let mut current: Option<(String, Metrics)> = None;
        let said = in_a_process_of_its_own();
        for line in said.lines().filter(|line| line.starts_with('{')) {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            match (line["life"].as_str(), &mut current) {
                (Some(name), _) => {
                    let metrics = Metrics::new(line["began"].as_i64().unwrap(), minutes(name));
                    lives.extend(current.replace((name.to_owned(), metrics)));
                }
                (None, Some((_, metrics))) => metrics.read(&line),
                (None, None) => panic!("whose is {line}?"),
            }
        }
        lives.extend(current);
        let life = |metrics| Life { states: states(&deployed, &metrics), metrics };
        lives.into_iter().map(|(name, metrics)| (name, life(metrics))).collect()
    })
}

/// What the functions and AWS put out while all lives are lived.
fn in_a_process_of_its_own() -> String {
    let test = "alarms::every_alarm_comes_with_its_cause_and_goes_with_its_end";
    let lived = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(LIVES, "all")
        .env("STOKER_STACK", &iam::deployed(false, false).place.stack)
        .env_remove("STOKER_METRICS")
        .output()
        .unwrap();
    let (said, error) = (String::from_utf8(lived.stdout).unwrap(), String::from_utf8(lived.stderr).unwrap());
    assert!(lived.status.success(), "{error}\n{}", said.lines().last().unwrap_or_default());
    said
}

fn states(alarms: &[Alarm], metrics: &Metrics) -> States {
    alarms.iter().map(|alarm| (alarm.name.clone(), alarm.states(metrics))).collect()
}

/// The minutes at whose end an alarm goes on, and those at whose end it goes off.
fn turns(states: &[State]) -> (Vec<usize>, Vec<usize>) {
    let is_on = |minute: usize| states[minute] == State::Alarm;
    let turned = |to: bool| (1..states.len()).filter(move |now| is_on(now - 1) != to && is_on(*now) == to);
    (turned(true).collect(), turned(false).collect())
}

/// Whether a row's alarms come and go as it says.
fn judge(row: &Row, states: &States) -> Result<(), String> {
    let own = &states[row.alarm];
    let (on, off) = turns(own);
    let (caused, ended) = (BEFORE, BEFORE + row.stands);
    let came = on.first().copied().ok_or_else(|| format!("{} never comes", row.alarm))?;
    if own[0] != State::Ok || came < caused || came >= ended {
        return Err(format!("{} comes without a cause: at {on:?}", row.alarm));
    }
    if off.last() < Some(&ended) {
        return Err(format!("{} goes by itself: it comes at {on:?} and goes at {off:?}", row.alarm));
    }
    let is_on = |states: &Vec<State>| states.contains(&State::Alarm);
    let others = states.iter().filter(|(name, states)| *name != row.alarm && is_on(states));
    let others: Vec<&str> = others.map(|(name, _)| name.as_str()).collect();
    let mut beside = row.beside.to_vec();
    beside.sort_unstable();
    if (came - caused, &others) != (row.comes, &beside) {
        let (comes, said) = (came - caused, row.comes);
        return Err(format!("{} comes after {comes} and not {said}, with {others:?}", row.alarm));
    }
    let is_well = |states: &[State]| states[states.len() - AFTER..].iter().all(|state| *state == State::Ok);
    let stay = states.iter().filter(|(_, states)| !is_well(states));
    let stay: Vec<&String> = stay.map(|(name, _)| name).collect();
    if stay.is_empty() { Ok(()) } else { Err(format!("{}: {stay:?} stay", row.alarm)) }
}

#[test]
fn every_alarm_comes_with_its_cause_and_goes_with_its_end() {
    if std::env::var_os(LIVES).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(live_all());
        return;
    }
    let broken: Vec<_> = ROWS.iter().filter_map(|row| judge(row, &lives()[row.alarm].states).err()).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The minutes of a function's metric when a message fails each time that it is received, and all else goes
/// well.
fn one_that_always_fails(function: &str, metric: &str, minutes_between: usize) -> Metrics {
    let mut metrics = Metrics::new(0, 120);
    for minute in 0..120 {
        let fails = u64::from(minute >= 60 && (minute - 60) % minutes_between == 0);
        let at = i64::try_from(minute * 60_000).unwrap();
        let line = line(at, "AWS/Lambda", &[("FunctionName", function)], &[(metric, fails)]);
        metrics.read(&serde_json::from_str(&line).unwrap());
    }
    metrics
}

#[test]
fn a_message_that_fails_each_time_is_told_of_however_much_goes_well() {
    let deployed = iam::deployed(false, false);
    let (template, alarms) = (deployed.template(), alarms(&deployed));
    let (functions, queues) = (of_type(template, FUNCTION), of_type(template, QUEUE));
    for (function, event) in events(template, "SQS").into_values() {
        let queue = resource_of(&event["Queue"]).unwrap();
        let between = deployed.resolved(&queues[queue.as_str()]["VisibilityTimeout"]).to_string();
        let between = between.trim_matches('"').parse::<usize>().unwrap() / 60;
        let name = deployed.resolved(&functions[function]["FunctionName"]);
        for (metric, alarm) in [("Errors", "Errors"), ("Throttles", "Throttled")] {
            let metrics = one_that_always_fails(text(&name), metric, between);
            let alarm = alarms.iter().find(|known| known.name == format!("{function}{alarm}")).unwrap();
            let (on, _) = turns(&alarm.states(&metrics));
            let came = on.first().unwrap_or_else(|| panic!("{queue}: {} never comes", alarm.name));
            assert!(*came <= 60 + between + 5, "{queue}: {} comes late, at {came}", alarm.name);
        }
    }
}

#[test]
fn dead_letters_wait_until_somebody_sends_them_back() {
    for row in ROWS.iter().filter(|row| row.leaves_letters()) {
        let judged = judge(row, &lives()[&only_mended(row)].states);
        let stays = |error: &String| error.contains("stay") && error.contains("DeadLettersWaiting");
        let is_on = |error: &String| stays(error) || error.ends_with("goes at []");
        assert!(judged.as_ref().is_err_and(is_on), "{}: {judged:?}", row.alarm);
    }
}

#[test]
fn every_alarm_has_its_row() {
    let mut told: Vec<&str> = ROWS.iter().map(|row| row.alarm).collect();
    told.sort_unstable();
    let alarms = alarms(&iam::deployed(false, false));
    assert_eq!(told, alarms.iter().map(|alarm| alarm.name.as_str()).collect::<Vec<_>>());
}

#[test]
fn a_calm_day_and_its_night_raise_no_alarm() {
    let day = &lives()[CALM];
    for (metric, minutes) in [
        ("BuildsStarted", 30),
        ("PromotionAge", 3),
        ("LinesMoved", 30),
        ("CachesDeleted", 20),
        ("SweepDrift", 1),
    ] {
        assert!(day.metrics.has("Stoker", metric, minutes), "of {metric} the day has too little");
    }
    for (name, states) in &day.states {
        assert!(states.iter().all(|state| *state == State::Ok), "{name} comes: {:?}", turns(states));
    }
}

/// Changes of an alarm, each of which would keep people from being told, or tell them of nothing.
fn mutants(properties: &Value) -> Vec<Value> {
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut changed = properties.clone();
        change(&mut changed);
        changed
    };
    let dimensions = properties["Dimensions"].as_array().unwrap().len();
    let threshold = properties["Threshold"].as_f64().unwrap();
    let mut mutants = vec![
        changed(&|alarm| alarm["Threshold"] = json!(threshold * 1000.0)),
        changed(&|alarm| alarm["ComparisonOperator"] = json!("LessThanThreshold")),
        changed(&|alarm| (alarm["EvaluationPeriods"], alarm["DatapointsToAlarm"]) = (json!(12), json!(12))),
        changed(&|alarm| alarm["MetricName"] = json!(format!("{}s", text(&alarm["MetricName"])))),
        changed(&|alarm| alarm["Namespace"] = json!(format!("{}s", text(&alarm["Namespace"])))),
        changed(&|alarm| {
            alarm["Dimensions"].as_array_mut().unwrap().push(json!({"Name": "More", "Value": "x"}));
        }),
    ];
    for dimension in 0..dimensions {
        let of = |part: &'static str| {
            move |alarm: &mut Value| {
                let part = &mut alarm["Dimensions"][dimension][part];
                *part = json!(format!("{}s", text(part)));
            }
        };
        mutants.push(changed(&of("Name")));
        mutants.push(changed(&of("Value")));
        mutants.push(changed(&|alarm| drop(alarm["Dimensions"].as_array_mut().unwrap().remove(dimension))));
    }
    mutants
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

#[test]
fn an_alarm_that_watches_something_else_fails_its_story() {
    let deployed = iam::deployed(false, false);
    let properties = of_type(deployed.template(), ALARM);
    for row in &ROWS {
        let Life { metrics, states } = &lives()[row.alarm];
        let mut states = states.clone();
        for mutant in mutants(&deployed.resolved(properties[row.alarm])) {
            let changed = Alarm::new(row.alarm, &mutant).states(metrics);
            states.insert(row.alarm.to_owned(), changed);
            assert!(judge(row, &states).is_err(), "the story of {} is as well told with {mutant}", row.alarm);
        }
    }
}
