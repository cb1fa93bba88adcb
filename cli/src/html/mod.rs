//! Pages that need nothing else: no script, no font, no network.

pub(crate) mod chart;

use crate::text::plain_whole;

const STYLE: &str = include_str!("style.css");

/// Text from outside, fit for a page.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in plain_whole(text).chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// What stands in a cell of a table.
pub(crate) enum Cell {
    /// Anything, to be escaped.
    Text(String),
    /// A number or the like, to be escaped.
    Number(String),
    /// A word of Stoker's, to be escaped.
    Word(String),
    /// A tag or the like, to be escaped.
    Code(String),
    /// A chart.
    Drawn(String),
}

impl Cell {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(crate) fn number(text: impl Into<String>) -> Self {
        Self::Number(text.into())
    }

    fn class(&self) -> &'static str {
        match self {
            Self::Text(_) => "",
            Self::Number(_) => " class=\"n\"",
            Self::Word(_) => " class=\"word\"",
            Self::Code(_) => " class=\"code\"",
            Self::Drawn(_) => " class=\"draw\"",
        }
    }

    fn markup(&self) -> String {
        match self {
            Self::Text(text) | Self::Number(text) | Self::Word(text) => escaped(text),
            Self::Code(text) => format!("<code>{}</code>", escaped(text)),
            Self::Drawn(markup) => markup.clone(),
        }
    }
}

/// A table; the first cell of a row is what it is about. On a phone each row is a block, so the roles are said again.
pub(crate) fn table(caption: &str, head: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut text = format!(
        "<table role=\"table\"><caption>{}</caption><thead role=\"rowgroup\"><tr role=\"row\">",
        escaped(caption)
    );
    for (at, name) in head.iter().enumerate() {
        let class = rows.first().and_then(|row| row.get(at)).map_or("", Cell::class);
        text += &format!("<th role=\"columnheader\" scope=\"col\"{class}>{}</th>", escaped(name));
    }
    text += "</tr></thead><tbody role=\"rowgroup\">\n";
    for row in rows {
        text += "<tr role=\"row\">";
        for (at, cell) in row.iter().enumerate() {
            let (class, markup) = (cell.class(), cell.markup());
            if at == 0 {
                text += &format!("<th role=\"rowheader\" scope=\"row\"{class}>{markup}</th>");
            } else {
                let name = escaped(head.get(at).copied().unwrap_or_default());
                text += &format!("<td role=\"cell\"{class} data-name=\"{name}\">{markup}</td>");
            }
        }
        text += "</tr>\n";
    }
    text + "</tbody></table>\n"
}

pub(crate) fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escaped(text))
}

pub(crate) fn soft(text: &str) -> String {
    format!("<p class=\"soft\">{}</p>\n", escaped(text))
}

/// A list; what each entry says is markup that was made here.
pub(crate) fn list(class: &str, entries: impl IntoIterator<Item = String>) -> String {
    let mut text = format!("<ul class=\"{class}\">\n");
    for entry in entries {
        text += &format!("<li>{entry}</li>\n");
    }
    text + "</ul>\n"
}

/// What the colours mean, each by its class.
pub(crate) fn legend(entries: &[(&str, &str)]) -> String {
    list("legend", entries.iter().map(|(class, text)| format!("<i class=\"{class}\"></i>{}", escaped(text))))
}

/// A section with a heading that it is named by.
pub(crate) fn section(id: &str, title: &str, body: &str) -> String {
    format!("<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{}</h2>\n{body}</section>\n", escaped(title))
}

/// A chart with what is written around it: at its left from the top, and below it.
pub(crate) fn figure(
    caption: &str,
    y: &[String; 3],
    svg: &str,
    x: &[&str],
    meanings: &[(&str, &str)],
) -> String {
    let span = |text: &str| format!("<span>{}</span>", escaped(text));
    let y: String = y.iter().map(|text| span(text)).collect();
    let x: String = x.iter().map(|text| span(text)).collect();
    let legend = legend(meanings);
    format!(
        "<figure><figcaption>{}</figcaption><div class=\"chart\"><div class=\"y\" aria-hidden=\"true\">{y}</div>{svg}\
         <div class=\"x\" aria-hidden=\"true\">{x}</div></div>{legend}</figure>\n",
        escaped(caption)
    )
}

/// A sum of money: `$0.07`, `$12.40`, `$1,204`.
pub(crate) fn dollars(sum: f64) -> String {
    let sign = if sum <= -0.005 { "-" } else { "" };
    let sum = sum.abs();
    if sum > 0.0 && sum < 0.005 {
        return "less than $0.01".to_owned();
    }
    if sum < 1000.0 {
        return format!("{sign}${sum:.2}");
    }
    let digits = format!("{sum:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}${grouped}")
}

/// Figures that meet the eye first: of each its name, its value, and what the value is of.
pub(crate) fn cards(cards: impl IntoIterator<Item = (&'static str, String, String)>) -> String {
    let card = |(name, value, unit): (&str, String, String)| {
        format!(
            "<span class=\"name\">{}</span> <strong>{}</strong> <span class=\"unit\">{}</span>",
            escaped(name),
            escaped(&value),
            escaped(&unit)
        )
    };
    list("figures", cards.into_iter().map(card))
}

/// A whole page; the body ends in `main`.
pub(crate) fn document(title: &str, body: &str) -> String {
    // Should anything slip through, a browser loads and runs nothing for this page.
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}</main>\n</body>\n</html>\n",
        escaped(title)
    )
}
