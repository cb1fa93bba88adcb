//! A source that is four versions: two stages, each with dependencies and something made with them, and a last one that
//! needs both.

use std::collections::BTreeSet;

use stoker_core::names::Digest;

use crate::engine::Built;

/// Of the dependencies and the sources of stage `a`, then of stage `b`.
pub(crate) type Versions = [u32; 4];

/// The steps: one for each version, then the two of the last stage. Each names the token, so no cache but those of one
/// test can serve it.
fn steps(token: &str, [deps_a, source_a, deps_b, source_b]: Versions) -> [String; 6] {
    [
        format!("RUN echo {token} deps a {deps_a} > /deps"),
        format!("RUN cat /deps > /a && echo {token} compile a {source_a} >> /a"),
        format!("RUN echo {token} deps b {deps_b} > /deps"),
        format!("RUN cat /deps > /b && echo {token} compile b {source_b} >> /b"),
        format!("COPY --from=a /a /{token}/a"),
        format!("COPY --from=b /b /{token}/b"),
    ]
}

pub(crate) fn dockerfile(base: &str, token: &str, versions: Versions) -> String {
    let [deps_a, make_a, deps_b, make_b, copy_a, copy_b] = steps(token, versions);
    format!(
        "FROM {base} AS a\n{deps_a}\n{make_a}\nFROM {base} AS b\n{deps_b}\n{make_b}\n\
         FROM scratch\n{copy_a}\n{copy_b}\n"
    )
}

/// The steps that have to run once one of the versions, by its place, is one that no build had.
pub(crate) fn after_change(token: &str, versions: Versions, place: usize) -> BTreeSet<String> {
    let places: &[usize] = match place {
        0 => &[0, 1, 4, 5],
        1 => &[1, 4, 5],
        2 => &[2, 3, 5],
        _ => &[3, 5],
    };
    let steps = steps(token, versions);
    places.iter().map(|&place| steps[place].clone()).collect()
}

/// The last step, which rests on all others.
pub(crate) fn last_step(token: &str, versions: Versions) -> String {
    let [.., last] = steps(token, versions);
    last
}

/// Whether a build made what these versions say.
pub(crate) fn are_in(token: &str, [deps_a, source_a, deps_b, source_b]: Versions, built: &Built) -> bool {
    let is_there = |stage: &str, deps: u32, source: u32| {
        let content = format!("{token} deps {stage} {deps}\n{token} compile {stage} {source}\n");
        let made = built.files.get(&format!("{token}/{stage}"));
        made.is_some_and(|made| made.starts_with(&Digest::of(content.as_bytes()).to_string()))
    };
    is_there("a", deps_a, source_a) && is_there("b", deps_b, source_b)
}
