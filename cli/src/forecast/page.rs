//! The forecast as a page.

use super::advice::Advice;
use super::figures::Range;
use super::render::{day, row, said_of_times};
use super::report::{Drawn, Forecast, Strip};
use super::strategy::Strategy;
use crate::html::chart::{self, Words};
use crate::html::{self, Cell, dollars, escaped, figure, legend, list, paragraph, section, soft, table};
use crate::text::{count, plain};

/// So many steps have a strip, those that ran longest.
const STRIPS: usize = 16;

pub(super) fn page(forecast: &Forecast, drawn: &Drawn) -> String {
    let body = [
        header(forecast),
        key_figures(forecast),
        strategies(forecast),
        hours(forecast, drawn),
        steps(drawn),
        advice(forecast),
        notes(forecast),
    ]
    .concat();
    html::document(&format!("Stoker forecast, {}", forecast.branch), &body)
}

fn header(forecast: &Forecast) -> String {
    let mut facts = String::new();
    let mut fact = |name: &str, value: &str| {
        facts += &format!("<dt>{name}</dt><dd>{}</dd>", escaped(value));
    };
    fact("Branch", &forecast.branch);
    for image in &forecast.images {
        fact("Image", &image.to_string());
    }
    fact("History", &format!("{} to {}", day(forecast.from), day(forecast.to)));
    let (main, branches) = (forecast.builds_of_main, forecast.builds_of_branches);
    fact("Builds", &format!("{main} of main, {branches} of branches"));
    format!(
        "<header>\n<h1>What caches would have saved</h1>\n<dl class=\"facts\">{facts}</dl>\n</header>\n<main>\n"
    )
}

fn key_figures(forecast: &Forecast) -> String {
    let of = |strategy| forecast.strategies.iter().map(|row| &row.figures).find(|of| of.strategy == strategy);
    let (Some(ours), Some(theirs)) = (of(Strategy::Stoker), of(Strategy::TagPerBranch)) else {
        return String::new();
    };
    let spared = theirs.hours_per_month.usual - ours.hours_per_month.usual;
    let cards = [
        (
            "Main's build after a merge",
            count(ours.main.steps_median, "step"),
            format!("the median; with a tag for each branch {}", theirs.main.steps_median),
        ),
        (
            "One in ten takes more than",
            count(ours.main.steps_p90, "step"),
            format!("with a tag for each branch {}", theirs.main.steps_p90),
        ),
        (
            "All builds",
            format!("{:.1} h a month", ours.hours_per_month.usual),
            format!("{}; {}", range(&ours.hours_per_month), dollars(ours.dollars_per_month.usual)),
        ),
        (
            "Less than with a tag for each branch",
            format!("{spared:.1} h a month"),
            dollars(theirs.dollars_per_month.usual - ours.dollars_per_month.usual),
        ),
    ];
    section("figures", "Under Stoker", &html::cards(cards))
}

fn range(hours: &Range) -> String {
    if hours.least < hours.most {
        format!("{:.1} to {:.1} over all that is assumed", hours.least, hours.most)
    } else {
        "by measured times".to_owned()
    }
}

fn strategies(forecast: &Forecast) -> String {
    const HEAD: [&str; 10] = [
        "Caches",
        "Main: steps",
        "p90",
        "Main: seconds",
        "p90",
        "Branches: steps",
        "Branches: seconds",
        "Hours a month",
        "Range",
        "Dollars",
    ];
    let cells = |values: Vec<String>| {
        let mut values = values.into_iter();
        let name = Cell::text(values.next().unwrap_or_default());
        [name].into_iter().chain(values.map(Cell::number)).collect()
    };
    let rows: Vec<Vec<Cell>> = forecast.strategies.iter().map(|strategy| cells(row(strategy))).collect();
    let caption = "Steps that ran again, and the seconds that they took: the median and the ninth decile (p90) \
         of a build. Main's \
                   are the builds that a merge started.";
    let body = table(caption, &HEAD, &rows)
        + &soft(&said_of_times(forecast).split_whitespace().collect::<Vec<_>>().join(" "));
    section("ways", "Six ways to keep caches", &body)
}

