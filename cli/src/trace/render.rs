//! What came of a commit, as people read it.

use super::report::{Cache, Silent, Trace};
use crate::text::{Align, count, plain, plain_whole, table};

pub(super) fn text(trace: &Trace, days: usize) -> String {
    let mut text = format!("commit {}\n", plain(&trace.commit));
    if trace.steps.is_empty() && trace.caches.is_empty() {
        text +=
            &format!("  nobody knows it: no build and no log of the last {}, no cache\n", count(days, "day"));
    }
    let rows: Vec<Vec<String>> = trace
        .steps
        .iter()
        .map(|step| {
            let project = step.project.as_deref().map(plain).unwrap_or_default();
            vec![format!("{:.0}", step.at), plain(&step.source), project, plain_whole(&step.what)]
        })
        .collect();
    text += &table("  ", &[Align::Left; 4], &rows);
    if !trace.caches.is_empty() {
        text += "caches\n";
        for cache in &trace.caches {
            text += &format!("  {}\n", of_cache(cache));
        }
    }
    for (build, reported) in &trace.misses {
        text += &format!("build {}\n{}", plain(build), crate::why::text(reported));
    }
    for Silent { source, why } in &trace.missing {
        text += &format!("not all is known, {source}: {}\n", plain_whole(why));
    }
    text
}

fn of_cache(cache: &Cache) -> String {
    let Cache { repository, digest, tags, holds, .. } = cache;
    let tags: Vec<String> = tags.iter().map(|tag| plain(tag)).collect();
    let holds =
        if *holds == "built" { "its build is the newest in it" } else { "the last that was merged into it" };
    format!("{repository}@{digest}  {}  {holds}", tags.join(" "))
}
