//! The unified diff of a few changed lines.

use crate::text::plain_whole;

/// Lines around a change that are shown.
const AROUND: usize = 3;

/// What makes `after` of `before`. Where several places changed, what is between them is shown as changed, too, unless
/// it is the same line for line: patches here are short.
pub(super) fn unified(name: &str, before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let start = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let most = old.len().min(new.len()) - start;
    let end = old.iter().rev().zip(new.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
    let (from, until) = (start.saturating_sub(AROUND), (old.len() - end + AROUND).min(old.len()));
    let added = new.len() - end - start;
    let removed = old.len() - end - start;
    let count = until - from;
    let mut text = format!(
        "--- a/{name}\n+++ b/{name}\n@@ -{},{count} +{},{} @@\n",
        from + usize::from(count > 0),
        from + usize::from(count > 0),
        count + added - removed,
        name = plain_whole(name),
    );
    let mut line = |mark: char, line: &str| text += &format!("{mark}{}\n", plain_whole(line));
    old[from..start].iter().for_each(|of| line(' ', of));
    old[start..old.len() - end].iter().for_each(|of| line('-', of));
    new[start..new.len() - end].iter().for_each(|of| line('+', of));
    old[old.len() - end..until].iter().for_each(|of| line(' ', of));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_shown_with_what_is_around_it() {
        let before = "a\nb\nc\nd\ne\nf\ng\nh\n";
        let after = "a\nb\nc\nd\nnew\nE\nf\ng\nh\n";
        let shown = "--- a/x\n+++ b/x\n@@ -2,7 +2,8 @@\n b\n c\n d\n-e\n+new\n+E\n f\n g\n h\n";
        assert_eq!(unified("x", before, after), shown);
        assert_eq!(unified("x", "", "a\n"), "--- a/x\n+++ b/x\n@@ -0,0 +0,1 @@\n+a\n");
        assert!(!unified("x", "a\u{1b}[2J\n", "b\n").contains('\u{1b}'));
    }
}
