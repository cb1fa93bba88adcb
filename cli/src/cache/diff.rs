//! `stoker cache diff`: why one cache serves a build and the other does not.

use buildkit_cache::{Cache, Diff, Side};
use serde_json::{Value, json};

use crate::cache::Amount;
use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::reference::Reference;
use crate::remote::{Remotes, read_all};
use crate::text::{Align, count, size, table};

/// Compares two caches, and says where and why they part
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker cache diff registry.example/app/cache:main registry.example/app/cache:feature-a
  stoker cache diff --json REF@sha256:... REF@sha256:... | jq .onlyInA

Exits with 0 where both hold the same, with 1 where they differ. Two builds of the same source should share every \
step. Where they do not, what is told is where they part: everything after that differs too.")]
pub(crate) struct Args {
    /// One cache
    a: Reference,
    /// The other
    b: Reference,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let held = read_all(&Remotes::default(), &[args.a.clone(), args.b.clone()]).await?;
    let [a, b] = held.as_slice() else {
        return Err(Problem::failed("two caches were asked for, and not two read", "report this"));
    };
    let comparison = Comparison::of(&a.cache, &b.cache);
    let text = if args.json {
        super::to_json(&comparison.json())
    } else {
        render(&args.a.to_string(), &args.b.to_string(), &comparison)
    };
    Ok(CommandOutcome { text, success: comparison.diff.is_empty() })
}

/// Two caches beside each other.
struct Comparison {
    in_both: Amount,
    /// Ours is what only A has, theirs what only B has.
    diff: Diff,
}

impl Comparison {
    fn of(a: &Cache, b: &Cache) -> Self {
        Self { in_both: Amount::in_both(&a.steps(), &b.steps()), diff: a.diff(b) }
    }

    /// Results are those of keys that both have.
    fn json(&self) -> Value {
        let side = |side: &Side| {
            let Amount { steps, bytes } = Amount::of(&side.steps);
            json!({
                "steps": steps,
                "bytes": bytes,
                "sources": side.sources,
                "instructions": side.instructions,
                "keys": side.records,
                "results": side.results,
                "stepsBySize": side.steps,
            })
        };
        json!({"inBoth": self.in_both, "onlyInA": side(&self.diff.ours), "onlyInB": side(&self.diff.theirs)})
    }
}

fn render(a: &str, b: &str, comparison: &Comparison) -> String {
    let mut text = format!("A  {a}\nB  {b}\n\n");
    if comparison.diff.is_empty() {
        let Amount { steps, bytes } = &comparison.in_both;
        return text + &format!("They hold the same: {}, {}.\n", count(*steps, "step"), size(*bytes));
    }
    let row =
        |name: &str, amount: &Amount| vec![name.to_owned(), amount.steps.to_string(), size(amount.bytes)];
    text += &table(
        "",
        &[Align::Left, Align::Right, Align::Right],
        &[
            vec![String::new(), "STEPS".to_owned(), "SIZE".to_owned()],
            row("in both", &comparison.in_both),
            row("only in A", &Amount::of(&comparison.diff.ours.steps)),
            row("only in B", &Amount::of(&comparison.diff.theirs.steps)),
        ],
    );
    text += "\nWhere they part:\n";
    for reason in reasons(&comparison.diff) {
        text += &format!("  - {reason}\n");
    }
    text + &next(a, b, &comparison.diff)
}

fn reasons(diff: &Diff) -> Vec<String> {
    let (a, b) = (&diff.ours, &diff.theirs);
    let mut reasons = Vec::new();
    for (name, less, more) in [("A", a, b), ("B", b, a)] {
        if less.is_empty() && more.records > 0 {
            let keys = count(more.records, "key");
            return vec![format!(
                "{name} lacks {keys} of the other: it has seen fewer builds, or was pruned."
            )];
        }
    }
    if a.sources + b.sources > 0 {
        reasons.push(format!(
            "other sources: {} only in A, {} only in B. A file of the build context, a base image, or a build argument \
             is not the same.",
            a.sources, b.sources
        ));
    }
    if a.instructions + b.instructions > 0 {
        reasons.push(format!(
            "other instructions on the same sources: {} only in A, {} only in B. A command line, an environment \
             variable or a flag such as --network is not the same; or one build ran stages that the other did not.",
            a.instructions, b.instructions
        ));
    }
    if a.results > 0 && b.results > 0 {
        reasons.push(format!(
            "the same instructions on the same sources with other results: {} only in A, {} only in B. Both builds ran \
             them, because neither could read what the other had exported.",
            a.results, b.results
        ));
    }
    if reasons.is_empty() {
        reasons.push("the same keys, with results that only one of them keeps.".to_owned());
    }
    reasons
}

fn next(a: &str, b: &str, diff: &Diff) -> String {
    if diff.ours.is_empty() {
        "\nB has all of A: a build that reads B needs no A.\n".to_owned()
    } else if diff.theirs.is_empty() {
        "\nA has all of B: a build that reads A needs no B.\n".to_owned()
    } else {
        format!("\nOne cache that serves both: stoker cache merge {a} {b} --into ...\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::tests::cache;

    fn reported(a: &[&str], b: &[&str]) -> String {
        render("a", "b", &Comparison::of(&cache(a), &cache(b)))
    }

    #[test]
    fn what_parts_two_caches_is_reported() {
        let text = reported(&["a", "b"], &["b", "c", "bd"]);
        let expected = "\
A  a
B  b

           STEPS    SIZE
in both        1  1.0 MB
only in A      1     0 B
only in B      2  6.0 MB

Where they part:
";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("other sources: 1 only in A, 2 only in B"), "{text}");
        assert!(text.contains("other instructions on the same sources: 0 only in A, 1 only in B"), "{text}");
        assert!(text.ends_with("stoker cache merge a b --into ...\n"), "{text}");
    }

    #[test]
    fn the_same_and_the_contained_are_reported() {
        assert!(reported(&["a", "b"], &["b", "a"]).contains("They hold the same: 2 steps"));
        assert!(reported(&["a"], &["b", "a"]).contains("B has all of A"));
        assert!(reported(&["a", "b"], &["b"]).contains("A has all of B"));
    }
}
