//! A small day with the same rules as the large one of `cargo bench -p scenarios --bench day`.

use scenarios::day::{Scale, live};

async fn a_day(seed: u64, meets: bool) {
    let scale =
        Scale { seed, projects: 20, pushes: 1000, merges: 100, starts_at_once: 5, warms_at_once: 2, meets };
    let report = live(&scale).await;
    let broken: Vec<&String> =
        report.bounds.iter().filter(|(holds, _)| !holds).map(|(_, what)| what).collect();
    assert!(broken.is_empty(), "{scale:?}: {broken:#?}\n{}", report.figures.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn every_push_of_a_day_gets_one_build() {
    for seed in 0..8 {
        a_day(seed, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn deliveries_that_meet_start_one_build() {
    for seed in 0..8 {
        a_day(seed, true).await;
    }
}
