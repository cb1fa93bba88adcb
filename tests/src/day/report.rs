//! What a day was like, and what has to hold of any.

use super::model::pushed_at;
use super::traffic::{HOUR, NONE};
use super::{Calls, Day, Kind, NIGHT, NIGHT_ENDS, Operation, STALE_AFTER};

/// A project is small that has no more pushes in a day.
const SMALL: u32 = 10;

/// Of fewer pushes the 99th of a hundred says little.
const FEW: usize = 1000;

/// How long pushes waited, in milliseconds and in ascending order.
#[derive(Debug, Clone, Default)]
pub struct Waits(Vec<u64>);

impl Waits {
    fn new(mut waits: Vec<u64>) -> Self {
        waits.sort_unstable();
        Self(waits)
    }

    /// What so many of a thousand pushes did not wait longer than.
    #[must_use]
    pub fn of_thousand(&self, share: usize) -> u64 {
        let place = (self.0.len() * share).div_ceil(1000).saturating_sub(1);
        self.0.get(place).copied().unwrap_or_default()
    }

    fn told(&self) -> String {
        let [median, high, most] = [500, 990, 1000].map(|share| clock(self.of_thousand(share)));
        format!("{median} median, {high} 99th, {most} max ({} pushes)", self.0.len())
    }
}

/// Hours, minutes and seconds.
fn clock(millis: u64) -> String {
    let seconds = millis / 1000;
    format!("{}:{:02}:{:02}.{}", seconds / 3600, seconds / 60 % 60, seconds % 60, millis / 100 % 10)
}

/// What a day was like.
#[derive(Debug, Clone)]
pub struct Report {
    /// The figures, a line each.
    pub figures: Vec<String>,
    /// What has to hold, and whether it does.
    pub bounds: Vec<(bool, String)>,
}

/// Who waited how long.
struct Split {
    all: Waits,
    small: Waits,
    large: Waits,
    until_run: Waits,
    unbuilt: usize,
    overtaken: usize,
}

fn split(day: &Day) -> Split {
    let (built_at, ran_at) = (day.model.built_at.borrow(), day.model.ran_at.borrow());
    let (mut all, mut small, mut large, mut until_run) = (vec![], vec![], vec![], vec![]);
    let (mut unbuilt, mut overtaken) = (0, 0);
    // Whether the line has a build of a newer push; walked from the end.
    let mut newer = vec![None; day.traffic.lines as usize];
    for (number, push) in day.traffic.pushes.iter().enumerate().rev() {
        let kind = Kind::of(push.project);
        match built_at[number] {
            _ if kind == Kind::Others => {}
            Some(built) => {
                let wait = built - push.at;
                let is_small = day.traffic.sizes[push.project as usize] <= SMALL;
                all.push(wait);
                if is_small { &mut small } else { &mut large }.push(wait);
                until_run.extend(ran_at[number].map(|ran| ran.max(built) - push.at));
                if push.line != NONE {
                    newer[push.line as usize].get_or_insert(pushed_at(push));
                }
            }
            None => {
                let of_line = newer.get(push.line as usize).copied().flatten();
                let is_overtaken = of_line.is_some_and(|time| time > pushed_at(push));
                if kind == Kind::Stops && is_overtaken {
                    overtaken += 1;
                } else {
                    unbuilt += 1;
                }
            }
        }
    }
    let [all, small, large, until_run] = [all, small, large, until_run].map(Waits::new);
    Split { all, small, large, until_run, unbuilt, overtaken }
}

impl Report {
    pub(super) fn of(day: &Day) -> Self {
        let mut report = Self { figures: Vec::new(), bounds: Vec::new() };
        report.pushes(day);
        report.mains(day);
        report.calls(day, &day.model.used());
        report
    }

    fn say(&mut self, what: impl Into<String>) {
        self.figures.push(what.into());
    }

    fn bound(&mut self, holds: bool, what: impl Into<String>) {
        self.bounds.push((holds, what.into()));
    }

