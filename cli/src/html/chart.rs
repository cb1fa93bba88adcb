//! Charts as SVG: shapes only, stretched to whatever room the page gives them, so that what is written beside
//! them stays as large on a phone as on a screen. Every chart says in words what it shows.

use super::escaped;

/// Width and height of the plane that charts are drawn on.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 100.0;

/// What a chart is called, and what it shows in words.
pub(crate) struct Words<'w> {
    /// Unlike any other on the page.
    pub(crate) id: &'w str,
    pub(crate) title: &'w str,
    pub(crate) desc: &'w str,
}

/// A chart that is a part of the page's text.
fn svg(words: &Words<'_>, class: &str, shapes: &str) -> String {
    let (id, title, desc) = (escaped(words.id), escaped(words.title), escaped(words.desc));
    format!(
        "<svg class=\"{class}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{desc}</desc>\
         {shapes}</svg>"
    )
}

/// The place of a value between 0 and `most`, from the top.
fn height_of(value: f64, most: f64) -> f64 {
    if most > 0.0 { HEIGHT - (value / most).clamp(0.0, 1.0) * HEIGHT } else { HEIGHT }
}

#[expect(clippy::cast_precision_loss, reason = "there are a few hundred of them")]
fn float(number: usize) -> f64 {
    number as f64
}

/// Areas under series of as many values each, one before the other: the last is in front. Each has a class.
pub(crate) fn area(words: &Words<'_>, series: &[(&str, Vec<f64>)], most: f64) -> String {
    let mut shapes = grid();
    for (class, values) in series {
        let mut line: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(at, value)| {
                let x = WIDTH * float(at) / float(values.len().saturating_sub(1).max(1));
                format!("{x:.1},{:.2}", height_of(*value, most))
            })
            .collect();
        // What came today has a day's width all the same.
        if let [only] = line.as_slice() {
            line.push(format!("{WIDTH},{}", only.split_once(',').map_or("0", |(_, y)| y)));
        }
        let line = line.join(" ");
        shapes += &format!(
            "<polygon class=\"{class}\" points=\"0,{HEIGHT} {line} {WIDTH},{HEIGHT}\"/>\
             <polyline class=\"{class}\" points=\"{line}\"/>"
        );
    }
    svg(words, "plot", &shapes)
}

/// A column for each entry, made of values on top of each other, the first at the bottom. Each has a class.
pub(crate) fn columns(words: &Words<'_>, stacks: &[Vec<(&str, f64)>], most: f64) -> String {
    let mut shapes = grid();
    let step = WIDTH / float(stacks.len().max(1));
    for (at, stack) in stacks.iter().enumerate() {
        let mut below = 0.0;
        for (class, value) in stack.iter().filter(|(_, value)| *value > 0.0) {
            let (top, bottom) = (height_of(below + value, most), height_of(below, most));
            shapes += &format!(
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top:.2}\" width=\"{:.1}\" height=\"{:.2}\"/>",
                (float(at) + 0.12) * step,
                0.76 * step,
                bottom - top
            );
            below += value;
        }
    }
    svg(words, "plot", &shapes)
}

fn grid() -> String {
    let line = |y: f64| format!("<line class=\"grid\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{y:.0}\" y2=\"{y:.0}\"/>");
    [0.0, HEIGHT / 2.0, HEIGHT].map(line).concat()
}

/// Lines through series of as many values each. Each has a class.
pub(crate) fn lines(words: &Words<'_>, series: &[(&str, &[f64])], most: f64) -> String {
    let mut shapes = grid();
    for (class, values) in series {
        let place = |(at, value): (usize, &f64)| {
            let x = WIDTH * float(at) / float(values.len().saturating_sub(1).max(1));
            format!("{x:.1},{:.2}", height_of(*value, most))
        };
        let line: Vec<String> = values.iter().enumerate().map(place).collect();
        shapes += &format!("<polyline class=\"{class}\" points=\"{}\"/>", line.join(" "));
    }
    svg(words, "plot", &shapes)
}

/// A strip with a place for each entry: of a class, or empty. Neighbours of one class are one shape.
pub(crate) fn strip(words: &Words<'_>, entries: &[Option<&str>]) -> String {
    let step = WIDTH / float(entries.len().max(1));
    let mut shapes = String::new();
    let mut at = 0;
    for group in entries.chunk_by(|a, b| a == b) {
        if let Some(Some(class)) = group.first() {
            shapes += &format!(
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\"/>",
                float(at) * step,
                float(group.len()) * step
            );
        }
        at += group.len();
    }
    svg(words, "strip", &shapes)
}

/// A bar of a value out of the largest, with a part of it in front. The numbers stand beside it, so it says nothing.
pub(crate) fn bar(value: f64, part: f64, most: f64) -> String {
    let width = |value: f64| if most > 0.0 { (value / most).clamp(0.0, 1.0) * WIDTH } else { 0.0 };
    let rect = |class: &str, value: f64| {
        format!("<rect class=\"{class}\" x=\"0\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\"/>", width(value))
    };
    format!(
        "<svg class=\"bar\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" aria-hidden=\"true\" \
         focusable=\"false\">{}{}</svg>",
        rect("shared", value),
        rect("own", part)
    )
}

/// A line through values between 0 and 100.
pub(crate) fn sparkline(words: &Words<'_>, values: &[f64]) -> String {
    // A margin, so that neither 0 nor 100 lies on the edge.
    let at = |(at, value): (usize, &f64)| {
        let x = 20.0
            + if values.len() > 1 {
                (WIDTH - 40.0) * float(at) / float(values.len() - 1)
            } else {
                WIDTH / 2.0 - 20.0
            };
        (x, 8.0 + height_of(*value, 100.0) * 0.84)
    };
    let places: Vec<(f64, f64)> = values.iter().enumerate().map(at).collect();
    let line: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let mut shapes = format!(
        "<line class=\"grid\" x1=\"0\" x2=\"{WIDTH}\" y1=\"92\" y2=\"92\"/><polyline class=\"reuse\" points=\"{}\"/>",
        line.join(" ")
    );
    // A line without length has round ends, which stay round however the chart is stretched.
    if let Some((x, y)) = places.last() {
        shapes += &format!("<line class=\"dot\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
    }
    svg(words, "spark", &shapes)
}

/// The next round number: 1, 2, 2.5 or 5 and noughts.
pub(crate) fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let unit = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    steps.into_iter().map(|step| step * unit).find(|round| *round >= value).unwrap_or(value)
}
