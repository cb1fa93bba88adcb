//! The report as a page that needs nothing else: no script, no font, no network.

use jiff::Timestamp;

use super::data::{
    BuildFigures, CacheHitRate, Deletion, LineFigures, ProjectFigures, Report, RuleFigures, float,
};
use super::lost::{LostCause, LostTime};
use crate::html::chart::{self, Words};
use crate::html::{self, Cell, dollars, escaped, figure, legend, list, paragraph, section, soft, table};
use crate::text::{count, size};

/// More projects than these are folded.
const UNFOLDED: usize = 6;
/// So many lines of a scope are shown, the largest first.
const LINES: usize = 40;
/// So many builds a sparkline shows, the newest.
const SPARKS: usize = 60;

/// How long something took or what was saved: `4.2 min`, `7 h 12 min`.
pub(super) fn minutes(minutes: f64) -> String {
    let sign = if minutes < 0.0 { "-" } else { "" };
    let minutes = minutes.abs();
    if minutes < 99.5 {
        return format!("{sign}{minutes:.1} min");
    }
    let hours = (minutes.round() / 60.0).floor();
    format!("{sign}{hours:.0} h {:.0} min", minutes.round() - hours * 60.0)
}

fn percent(percent: f64) -> String {
    format!("{percent:.0} %")
}

fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let body = [
        header(report),
        key_figures(report),
        storage(report),
        hit_rate(report),
        builds(report),
        lost_time(report),
        plan(report),
        notes(report),
    ]
    .concat();
    html::document(&format!("Stoker report, {}", day(report.made_at)), &body)
}

/// What a project's builds lost, in a sentence.
pub(super) fn lost_in_words(of: &LostTime, days: i64) -> String {
    let read = format!("{} of {} in {days} days", of.builds_read, count(of.builds, "build"));
    format!("{}: {} lost to misses, by the logs of {read}", of.project, minutes(of.lost_minutes))
}

fn lost_time(report: &Report) -> String {
    if report.lost_time.is_empty() {
        return String::new();
    }
    let of_project = |of: &LostTime| {
        let row = |cause: &LostCause| {
            vec![
                Cell::text(cause.step.clone()),
                Cell::text(cause.kind.clone()),
                Cell::number(cause.builds.to_string()),
                Cell::number(minutes(cause.minutes)),
            ]
        };
        let rows: Vec<Vec<Cell>> = of.causes.iter().map(row).collect();
        table(&lost_in_words(of, report.days), &["First miss", "Cause", "Builds", "Lost"], &rows)
    };
    let body: String = report.lost_time.iter().map(of_project).collect();
    section("lost-time", "Time lost to misses", &body)
}

fn header(report: &Report) -> String {
    let mut facts = format!(
        "<dt>Made</dt><dd>{}</dd>",
        escaped(&report.made_at.strftime("%Y-%m-%d %H:%M UTC").to_string())
    );
    let mut fact = |name: &str, value: &str| {
        facts += &format!("<dt>{name}</dt><dd>{}</dd>", escaped(value));
    };
    if let Some(account) = &report.account {
        fact("Account", account);
    }
    if let Some(region) = &report.region {
        fact("Region", region);
    }
    let names: Vec<&str> = report.repositories.iter().map(|of| of.repository.as_str()).collect();
    match names.as_slice() {
        [] => fact("Repositories", "none"),
        names if names.len() <= 8 => fact("Repositories", &names.join(", ")),
        names => {
            let first = names.iter().take(8).copied().collect::<Vec<_>>().join(", ");
            fact("Repositories", &format!("{}: {first}, ...", names.len()));
        }
    }
    format!(
        "<header>\n<h1>Build caches: what they hold, save and cost</h1>\n<dl class=\"facts\">{facts}</dl>\n</header>\n\
         <main>\n"
    )
}