    fn pushes(&mut self, day: &Day) {
        let (split, seen) = (split(day), day.model.seen.borrow());
        let [starts, warms] = &day.queues;
        let (pushes, again) = (day.traffic.pushes.len(), day.again);
        let others = day.traffic.pushes.iter().filter(|push| Kind::of(push.project) == Kind::Others).count();
        let (started, of_pushes) = (seen.started, seen.started - seen.warm);
        self.say(format!("projects                {}", day.scale.projects));
        self.say(format!("pushes                  {pushes}, {} of them merges into main", day.scale.merges));
        self.say(format!("not for Stoker to build {others}"));
        self.say(format!(
            "builds started          {started}, {of_pushes} of pushes, {} to warm main",
            seen.warm
        ));
        self.say(format!("overtaken, never built  {}", split.overtaken));
        self.say(format!("stopped, overtaken      {}", seen.stopped));
        self.say(format!("delivered once more     {again}, of which {} started a build", seen.twice));
        self.say(format!(
            "capacity                {} builds at once, and 5 times as many queued",
            day.model.capacity()
        ));
        self.say(format!("most at once            {}", seen.most_running));
        let from = seen.refused_from.map_or_else(|| "never".to_owned(), clock);
        self.say(format!(
            "orders refused by limit {}, by the account's from {from} to {}",
            seen.refused,
            clock(seen.refused_until)
        ));
        self.say(format!("wait for StartBuild     {}", split.all.told()));
        self.say(format!("  small projects        {}", split.small.told()));
        self.say(format!("  large projects        {}", split.large.told()));
        self.say(format!("wait until it runs      {}", split.until_run.told()));
        for (name, queue) in [("StartQueue", starts), ("WarmQueue ", warms)] {
            self.say(format!(
                "{name}              {} batches, {} messages given, deepest {}, one at most {} times, {} given up",
                queue.batches, queue.received, queue.deepest, queue.most_receives + 1, queue.given_up
            ));
        }
        self.say(format!("people told of delays   {}", day.model.told.get()));
        let (small, large) = (split.small.of_thousand(990), split.large.of_thousand(990));
        self.bound(
            split.unbuilt == 0,
            format!("{} pushes have neither a build nor one that overtook them", split.unbuilt),
        );
        self.bound(seen.twice == 0, format!("{} pushes have two builds", seen.twice));
        self.bound(
            starts.given_up + warms.given_up == 0,
            format!("{} messages were given up", starts.given_up + warms.given_up),
        );
        let says_little = split.small.0.len() < FEW;
        self.bound(
            says_little || small <= large,
            format!(
                "99 of 100 pushes of small projects wait for at most {}, of large ones {}",
                clock(small),
                clock(large)
            ),
        );
    }

    fn mains(&mut self, day: &Day) {
        let (mains, seen) = (day.model.mains.borrow(), day.model.seen.borrow());
        let waiting = mains.iter().filter(|main| main.waiting.is_some()).count();
        let longest = mains.iter().map(|main| main.waited).max().unwrap_or_default();
        let night = i64::try_from(NIGHT).unwrap_or_default();
        let is_cold = |main: &&super::model::Main| {
            let is_old = main.built_at.is_none_or(|built| built < night - STALE_AFTER);
            is_old && main.last_build.is_none_or(|build| build < NIGHT)
        };
        let cold = mains.iter().filter(is_cold).count();
        self.say(format!(
            "main without its build  {} at most, after the last merge of a burst",
            clock(longest)
        ));
        self.say(format!("warm builds             {} beside {} merges", seen.warm, day.scale.merges));
        self.say(format!("most of one main        {} builds to warm it at once", seen.most_warming));
        self.say(format!(
            "night                   {} projects, from {} to {}",
            day.turns,
            clock(NIGHT - 24 * HOUR),
            clock(day.night_ended.saturating_sub(24 * HOUR))
        ));
        self.bound(waiting == 0, format!("{waiting} projects have no build of main's head"));
        self.bound(
            seen.most_warming <= 1,
            format!("{} builds warm one main at once, at most 1", seen.most_warming),
        );
        self.bound(cold == 0, format!("{cold} mains are staler than the policy allows"));
        self.bound(
            day.turns == day.scale.projects,
            format!("{} projects had their turn in the night", day.turns),
        );
        self.bound(
            day.night_ended <= NIGHT_ENDS,
            format!(
                "the night ended {} after it began, at most {}",
                clock(day.night_ended.saturating_sub(NIGHT)),
                clock(NIGHT_ENDS - NIGHT)
            ),
        );
    }

    fn calls(&mut self, day: &Day, calls: &Calls) {
        self.say(
            "calls                     a push, of a thousand pushes; rate and burst assumed; throttled"
                .to_owned(),
        );
        for (operation, used) in calls {
            let of_thousand = used.calls * 1000 / day.traffic.pushes.len() as u64;
            let (rate, burst) = operation.rate();
            self.say(format!(
                "{:<32} {:>9} {}.{:03}  {rate}/s {burst}  {}",
                operation.name(),
                used.calls,
                of_thousand / 1000,
                of_thousand % 1000,
                used.throttled
            ));
            let most = most(*operation);
            self.bound(
                of_thousand <= most,
                format!("{} calls of {} for 1000 pushes, at most {most}", of_thousand, operation.name()),
            );
        }
    }
}

/// Most calls for a thousand pushes: what was measured, and a little more.
fn most(operation: Operation) -> u64 {
    match operation {
        Operation::StartBuild => 2400,
        Operation::GetBuilds
        | Operation::ListBuilds
        | Operation::GetBlob
        | Operation::PutBlob
        | Operation::PutImage => 2600,
        Operation::GetImages => 3700,
        Operation::StopBuild => 100,
        Operation::PutEvents => 50,
    }
}
