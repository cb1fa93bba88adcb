//! Marks: how they are joined, written, and taken from a cache.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::raw::Config;
use super::{any_export, blob, error, layer, moment, parse, read, record, to_text, written};
use crate::names::Commit;
use crate::{Cache, InvalidCache, Mark};

fn mark(commit: &str, time: u8) -> Mark {
    Mark::new(Commit::new(commit.repeat(40)).unwrap(), moment(time))
}

/// The mark of each record, and of each result of it: time and commit; none where it is own.
type Marks = BTreeMap<(String, String), Option<(i64, String)>>;

fn join(marks: &mut Marks, key: (String, String), mark: Option<(i64, String)>) {
    let known = marks.entry(key).or_insert_with(|| mark.clone());
    *known = if known.is_none() || mark.is_none() { None } else { known.clone().max(mark) };
}

/// A second, naive reading.
fn marks(config: &Config) -> Marks {
    let mut marks = Marks::new();
    for (index, entry) in config.records.iter().enumerate() {
        let mark = |own: Option<usize>| {
            let place = own.or(entry.probation)?;
            Some((config.probation[place].at, config.probation[place].commit.clone()))
        };
        let name = record(config, index);
        join(&mut marks, (name.clone(), String::new()), mark(None));
        for result in &entry.results {
            join(&mut marks, (name.clone(), layer(config, result.layer)), mark(result.probation));
        }
        for chain in &entry.chains {
            let layers: Vec<_> = chain.layers.iter().map(|&index| layer(config, index)).collect();
            join(&mut marks, (name.clone(), format!("chain {layers:?}")), mark(chain.probation));
        }
    }
    marks
}

proptest! {
    #[test]
    fn what_one_has_as_its_own_is_own_and_of_two_marks_the_later_counts(a in any_export(), b in any_export()) {
        let mut expected = marks(&a.config);
        for (key, mark) in marks(&b.config) {
            join(&mut expected, key, mark);
        }
        let merged = Cache::merge([&a.cache(), &b.cache()]);
        prop_assert_eq!(marks(&read(&written(&merged)).0), expected);
    }

    #[test]
    fn a_part_holds_what_has_such_a_mark_and_what_that_needs(export in any_export(), which in 0..4_usize) {
        let cache = export.cache();
        let all = marks(&read(&written(&cache)).0);
        let own = marks(&read(&written(&cache.own())).0);
        let stays = |mark: &Mark| mark.at().as_second() == moment(1).as_second() && which > 0;
        let part = cache.on_probation_for(stays);
        let kept = marks(&read(&written(&part)).0);
        let is_kept = |mark: &Option<(i64, String)>| {
            which > 0 && mark.as_ref().is_some_and(|(at, _)| *at == moment(1).as_second())
        };
        for ((name, result), mark) in &all {
            let key = (name.clone(), result.clone());
            // Results go with their marks. A record stays as long as something needs it, and then as what that is.
            if result.is_empty() {
                prop_assert!(mark.is_some() || own.contains_key(&key));
                prop_assert!(!is_kept(mark) || kept.get(&key) == Some(mark));
            } else {
                prop_assert_eq!(own.contains_key(&key), mark.is_none());
                prop_assert_eq!(kept.contains_key(&key), is_kept(mark));
            }
        }
        prop_assert!(own.values().all(Option::is_none));
        prop_assert!(kept.values().all(|mark| mark.is_none() || is_kept(mark)));
        prop_assert!(cache.contains(&part) && cache.contains(&cache.own()));
        prop_assert!(part.probations().keys().all(stays));
    }

    #[test]
    fn a_mark_can_be_put_on_all_and_taken_off(export in any_export()) {
        let cache = export.cache();
        let bare = cache.clone().unmarked();
        prop_assert_eq!(&bare.own(), &bare);
        prop_assert!(bare.contains(&cache) && cache.contains(&bare) && bare.probations().is_empty());
        let on_probation = cache.on_probation(&mark("d", 7));
        let count = on_probation.records();
        let expected: BTreeMap<Mark, usize> = (count > 0).then(|| (mark("d", 7), count)).into_iter().collect();
        prop_assert_eq!(on_probation.probations(), expected);
        prop_assert_eq!(on_probation.own().records(), 0);
        prop_assert_eq!(on_probation.unmarked(), bare);
    }
}