fn key_figures(report: &Report) -> String {
    let figures = &report.figures;
    let reused = figures.main_reused_percent.map_or_else(|| "not known".to_owned(), percent);
    let saved = figures.minutes_saved.map_or_else(|| "not known".to_owned(), minutes);
    let saved_in_words = match figures.dollars_saved {
        Some(sum) => format!(
            "{} in {} days, by {} held against cold ones",
            dollars(sum),
            report.days,
            count(figures.compared_builds, "warm build")
        ),
        None => "not enough cold builds to tell".to_owned(),
    };
    let reused_in_words = if figures.main_builds == 0 {
        format!("no cache tells of a build of main in {} days", report.days)
    } else {
        format!("mean of {} of main in {} days", count(figures.main_builds, "build"), report.days)
    };
    let cards = [
        (
            "Stored now",
            size(figures.bytes),
            format!("{} a month, in {}", dollars(figures.dollars_per_month), count(figures.images, "image")),
        ),
        (
            "The plan would free",
            size(figures.frees),
            format!(
                "{} a month, with {}",
                dollars(figures.frees_dollars_per_month),
                count(figures.deletions, "deletion")
            ),
        ),
        ("Steps reused on main", reused, reused_in_words),
        ("Build time saved", saved, saved_in_words),
    ];
    let cards = html::cards(cards);
    let how = [
        format!(
            "Stored: every layer once in its repository, as ECR bills it, at {} a gigabyte and month (us-east-1, \
             beyond the free tier).",
            dollars(report.dollars_per_gb_month)
        ),
        "Reused: the share of a build's steps that came out of the cache, as Stoker noted it at the cache; each \
         build counts the same, builds from scratch included."
            .to_owned(),
        format!(
            "Saved: for each CodeBuild project, the sum over its warm builds of the cold builds' median duration less \
             their own, a build that was slower counting against it. Warm builds were given caches, cold ones none; \
             both only where they succeeded within {} days, from their start to their end, time in the queue \
             included. Fewer than three cold builds tell nothing.",
            report.days
        ),
        format!(
            "Money: ${} a minute, the price of general1.small on Linux unless another was given with \
             --dollars-per-minute; CodeBuild rounds each build up to a minute.",
            report.dollars_per_minute
        ),
    ];
    let how = list("notes", how.iter().map(|text| escaped(text)));
    let body = format!("{cards}<details><summary>How these are computed</summary>\n{how}</details>\n");
    section("figures", "Key figures", &body)
}

fn storage(report: &Report) -> String {
    if report.projects.is_empty() {
        return section("storage", "Storage", &paragraph("There is nothing in the repositories."));
    }
    let mut body = storage_by_day(report);
    let most = report.projects.iter().map(|of| of.amount.bytes).max().map_or(0.0, float);
    let row = |of: &ProjectFigures| {
        let lines: usize = of.scopes.iter().map(|scope| scope.lines.len()).sum();
        vec![
            Cell::text(project_name(of)),
            Cell::number(of.amount.images.to_string()),
            Cell::number(lines.to_string()),
            Cell::number(size(of.amount.bytes)),
            Cell::number(size(of.amount.own_bytes)),
            Cell::Drawn(chart::bar(float(of.amount.bytes), float(of.amount.own_bytes), most)),
        ]
    };
    let rows: Vec<Vec<Cell>> = report.projects.iter().map(row).collect();
    body += "<h3>By project</h3>\n";
    body += &legend(&[("own", "its own: nothing else in the repository holds it"), ("shared", "shared")]);
    body += &table(
        "Layers of each project, each counted once. What several share is in the sum of each, so the sums may be \
         more than what is stored.",
        &["Project", "Images", "Lines", "Layers", "Its own", "Share"],
        &rows,
    );
    body += "<h3>By scope and line</h3>\n";
    let is_open = report.projects.len() <= UNFOLDED;
    for of in &report.projects {
        body += &project_storage(of, is_open);
    }
    section("storage", "Storage", &body)
}

fn project_name(of: &ProjectFigures) -> String {
    of.project.clone().unwrap_or_else(|| "(no project)".to_owned())
}

