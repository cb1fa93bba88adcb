//! Which steps of a build missed the cache first, as far as its export and its line tell.

use std::collections::{BTreeMap, BTreeSet};

use buildkit_cache::Cache;
use jiff::Timestamp;

use crate::event::{FirstMiss, MissCause};

/// So many are named; people look at the first ones.
const MOST: usize = 5;
/// A digest with its algorithm has some seventy characters; a build may write anything.
const LONGEST: usize = 100;

/// The steps of an export that ran, and that rest on none that ran, in the order of their digests. Nothing where that
/// takes too long to find out, as with caches that somebody made for it.
pub(super) fn first_misses(
    export: &Cache,
    started: Timestamp,
    line: Option<&Cache>,
    is_refresh: bool,
) -> Vec<FirstMiss> {
    let records = export.lookups();
    let ran: BTreeSet<usize> = (0..records.len())
        .filter(|place| {
            records
                .get(*place)
                .is_some_and(|it| it.has_result && it.made_at.is_some_and(|made| made >= started))
        })
        .collect();
    let mut users: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (user, record) in records.iter().enumerate() {
        for input in record.inputs.iter().flatten() {
            users.entry(input.record).or_default().push(user);
        }
    }
    let mut follows = BTreeSet::new();
    let mut open: Vec<usize> = ran.iter().copied().collect();
    while let Some(place) = open.pop() {
        let of = users.get(&place).into_iter().flatten();
        open.extend(of.filter(|user| follows.insert(**user)));
    }
    let empty = Cache::default();
    let held = line.unwrap_or(&empty);
    let Some(matching) = export.matching(held) else { return Vec::new() };
    let known = held.lookups();
    let operations: BTreeSet<&str> = known.iter().map(|record| record.digest.as_str()).collect();
    let cause = |place: usize, digest: &str| {
        let there = matching.get(place).into_iter().flatten().filter_map(|other| known.get(*other));
        let mut there = there.filter(|record| record.has_result).peekable();
        match line {
            _ if is_refresh => MissCause::Refresh,
            None => MissCause::NoLine,
            Some(_) if there.peek().is_some() => {
                let is_older = there.any(|record| record.made_at.is_none_or(|made| made < started));
                if is_older { MissCause::InLine } else { MissCause::TooLate }
            }
            Some(_) if operations.contains(digest) => MissCause::OtherInputs,
            Some(_) => MissCause::NotInLine,
        }
    };
    // A step may have several records, which share its operation: what proves most is told.
    let mut first: BTreeMap<&str, MissCause> = BTreeMap::new();
    for place in ran.difference(&follows) {
        let Some(record) = records.get(*place) else { continue };
        let cause = cause(*place, &record.digest);
        first.entry(&record.digest).and_modify(|known| *known = cause.min(*known)).or_insert(cause);
    }
    let first = first.into_iter().take(MOST);
    first.map(|(digest, cause)| FirstMiss { record: digest.chars().take(LONGEST).collect(), cause }).collect()
}

#[cfg(test)]
mod tests {
    use buildkit_cache::{Kind, classify};
    use serde_json::{Value, json};

    use super::*;
    use crate::names::Digest;

    const BEFORE: &str = "2026-11-30T09:00:00Z";
    const STARTED: &str = "2026-11-30T10:00:00Z";
    const AFTER: &str = "2026-11-30T10:01:00Z";

    /// A cache of records: name, the places of their inputs, and when their results were made.
    fn cache(records: &[(&str, &[usize], Option<&str>)]) -> Cache {
        let (mut layers, mut descriptors) = (Vec::new(), Vec::new());
        let mut reported = Vec::new();
        for (name, inputs, made) in records {
            let inputs: Vec<Value> = inputs.iter().map(|input| json!([{"link": input}])).collect();
            let mut record = json!({"digest": name, "inputs": inputs});
            if let Some(made) = made {
                record["layers"] = json!([{"layer": layers.len(), "createdAt": made}]);
                let blob = Digest::of(format!("{name} {made}").as_bytes());
                layers.push(json!({"blob": blob, "parent": -1}));
                let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
                descriptors.push(json!({"mediaType": media_type, "digest": blob, "size": 9}));
            }
            reported.push(record);
        }
        let config = json!({"layers": layers, "records": reported}).to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": buildkit_cache::MANIFEST_MEDIA_TYPE,
            "config": {"mediaType": buildkit_cache::CONFIG_MEDIA_TYPE, "digest": Digest::of(config.as_bytes()),
                "size": config.len()},
            "layers": descriptors,
        });
        let Kind::Cache(manifest) = classify(manifest.to_string().as_bytes()) else { panic!("no cache") };
        Cache::parse(&manifest, config.as_bytes()).unwrap()
    }

    fn reported(export: &Cache, line: Option<&Cache>, is_refresh: bool) -> Vec<(String, MissCause)> {
        let first = first_misses(export, STARTED.parse().unwrap(), line, is_refresh);
        first.into_iter().map(|miss| (miss.record, miss.cause)).collect()
    }

    #[test]
    fn of_a_chain_the_first_that_ran_is_named_with_what_the_line_says_of_it() {
        let line = cache(&[
            ("image", &[], Some(BEFORE)),
            ("files 1", &[], None),
            ("copy", &[0, 1], Some(BEFORE)),
            ("install", &[2], Some(BEFORE)),
            ("tools", &[0], Some(BEFORE)),
        ]);
        let export = cache(&[
            ("image", &[], Some(BEFORE)),
            ("files 2", &[], None),
            ("copy", &[0, 1], Some(AFTER)),
            ("install", &[2], Some(AFTER)),
            ("tools", &[0], Some(AFTER)),
            ("new", &[0], Some(AFTER)),
            ("reused", &[0], Some(BEFORE)),
        ]);
        let expected =
            [("copy", MissCause::OtherInputs), ("new", MissCause::NotInLine), ("tools", MissCause::InLine)];
        assert_eq!(reported(&export, Some(&line), false), expected.map(|(name, it)| (name.to_owned(), it)));
        let all = |cause| ["copy", "new", "tools"].map(|name| (name.to_owned(), cause));
        assert_eq!(reported(&export, Some(&line), true), all(MissCause::Refresh));
        assert_eq!(reported(&export, None, false), all(MissCause::NoLine));
        assert_eq!(reported(&line, Some(&export), false), [], "nothing ran");
    }

    #[test]
    fn what_the_line_got_while_the_build_ran_was_not_there_for_it() {
        let export = cache(&[("image", &[], Some(BEFORE)), ("run", &[0], Some(AFTER))]);
        assert_eq!(reported(&export, Some(&export), false), [("run".to_owned(), MissCause::TooLate)]);
    }

    #[test]
    fn a_notice_stays_small_whatever_a_build_exports() {
        let names: Vec<String> = (0..50).map(|number| format!("{number}{}", "x".repeat(5000))).collect();
        let records: Vec<_> = names.iter().map(|name| (name.as_str(), &[][..], Some(AFTER))).collect();
        let first = reported(&cache(&records), None, false);
        assert_eq!(first.len(), MOST);
        assert!(first.iter().all(|(name, _)| name.len() == LONGEST));
    }
}
