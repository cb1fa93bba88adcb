//! The forecast as text.

use super::figures::{Figures, MONTH, Range, Side};
use super::report::{Forecast, Row};
use crate::text::{Align, count, plain, plain_whole, table};

/// How many of the steps that run most are shown, and how many lines that are not understood.
const SHOWN: usize = 6;

pub(super) fn text(forecast: &Forecast) -> String {
    let mut text = head(forecast);
    text += &strategies(forecast);
    text += &notes(forecast);
    text += &often(forecast);
    text += &advice(forecast);
    text += &unknown(forecast);
    text
}

fn head(forecast: &Forecast) -> String {
    let images: Vec<String> = forecast.images.iter().map(|image| plain(&image.to_string())).collect();
    let mut text = format!(
        "{}, of {}: {} of main and {} of branches, {} to {}\n",
        images.join("; "),
        plain(&forecast.branch),
        count(forecast.builds_of_main, "build"),
        count(forecast.builds_of_branches, "build"),
        day(forecast.from),
        day(forecast.to),
    );
    let ways = &forecast.ways;
    text += &format!(
        "  {}, {}, {} without a pull request that git tells of\n\n",
        count(ways.merge_commits, "merge commit"),
        count(ways.squashes, "squash").replace("squashs", "squashes"),
        count(ways.others, "push").replace("pushs", "pushes"),
    );
    text
}

pub(super) fn day(time: jiff::Timestamp) -> String {
    time.to_string().chars().take(10).collect()
}

fn strategies(forecast: &Forecast) -> String {
    let titles =
        ["", "main: steps", "p90", "seconds", "p90", "branches: steps", "seconds", "hours", "", "dollars"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    rows.extend(forecast.strategies.iter().map(row));
    let mut align = [Align::Right; 10];
    if let Some(first) = align.first_mut() {
        *first = Align::Left;
    }
    table("  ", &align, &rows)
}

/// A strategy's figures in words; what it is called comes first.
pub(super) fn row(row: &Row) -> Vec<String> {
    let with = |of: &dyn Fn(&Figures) -> f64, digits: usize| {
        let figure = of(&row.figures);
        let other = row.behind.as_ref().map_or(figure, of);
        span(figure.min(other), figure.max(other), digits)
    };
    let steps = |of: fn(&Side) -> usize, main: bool| {
        with(&|figures| as_f64(of(if main { &figures.main } else { &figures.branches })), 0)
    };
    let seconds = |of: fn(&Side) -> Range, main: bool| {
        with(&|figures| of(if main { &figures.main } else { &figures.branches }).usual, 0)
    };
    let hours = row.figures.hours_per_month;
    let range = if hours.least < hours.most {
        format!("({:.1}-{:.1})", hours.least, hours.most)
    } else {
        String::new()
    };
    vec![
        row.label.to_owned(),
        steps(|side| side.steps_median, true),
        steps(|side| side.steps_p90, true),
        seconds(|side| side.seconds_median, true),
        seconds(|side| side.seconds_p90, true),
        steps(|side| side.steps_median, false),
        seconds(|side| side.seconds_median, false),
        with(&|figures| figures.hours_per_month.usual, 1),
        range,
        with(&|figures| figures.dollars_per_month.usual, 2),
    ]
}

fn span(least: f64, most: f64, digits: usize) -> String {
    let [least, most] = [least, most].map(|value| format!("{value:.digits$}"));
    if least == most { least } else { format!("{least}-{most}") }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of steps are small")]
fn as_f64(number: usize) -> f64 {
    number as f64
}

fn notes(forecast: &Forecast) -> String {
    let mut text = String::from(
        "\n  Steps that ran again, and the seconds that they took: median and ninth decile (p90) of a build. Main's \
         are the\n  builds that a merge started. Hours and dollars are those of all builds in a month.",
    );
    text += &said_of_times(forecast);
    if let Some(builds) = forecast.project_builds_per_month {
        let replayed = as_f64(forecast.builds_of_main + forecast.builds_of_branches) / forecast.days * MONTH;
        text += &format!(
            "\n  The project has {builds:.0} builds a month; the replay, of what was merged, {replayed:.0}."
        );
    }
    for (reason, pushes) in &forecast.skipped {
        text += &format!(
            "\n  {} not built: {}.",
            count(*pushes, "push").replace("pushs", "pushes"),
            plain(reason)
        );
    }
    text + "\n"
}

/// What the times rest on, and why some figures are two.
pub(super) fn said_of_times(forecast: &Forecast) -> String {
    let mut text = String::new();
    if forecast.measured == 0 {
        text += "\n  All seconds, hours and dollars are assumed by what a step does; --log FILE tells them. In \
                 brackets: the range of\n  what is assumed.";
    } else if forecast.measured < forecast.steps {
        text += &format!(
            "\n  The log tells the times of {} of {}; the others are assumed.",
            forecast.measured,
            count(forecast.steps, "step")
        );
    }
    if forecast.strategies.iter().any(|row| row.behind.is_some_and(|behind| behind != row.figures)) {
        text += "\n  Two figures: squashed branches held main's newest commit, or were as old as their first commit.";
    }
    text
}

fn often(forecast: &Forecast) -> String {
    let mut text = String::from("\nWhat runs most under Stoker\n");
    let mut rows = vec![["runs", "hours", "", "step"].map(str::to_owned).to_vec()];
    rows.extend(forecast.often.iter().take(SHOWN).map(|often| {
        let step: String = often.step.split_whitespace().collect::<Vec<_>>().join(" ");
        let cut = if step.chars().count() > 70 { "..." } else { "" };
        vec![
            often.runs.to_string(),
            format!("{:.1}", often.hours.usual),
            if often.is_assumed { "assumed" } else { "" }.to_owned(),
            format!("[{}] {}{cut}", plain(&often.stage), plain(&step.chars().take(70).collect::<String>())),
        ]
    }));
    text += &table("  ", &[Align::Right, Align::Right, Align::Left, Align::Left], &rows);
    text
}

fn advice(forecast: &Forecast) -> String {
    if forecast.advice.is_empty() {
        return String::new();
    }
    let mut text =
        String::from("\nAdvice, each checked by replaying the history with it followed, under Stoker\n");
    for advice in &forecast.advice {
        let line = advice.line.map_or_else(String::new, |line| format!("line {line}: "));
        let hours = advice.hours_per_month;
        text += &format!(
            "  {line}{}\n    {:.2} hours a month less, {:.2} to {:.2} over all that is assumed",
            plain_whole(&advice.text),
            hours.usual,
            hours.least,
            hours.most,
        );
        match advice.runs {
            Some([before, after]) => text += &format!("; it ran {before} times, and would have run {after}"),
            None => text += &format!("; {} steps less", advice.steps),
        }
        text.push('\n');
    }
    text
}

fn unknown(forecast: &Forecast) -> String {
    if forecast.unknown.is_empty() {
        return String::new();
    }
    let mut text =
        format!("\nNot understood, and taken as never cached: {}\n", count(forecast.unknown.len(), "line"));
    for line in forecast.unknown.iter().take(SHOWN) {
        let age = if line.is_current { "" } else { ", not in the newest commit" };
        text += &format!(
            "  line {}: {} ({}{age})\n",
            line.line,
            plain(&line.problem),
            count(line.builds, "build")
        );
    }
    text
}