fn project_storage(of: &ProjectFigures, is_open: bool) -> String {
    let open = if is_open { " open" } else { "" };
    let mut text = format!(
        "<details{open}><summary>{} <span class=\"unit\">{}</span></summary>\n",
        escaped(&project_name(of)),
        escaped(&size(of.amount.bytes))
    );
    for scope in &of.scopes {
        let most = scope.lines.iter().map(|line| line.amount.bytes).max().map_or(0.0, float);
        let row = |line: &LineFigures| {
            vec![
                Cell::text(line.line.clone()),
                Cell::number(line.amount.images.to_string()),
                Cell::number(day(line.newest)),
                Cell::number(size(line.amount.bytes)),
                Cell::number(size(line.amount.own_bytes)),
                Cell::Drawn(chart::bar(float(line.amount.bytes), float(line.amount.own_bytes), most)),
            ]
        };
        let rows: Vec<Vec<Cell>> = scope.lines.iter().take(LINES).map(row).collect();
        let name = scope.scope.as_deref().unwrap_or("no scope");
        text += &table(
            &format!("{name} in {}: {}", scope.repository, size(scope.amount.bytes)),
            &["Line", "Images", "Newest", "Layers", "Its own", "Share"],
            &rows,
        );
        if scope.lines.len() > LINES {
            text += &soft(&format!(
                "And {} that hold less; --json has all.",
                count(scope.lines.len() - LINES, "line")
            ));
        }
    }
    text + "</details>\n"
}

fn storage_by_day(report: &Report) -> String {
    let (Some(first), Some(last)) = (report.storage.first(), report.storage.last()) else {
        return String::new();
    };
    let most = chart::round_up(float(last.bytes));
    let all = report.storage.iter().map(|of| float(of.bytes)).collect();
    let left = report.storage.iter().map(|of| float(of.left_bytes)).collect();
    let desc = format!(
        "From {} on {} to {} on {}, of which {} are on no line any more.",
        size(first.bytes),
        first.day,
        size(last.bytes),
        last.day,
        size(last.left_bytes)
    );
    let words = Words { id: "storage-by-day", title: "What is there now, by the day it came", desc: &desc };
    let svg = chart::area(&words, &[("all", all), ("left", left)], most);
    let middle = &report.storage[report.storage.len() / 2].day;
    let days = [first.day.as_str(), middle.as_str(), last.day.as_str()];
    let days = match report.storage.len() {
        1 => &days[2..],
        2 => &[days[0], days[2]],
        _ => &days[..],
    };
    figure(
        "What is there now, by the day it came. What was deleted since is nowhere in it, so this is no history of what \
         was stored.",
        &[bytes(most), bytes(most / 2.0), "0".to_owned()],
        &svg,
        days,
        &[("all", "all that is there now"), ("left", "what of it is on no line (any more)")],
    )
}

/// A size at an axis.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are whole and not negative"
)]
fn bytes(value: f64) -> String {
    size(value.round() as u64).replace(".0 ", " ")
}

fn hit_rate(report: &Report) -> String {
    let mut body = builds_by_day(report);
    if report.hit_rate.is_empty() {
        body += &paragraph(
            "No cache tells the cache hit rate of its build: Stoker notes that when it promotes what a build exported.",
        );
        return section("cache-hit-rate", "Cache hit rate", &body);
    }
    let row = |(at, of): (usize, &CacheHitRate)| {
        let main = of.main();
        let values: Vec<f64> = main.iter().map(|point| f64::from(point.reused_percent)).collect();
        let values = &values[values.len().saturating_sub(SPARKS)..];
        let newest = main.last().map(|point| percent(f64::from(point.reused_percent)));
        let desc = match (main.first(), main.last()) {
            (Some(first), Some(last)) => format!(
                "{} from {} to {}, the newest reused {} %",
                count(values.len(), "build"),
                day(first.at),
                day(last.at),
                last.reused_percent
            ),
            _ => "no build of main".to_owned(),
        };
        let title = format!("Steps that main's builds of {} reused", of.scope);
        let spark = if values.is_empty() {
            Cell::text("-")
        } else {
            let id = format!("spark-{at}");
            Cell::Drawn(chart::sparkline(&Words { id: &id, title: &title, desc: &desc }, values))
        };
        let name =
            if of.project == of.scope { of.project.clone() } else { format!("{}: {}", of.project, of.scope) };
        vec![
            Cell::text(name),
            Cell::number(main.len().to_string()),
            Cell::number(or_dash(newest)),
            Cell::number(or_dash(of.main_percent.map(percent))),
            Cell::number(or_dash(of.others_percent.map(percent))),
            spark,
        ]
    };
    let rows: Vec<Vec<Cell>> = report.hit_rate.iter().enumerate().map(row).collect();
    let mean = format!("Main, {} days", report.days);
    let others = format!("Others, {} days", report.days);
    body += "<h3>Steps reused, by project</h3>\n";
    body += &table(
        "Share of steps that came out of the cache, as far as caches that are still there tell. The line goes \
         from 0 to \
         100 percent, one place for each build of main.",
        &["Project", "Builds of main", "Newest", &mean, &others, "Over time"],
        &rows,
    );
    section("cache-hit-rate", "Cache hit rate", &body)
}