fn hours(forecast: &Forecast, drawn: &Drawn) -> String {
    const CLASSES: [&str; 6] = ["s0", "s1", "s2", "s3", "s4", "s5"];
    let last = |hours: &Vec<f64>| hours.last().copied().unwrap_or_default();
    let most = chart::round_up(drawn.hours.iter().map(last).fold(0.0, f64::max));
    let series: Vec<(&str, &[f64])> =
        CLASSES.into_iter().zip(drawn.hours.iter().map(Vec::as_slice)).collect();
    let labels = forecast.strategies.iter().map(|row| row.label);
    let sums: Vec<String> = labels
        .clone()
        .zip(&drawn.hours)
        .map(|(label, hours)| format!("{label} {:.1}", last(hours)))
        .collect();
    let desc = format!("Hours in all: {}", sums.join(", "));
    let words = Words { id: "hours", title: "Hours of all builds, added up", desc: &desc };
    let svg = chart::lines(&words, &series, most);
    let meanings: Vec<(&str, &str)> = CLASSES.into_iter().zip(labels).collect();
    let y = [format!("{most} h"), format!("{} h", most / 2.0), "0".to_owned()];
    let (from, to) = (day(forecast.from), day(forecast.to));
    let body = figure(
        "Hours that builds took, added up, a place for each build.",
        &y,
        &svg,
        &[&from, &to],
        &meanings,
    );
    section("hours-of-builds", "Hours over time", &body)
}

fn steps(drawn: &Drawn) -> String {
    let row = |(at, step): (usize, &Strip)| {
        let ran = step.builds.iter().filter(|ran| **ran == Some(true)).count();
        let entries: Vec<Option<&str>> =
            step.builds.iter().map(|ran| ran.map(|ran| if ran { "ran" } else { "reused" })).collect();
        let (id, desc) =
            (format!("strip-{at}"), format!("it ran in {ran} of {}", count(entries.len(), "build")));
        let words = Words { id: &id, title: &step.step, desc: &desc };
        vec![
            Cell::Code(step.step.chars().take(90).collect()),
            Cell::number(ran.to_string()),
            Cell::Drawn(chart::strip(&words, &entries)),
        ]
    };
    let rows: Vec<Vec<Cell>> = drawn.strips.iter().take(STRIPS).enumerate().map(row).collect();
    let caption = "The steps that took longest in all, a place for each build of main, the newest at the right. \
         Empty: the \
                   build had no such step.";
    let body =
        legend(&[("reused", "reused"), ("ran", "ran")]) + &table(caption, &["Step", "Ran", "Builds"], &rows);
    section("steps", "Steps of main's builds, under Stoker", &body)
}

fn advice(forecast: &Forecast) -> String {
    let entry = |advice: &Advice| {
        let line = advice.line.map_or_else(String::new, |line| format!("Line {line}: "));
        let runs = advice.runs.map_or_else(String::new, |[before, after]| {
            format!("; it ran {before} times, and would have run {after}")
        });
        let hours = advice.hours_per_month;
        let saves = format!("{:.1} hours a month less, {}{runs}.", hours.usual, range(&hours));
        format!(
            "{} <span class=\"unit\">{}</span>",
            escaped(&format!("{line}{}.", advice.text)),
            escaped(&saves)
        )
    };
    let body = if forecast.advice.is_empty() {
        paragraph("Nothing that it knows would have saved more than 2 % of the hours.")
    } else {
        let lead = soft("Each was checked: the history was replayed with it followed, under Stoker.");
        lead + &list("notes", forecast.advice.iter().map(entry))
    };
    section("advice", "Advice", &body)
}

fn notes(forecast: &Forecast) -> String {
    let unknown = forecast.unknown.iter().map(|line| {
        let problem = plain(&line.problem);
        format!("Line {} counts as never cached: {problem} ({}).", line.line, count(line.builds, "build"))
    });
    let skipped = forecast.skipped.iter().map(|(reason, pushes)| {
        format!("{} not built: {}.", count(*pushes, "push").replace("pushs", "pushes"), plain(reason))
    });
    let guessed = [
        "Nothing was built. Each step's cache key was computed from the commit's tree, as BuildKit computes it.",
        "Guessed is what git does not keep: pushes, their order, and what squashed branches rested on. \
         docs/forecast.md \
         says how.",
    ];
    let all = guessed.into_iter().map(str::to_owned).chain(skipped).chain(unknown);
    section("notes", "How it was computed", &list("notes", all.map(|note| escaped(&note))))
}
