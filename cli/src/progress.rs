//! A bar on stderr for work that takes a while; nothing where nobody looks.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::text;

const REDRAW: Duration = Duration::from_millis(100);
const WIDTH: u64 = 30;

/// What is counted.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Bytes,
    Things,
}

/// Work of a known size that is under way.
pub(crate) struct Progress {
    doing: &'static str,
    unit: Unit,
    total: u64,
    done: AtomicU64,
    /// `None` where stderr is no terminal.
    drawn: Option<Mutex<Instant>>,
}

impl Progress {
    pub(crate) fn new(doing: &'static str, unit: Unit, total: u64) -> Self {
        let is_seen = std::io::stderr().is_terminal();
        let drawn = is_seen.then(|| Mutex::new(Instant::now()));
        Self { doing, unit, total, done: AtomicU64::new(0), drawn }
    }

    pub(crate) fn add(&self, amount: u64) {
        let done = self.done.fetch_add(amount, Ordering::Relaxed) + amount;
        let Some(drawn) = &self.drawn else { return };
        let Ok(mut drawn) = drawn.lock() else { return };
        if drawn.elapsed() >= REDRAW {
            *drawn = Instant::now();
            // A bar that cannot be drawn is no reason to stop.
            let _ = write!(std::io::stderr(), "\r\u{1b}[K{}", bar(self.doing, self.unit, done, self.total));
        }
    }

    /// Takes back what a failed try had added.
    pub(crate) fn take_back(&self, amount: u64) {
        self.done.fetch_sub(amount, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}

fn bar(doing: &str, unit: Unit, done: u64, total: u64) -> String {
    let filled = usize::try_from((done.min(total) * WIDTH).checked_div(total).unwrap_or(WIDTH)).unwrap_or(0);
    let empty = usize::try_from(WIDTH).unwrap_or(0) - filled;
    let show = |amount| match unit {
        Unit::Bytes => text::size(amount),
        Unit::Things => amount.to_string(),
    };
    format!("{doing} [{}{}] {} of {}", "#".repeat(filled), ".".repeat(empty), show(done), show(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_how_far_it_is() {
        let half = bar("copying", Unit::Bytes, 6_000_000, 12_000_000);
        assert_eq!(half, "copying [###############...............] 6.0 MB of 12.0 MB");
        assert!(bar("checking", Unit::Things, 0, 0).ends_with("] 0 of 0"));
        assert!(bar("checking", Unit::Things, 9, 3).contains("##############################]"));
    }
}
