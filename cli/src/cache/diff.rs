//! `stoker cache diff`: why one cache serves a build and the other does not.

use std::collections::BTreeMap;

use serde::Serialize;
use stoker::names::Digest;

use crate::Answer;
use crate::contents::{Contents, Key, Step, bytes_of};
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

pub(crate) async fn run(args: &Args) -> Result<Answer, Problem> {
    let held = read_all(&Remotes::default(), &[args.a.clone(), args.b.clone()]).await?;
    let [a, b] = held.as_slice() else {
        return Err(Problem::failed("two caches were asked for, and not two read", "report this"));
    };
    let comparison = compare(&Contents::of(&a.cache), &Contents::of(&b.cache));
    let text = if args.json {
        super::to_json(&comparison)
    } else {
        render(&args.a.to_string(), &args.b.to_string(), &comparison)
    };
    Ok(Answer { text, is_yes: comparison.is_same() })
}

/// Two caches beside each other.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Comparison {
    in_both: Amount,
    only_in_a: Side,
    only_in_b: Side,
    /// Keys that both have, but for which each remembers other results.
    same_key_other_result: usize,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Amount {
    steps: usize,
    bytes: u64,
}

/// What only one of them has.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Side {
    #[serde(flatten)]
    amount: Amount,
    /// Files, base images and other sources that only this one knows.
    sources: usize,
    /// Instructions that only this one knows, although both know all that they were run on.
    instructions: usize,
    /// Keys that only this one has, whatever for.
    keys: usize,
    steps_by_size: Vec<Step>,
}

impl Comparison {
    fn is_same(&self) -> bool {
        self.only_in_a.keys == 0
            && self.only_in_b.keys == 0
            && self.only_in_a.amount.steps == 0
            && self.only_in_b.amount.steps == 0
            && self.same_key_other_result == 0
    }
}

fn compare(a: &Contents, b: &Contents) -> Comparison {
    let both: Vec<&Step> =
        a.steps.iter().filter(|(id, _)| b.steps.contains_key(id)).map(|(_, step)| step).collect();
    let other_results = a.keys.iter().filter(|(id, key)| {
        // One that holds more than the other is no contradiction; two that share nothing are.
        b.keys.get(id).is_some_and(|other| {
            !key.steps.is_empty() && !other.steps.is_empty() && key.steps.is_disjoint(&other.steps)
        })
    });
    Comparison {
        same_key_other_result: other_results.count(),
        in_both: Amount { steps: both.len(), bytes: bytes_of(both.into_iter()) },
        only_in_a: side(a, b),
        only_in_b: side(b, a),
    }
}

fn side(ours: &Contents, theirs: &Contents) -> Side {
    let mut steps: Vec<&Step> =
        ours.steps.iter().filter(|(id, _)| !theirs.steps.contains_key(id)).map(|(_, step)| step).collect();
    steps.sort_by_key(|step| std::cmp::Reverse(step.size));
    let keys: BTreeMap<&Digest, &Key> =
        ours.keys.iter().filter(|(id, _)| !theirs.keys.contains_key(id)).collect();
    let sources = keys.values().filter(|key| key.inputs.is_empty()).count();
    let is_first = |key: &&&Key| {
        !key.inputs.is_empty() && key.inputs.iter().all(|input| theirs.keys.contains_key(input))
    };
    Side {
        amount: Amount { steps: steps.len(), bytes: bytes_of(steps.iter().copied()) },
        sources,
        instructions: keys.values().filter(is_first).count(),
        keys: keys.len(),
        steps_by_size: steps.into_iter().cloned().collect(),
    }
}

fn render(a: &str, b: &str, comparison: &Comparison) -> String {
    let mut text = format!("A  {a}\nB  {b}\n\n");
    if comparison.is_same() {
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
            row("only in A", &comparison.only_in_a.amount),
            row("only in B", &comparison.only_in_b.amount),
        ],
    );
    text += "\nWhere they part:\n";
    for reason in reasons(comparison) {
        text += &format!("  - {reason}\n");
    }
    text + &next(a, b, comparison)
}

fn reasons(comparison: &Comparison) -> Vec<String> {
    let (a, b) = (&comparison.only_in_a, &comparison.only_in_b);
    let mut reasons = Vec::new();
    for (name, less, more) in [("A", a, b), ("B", b, a)] {
        if less.keys == 0 && less.amount.steps == 0 && more.keys > 0 {
            let keys = count(more.keys, "key");
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
    if comparison.same_key_other_result > 0 {
        reasons.push(format!(
            "{} on the same sources with other results: both builds ran them, because neither could read what the \
             other had exported.",
            count(comparison.same_key_other_result, "same instruction")
        ));
    }
    if reasons.is_empty() {
        reasons.push("the same keys, with results that only one of them keeps.".to_owned());
    }
    reasons
}

fn next(a: &str, b: &str, comparison: &Comparison) -> String {
    match (comparison.only_in_a.keys, comparison.only_in_b.keys) {
        (0, 0) => String::new(),
        (0, _) => "\nB has every key of A: a build that reads B needs no A.\n".to_owned(),
        (_, 0) => "\nA has every key of B: a build that reads A needs no B.\n".to_owned(),
        _ => format!("\nOne cache that serves both: stoker cache merge {a} {b} --into ...\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contents::tests::cache;

    fn told(a: &[&str], b: &[&str]) -> String {
        render("a", "b", &compare(&Contents::of(&cache(a)), &Contents::of(&cache(b))))
    }

    #[test]
    fn what_parts_two_caches_is_told() {
        let text = told(&["a", "b"], &["b", "c", "bd"]);
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
    fn the_same_and_the_contained_are_told() {
        assert!(told(&["a", "b"], &["b", "a"]).contains("They hold the same: 2 steps"));
        assert!(told(&["a"], &["b", "a"]).contains("B has every key of A"));
        assert!(told(&["a", "b"], &["b"]).contains("A has every key of B"));
    }
}