#[expect(clippy::cast_precision_loss, reason = "builds of a day")]
fn builds_by_day(report: &Report) -> String {
    let days = &report.builds_by_day;
    let (Some(first), Some(last)) = (days.first(), days.last()) else {
        return paragraph("CodeBuild knows no builds of these days.");
    };
    let most = days.iter().map(|of| of.warm + of.cold + of.others).max().unwrap_or_default();
    let most = chart::round_up(most as f64).max(2.0);
    let stacks: Vec<Vec<(&str, f64)>> = days
        .iter()
        .map(|of| vec![("warm", of.warm as f64), ("cold", of.cold as f64), ("others", of.others as f64)])
        .collect();
    let total = |of: fn(&super::data::BuildsOfDay) -> usize| days.iter().map(of).sum::<usize>();
    let desc = format!(
        "{} were given caches, {} none, and {} were not Stoker's.",
        count(total(|of| of.warm), "build"),
        total(|of| of.cold),
        total(|of| of.others)
    );
    let words = Words { id: "builds-by-day", title: "Builds by day, and what they were given", desc: &desc };
    let svg = chart::columns(&words, &stacks, most);
    let middle = &days[days.len() / 2].day;
    let half = most / 2.0;
    let half = if half.fract() > 0.0 { String::new() } else { format!("{half:.0}") };
    figure(
        &format!("Builds of each of the last {} days (UTC), by what they were given", report.days),
        &[format!("{most:.0}"), half, "0".to_owned()],
        &svg,
        &[&first.day, middle, &last.day],
        &[("warm", "given caches"), ("cold", "given none"), ("others", "not Stoker's")],
    )
}

fn builds(report: &Report) -> String {
    let any: Vec<&BuildFigures> = report.builds.iter().filter(|of| of.builds > 0).collect();
    if any.is_empty() {
        let text = format!("No builds in the last {} days.", report.days);
        return section("builds", "Builds", &paragraph(&text));
    }
    let row = |of: &&BuildFigures| {
        let median = |minutes_: Option<f64>, of: usize| match minutes_ {
            Some(median) => format!("{} ({of})", minutes(median)),
            None => "-".to_owned(),
        };
        let saved = match (of.minutes_saved, of.dollars_saved) {
            (Some(saved), Some(sum)) => format!("{}, {}", minutes(saved), dollars(sum)),
            _ if of.warm_succeeded == 0 => "no warm builds".to_owned(),
            _ => "not enough cold builds to tell".to_owned(),
        };
        vec![
            Cell::text(of.project.clone()),
            Cell::number(of.builds.to_string()),
            Cell::number(of.started_by_stoker.to_string()),
            Cell::number(of.asked.to_string()),
            Cell::number(of.failed.to_string()),
            Cell::number(median(of.cold_median_minutes, of.cold_succeeded)),
            Cell::number(median(of.warm_median_minutes, of.warm_succeeded)),
            Cell::text(saved),
        ]
    };
    let rows: Vec<Vec<Cell>> = any.iter().map(row).collect();
    let body = table(
        &format!(
            "Builds of the last {} days. Beside each median stands how many builds it is of. Asked: started by \
             somebody \
             else and given caches by resolve-cache, as the builds say themselves.",
            report.days
        ),
        &[
            "CodeBuild project",
            "Builds",
            "By Stoker",
            "Asked",
            "Failed",
            "Cold median",
            "Warm median",
            "Saved",
        ],
        &rows,
    );
    section("builds", "Builds", &body)
}

