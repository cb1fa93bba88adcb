//! Sizes, times and tables as people read them.

use jiff::Timestamp;

/// A size with three digits at least: `830 B`, `1.2 MB`. Decimal units, as registries and bills use them.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if value < 99.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// Reads `5GB`, `500 MB`, `1.5GiB` or a number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u32 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "kb" | "k" => 1,
        "mb" | "m" => 2,
        "gb" | "g" => 3,
        "tb" | "t" => 4,
        "kib" => 11,
        "mib" => 12,
        "gib" => 13,
        "tib" => 14,
        _ => {
            return Err(format!(
                "`{}` is no unit: write B, KB, MB, GB, TB or KiB, MiB, GiB, TiB",
                unit.trim()
            ));
        }
    };
    let factor: u64 = if factor > 10 { 1024_u64.pow(factor - 10) } else { 1000_u64.pow(factor) };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let wrong = || format!("`{text}` is no size: write it like 500MB or 5GB");
    if whole.is_empty() && fraction.is_empty() {
        return Err(wrong());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
    let mut bytes = whole.checked_mul(factor).ok_or_else(wrong)?;
    let mut place = factor;
    for digit in fraction.chars() {
        place /= 10;
        bytes += place * u64::from(digit.to_digit(10).ok_or_else(wrong)?);
    }
    Ok(bytes)
}

/// How long ago something was: `3 min ago`. A time before computers is as good as none.
pub(crate) fn ago(now: Timestamp, then: Option<Timestamp>, none: &str) -> String {
    let Some(then) = then.filter(|then| then.as_second() > 0) else { return none.to_owned() };
    let seconds = now.as_second() - then.as_second();
    match seconds {
        ..0 => "in the future".to_owned(),
        0..60 => format!("{seconds} s ago"),
        60..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// The share of a limit, in percent: `0.2 %`.
#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
pub(crate) fn percent(part: u64, whole: u64) -> String {
    let percent = part as f64 * 100.0 / whole as f64;
    if part > 0 && percent < 0.05 {
        return "less than 0.1 %".to_owned();
    }
    if percent < 10.0 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

/// `1 step`, `2 steps`.
pub(crate) fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// Text from outside, fit for a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().take(200).flat_map(visible).collect()
}

/// The same with as many characters as there are.
pub(crate) fn plain_whole(text: &str) -> String {
    text.chars().flat_map(visible).collect()
}

/// A character, or its number where it could move the cursor, turn the direction of writing or hide.
fn visible(c: char) -> Vec<char> {
    let hides = matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
    if c.is_control() || hides { c.escape_default().collect() } else { vec![c] }
}

/// How a column is set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Lines of columns, two spaces between them, nothing at the ends.
pub(crate) fn table(indent: &str, align: &[Align], rows: &[Vec<String>]) -> String {
    let width_of = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..align.len()).map(width_of).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).zip(align).map(|((cell, &width), align)| match align {
            Align::Left => format!("{cell:<width$}"),
            Align::Right => format!("{cell:>width$}"),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(indent);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Reads a price in dollars.
pub(crate) fn price(text: &str) -> Result<f64, String> {
    let price = text.parse::<f64>().ok().filter(|price| (0.0..=1000.0).contains(price));
    price.ok_or_else(|| format!("`{text}` is no price: write it like 0.005"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (99_949, "99.9 kB"),
            (99_950, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (5_000_000_000, "5.0 GB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("1.5 gb", 1_500_000_000),
            ("2GiB", 2 << 30),
            ("700", 700),
            (".5k", 500),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "GB", "5 potatoes", "-1GB", "1..5GB", "1.2.3", "99999999999999999999", "99999999999TB", "."]
        {
            assert!(parse_size(text).is_err(), "{text}: {:?}", parse_size(text));
        }
    }

    #[test]
    fn times_read_well() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        for (then, text) in [
            ("2026-11-21T09:59:30Z", "30 s ago"),
            ("2026-11-21T09:00:00Z", "60 min ago"),
            ("2026-11-20T10:00:00Z", "24 h ago"),
            ("2026-11-01T10:00:00Z", "20 days ago"),
            ("2026-11-22T10:00:00Z", "in the future"),
            ("0001-01-01T00:00:01Z", "unknown"),
        ] {
            assert_eq!(ago(now, Some(then.parse().unwrap()), "unknown"), text);
        }
        assert_eq!(ago(now, None, "-"), "-");
    }

    #[test]
    fn tables_are_straight() {
        let rows = [vec!["A".to_owned(), "B".to_owned()], vec!["long".to_owned(), "10".to_owned()]];
        assert_eq!(table("  ", &[Align::Left, Align::Right], &rows), "  A      B\n  long  10\n");
        assert_eq!(plain("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(plain("\u{202e}nim"), "\\u{202e}nim");
        assert_eq!(plain_whole(&"x".repeat(300)).len(), 300);
    }
}