#[test]
fn a_merge_is_named_once() {
    let base = json!({"blob": blob(0), "parent": -1});
    let at = moment(0).as_second();
    let commits = ["b", "a"].map(|commit| json!({"commit": commit.repeat(40), "at": at}));
    let result = json!({"layer": 0, "createdAt": moment(0)});
    let cache = parse(&json!({
        "layers": [base],
        "records": [
            {"digest": "own"},
            {"digest": "own too", "layers": [{"layer": 0, "createdAt": moment(0), "probation": 1}],
                "inputs": [[{"link": 0}]]},
            {"digest": "z", "layers": [result], "probation": 0, "inputs": [[{"link": 1}]]},
        ],
        "probation": [commits[0], commits[1], {"commit": "c".repeat(40), "at": at}],
    }));
    let text = to_text(&cache.unwrap());
    let expected = format!(
        r#"{{"layers":[{{"blob":"{}","parent":-1}}],"records":[{{"digest":"own"}},{{"layers":[{{"layer":0,"createdAt":"{}","probation":0}}],"digest":"own too","inputs":[[{{"link":0}}]]}},{{"layers":[{{"layer":0,"createdAt":"{}"}}],"digest":"z","inputs":[[{{"link":1}}]],"probation":1}}],"probation":[{{"commit":"{}","at":{at}}},{{"commit":"{}","at":{at}}}]}}"#,
        blob(0),
        moment(0),
        moment(0),
        "a".repeat(40),
        "b".repeat(40),
    );
    assert_eq!(text, expected);
}

#[test]
fn a_mark_that_is_none_is_refused() {
    for mark in [-1, 1] {
        let named = json!([{"commit": "a".repeat(40), "at": 7}]);
        let of_record = json!({"records": [{"probation": mark}], "probation": named});
        assert!(matches!(error(&of_record), InvalidCache::NoSuchMark { record: 0, mark: m } if m == mark));
        let layers = json!([{"blob": blob(0), "parent": -1}]);
        let results = json!([{"layers": [{"createdAt": moment(0), "probation": mark}]}]);
        let of_result = json!({"layers": layers, "records": results, "probation": named});
        assert!(matches!(error(&of_result), InvalidCache::NoSuchMark { record: 0, .. }));
    }
    for wrong in
        [json!([{"commit": "x", "at": 7}]), json!([{"commit": "a".repeat(40)}]), json!([{"at": 7}]), json!(7)]
    {
        assert!(matches!(error(&json!({"probation": wrong})), InvalidCache::Unreadable(_)), "{wrong}");
    }
}

/// One branch built upon what another had brought, whose probation ends before its own.
#[test]
fn what_a_later_merge_needs_stays_without_its_result() {
    let early = parse(&json!({
        "layers": [{"blob": blob(0), "parent": -1}],
        "records": [{"digest": "a", "layers": [{"createdAt": moment(0)}]}],
    }));
    let late = parse(&json!({
        "layers": [{"blob": blob(0), "parent": -1}],
        "records": [{"digest": "a"}, {"digest": "b", "inputs": [[{"link": 0}]], "layers": [{"createdAt": moment(1)}]}],
    }));
    let (early_mark, late_mark) = (mark("a", 1), mark("b", 2));
    let (early, late) = (early.unwrap().on_probation(&early_mark), late.unwrap().on_probation(&late_mark));
    let line = Cache::merge([&early, &late]);
    assert_eq!(line.on_probation_for(|mark| *mark == late_mark), late);
    assert_eq!(line.on_probation_for(|mark| *mark == early_mark), early);
    assert_eq!(line.on_probation_for(|_| true), line);
}