fn plan(report: &Report) -> String {
    let mut body = String::new();
    for of in &report.repositories {
        if let Some(refused) = &of.refused {
            let text = format!("{}: {refused}.", of.repository);
            body += &format!("<p class=\"warn\">{}</p>\n", escaped(&text));
        }
    }
    if report.rules.is_empty() {
        body += &paragraph("There is nothing to judge.");
        return section("plan", "The plan of retention", &body);
    }
    let in_report = report.repositories.iter().filter(|of| of.mode == "report").count();
    if in_report > 0 {
        let they = if in_report == 1 { "it stays as it is" } else { "they stay as they are" };
        body += &soft(&format!(
            "The policy says retention.mode: report for {} of {}: {they}, whatever the plan says.",
            in_report,
            if report.repositories.len() == 1 {
                "1 repository".to_owned()
            } else {
                format!("{} repositories", report.repositories.len())
            }
        ));
    }
    for (action, title, column) in
        [("delete", "What goes", "Frees"), ("wait", "What goes later", ""), ("keep", "What stays", "")]
    {
        let rules: Vec<&RuleFigures> = report.rules.iter().filter(|rule| rule.action == action).collect();
        if rules.is_empty() {
            continue;
        }
        let row = |rule: &&RuleFigures| {
            let mut row = vec![
                Cell::text(rule.rule.clone()),
                Cell::text(rule.means.clone()),
                Cell::number(rule.images.to_string()),
                Cell::number(size(rule.bytes)),
            ];
            row.extend((!column.is_empty()).then(|| Cell::number(size(rule.frees))));
            row
        };
        let rows: Vec<Vec<Cell>> = rules.iter().map(row).collect();
        let head = ["Rule", "Meaning", "Images", "Layers", column];
        let head = if column.is_empty() { &head[..4] } else { &head[..] };
        body += &format!("<h3>{title}</h3>\n");
        let caption = if action == "delete" {
            "Frees is less than layers where what stays holds them too"
        } else if action == "wait" {
            "A running build may still read it"
        } else {
            "By the rule that keeps it; layers are counted once for each rule"
        };
        body += &table(caption, head, &rows);
    }
    body += &largest(report);
    section("plan", "The plan of retention", &body)
}

fn largest(report: &Report) -> String {
    if report.largest_deletions.is_empty() {
        return soft("Nothing is to be deleted.");
    }
    let row = |of: &Deletion| {
        let name = of.tags.first().cloned().unwrap_or_else(|| of.digest.clone());
        let more = of.tags.len().saturating_sub(1);
        let name = if more > 0 { format!("{name} (and {})", count(more, "tag")) } else { name };
        vec![
            Cell::Code(name),
            Cell::text(of.repository.clone()),
            Cell::number(day(of.pushed_at)),
            Cell::number(size(of.frees)),
            Cell::Word(of.rule.clone()),
            Cell::text(of.why.clone()),
        ]
    };
    let rows: Vec<Vec<Cell>> = report.largest_deletions.iter().map(row).collect();
    let caption = format!(
        "{} of {}, those that free most first",
        report.largest_deletions.len(),
        count(report.figures.deletions, "deletion")
    );
    let head = ["Image", "Repository", "Pushed", "Frees", "Rule", "Why"];
    format!("<h3>The largest deletions</h3>\n{}", table(&caption, &head, &rows))
}

fn notes(report: &Report) -> String {
    if report.notes.is_empty() {
        return section("notes", "Notes", &paragraph("Everything could be read and judged."));
    }
    let lead = soft("What could not be read, judged or met:");
    section("notes", "Notes", &(lead + &list("notes", report.notes.iter().map(|note| escaped(note)))))
}
