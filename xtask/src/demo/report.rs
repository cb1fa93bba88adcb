//! What the demo found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::stage::Builder;

/// A build, as the report tells of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Build {
    pub(crate) id: String,
    pub(crate) project: String,
    pub(crate) line: String,
    pub(crate) reason: String,
    pub(crate) reads: Vec<String>,
    /// What it was given of cache mounts.
    pub(crate) mounts: String,
    pub(crate) steps: u64,
    pub(crate) reused: u64,
    pub(crate) seconds: f64,
    pub(crate) status: String,
    /// Texts of the steps that ran.
    pub(crate) ran: Vec<String>,
}

impl Build {
    /// Reads one of the local `CodeBuild`'s.
    pub(crate) fn read(build: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let env = &build["env"];
        Self {
            id: text(&build["id"]),
            project: text(&build["project"]),
            line: text(&env["STOKER_LINE"]),
            reason: text(&env["STOKER_REASON"]),
            reads: text(&env["STOKER_READS"]).split_whitespace().map(str::to_owned).collect(),
            mounts: text(&env["STOKER_MOUNTS"]),
            steps: build["steps"].as_u64().unwrap_or_default(),
            reused: build["reused"].as_u64().unwrap_or_default(),
            seconds: build["build_seconds"].as_f64().unwrap_or_default(),
            status: text(&build["status"]),
            ran: build["ran"].as_array().into_iter().flatten().map(text).collect(),
        }
    }

    /// Whether it ran the step that installs the dependencies of a stage.
    pub(crate) fn ran_dependencies(&self, stage: &str) -> bool {
        self.ran.iter().any(|step| step.contains(&format!("dependencies.txt > dependencies-{stage}")))
    }
}

/// One of the promises that the demo checks.
#[derive(Debug, Clone)]
pub(crate) struct Check {
    pub(crate) ok: bool,
    pub(crate) what: String,
}

/// The figures of the demo.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) cold_seconds: f64,
    pub(crate) main_after_merge_seconds: f64,
    pub(crate) local_cache_seconds: f64,
    pub(crate) promotion_seconds: f64,
    pub(crate) promotion_requests: usize,
}

/// What the demo found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) checks: BTreeMap<&'static str, Check>,
    pub(crate) builds: Vec<Build>,
    pub(crate) figures: Figures,
}

impl Report {
    /// Notes a check, and says it.
    pub(crate) fn check(&mut self, name: &'static str, ok: bool, what: &str) {
        println!("  {} {name}. {what}", if ok { "ok  " } else { "FAIL" });
        let before = self.checks.get(name);
        let check = match before {
            Some(before) => Check { ok: before.ok && ok, what: format!("{}; {what}", before.what) },
            None => Check { ok, what: what.to_owned() },
        };
        self.checks.insert(name, check);
    }

    /// What did not hold.
    pub(crate) fn failed(&self) -> Vec<String> {
        let failed = self.checks.iter().filter(|(_, check)| !check.ok);
        failed.map(|(name, check)| format!("{name} ({})", check.what)).collect()
    }

    /// The report for programs.
    pub(crate) fn to_json(&self, builder: Builder) -> Value {
        let checks: BTreeMap<_, _> = self
            .checks
            .iter()
            .map(|(name, check)| (*name, json!({ "ok": check.ok, "what": check.what })))
            .collect();
        let builds: Vec<Value> = self
            .builds
            .iter()
            .map(|build| {
                json!({
                    "id": build.id, "project": build.project, "line": build.line, "reason": build.reason,
                    "reads": build.reads, "mounts": build.mounts, "steps": build.steps, "reused": build.reused,
                    "seconds": build.seconds, "status": build.status,
                })
            })
            .collect();
        let figures = &self.figures;
        json!({
            "builder": builder.name(),
            "checks": checks,
            "builds": builds,
            "figures": {
                "cold_seconds": figures.cold_seconds,
                "main_after_merge_seconds": figures.main_after_merge_seconds,
                "local_cache_seconds": figures.local_cache_seconds,
                "promotion_seconds": figures.promotion_seconds,
                "promotion_requests": figures.promotion_requests,
            },
        })
    }

    /// The report for people.
    pub(crate) fn print(&self, builder: Builder) {
        let builder_note = if builder == Builder::Simulated { " (simulated builder)" } else { "" };
        println!("\nWhat was built{builder_note}\n");
        println!(
            "  {:<4} {:<18} {:<24} {:<28} {:<16} {:>7}",
            "#", "line", "why it started", "cache from", "steps reused", "seconds"
        );
        for (i, build) in self.builds.iter().enumerate() {
            let line = if build.project == "app" {
                build.line.clone()
            } else {
                format!("{} ({})", build.line, build.project)
            };
            let reads = shown(&build.reads);
            let reused = format!("{} {:>2} of {}", bar(build.reused, build.steps), build.reused, build.steps);
            let status =
                if build.status == "SUCCEEDED" { String::new() } else { format!("  {}", build.status) };
            println!(
                "  {:<4} {line:<18} {:<24} {reads:<28} {reused:<16} {:>7.1}{status}",
                i + 1,
                shorten(&build.reason, 24),
                build.seconds
            );
        }
        let (steps, reused): (u64, u64) = self
            .builds
            .iter()
            .fold((0, 0), |(steps, reused), build| (steps + build.steps, reused + build.reused));
        let seconds: f64 = self.builds.iter().map(|build| build.seconds).sum();
        let cold = |build: &&Build| build.project == "app";
        let all_cold: f64 = self.builds.iter().filter(cold).map(|_| self.figures.cold_seconds).sum();
        println!(
            "\n  {} builds, {reused} of {steps} steps reused, {seconds:.0} s of build time (without caches \
             about {all_cold:.0} s)",
            self.builds.len()
        );
        let figures = &self.figures;
        println!("\n  a cold build                     {:>6.1} s", figures.cold_seconds);
        println!("  main's first build after merges  {:>6.1} s", figures.main_after_merge_seconds);
        println!("  the same with all layers local   {:>6.1} s", figures.local_cache_seconds);
        println!(
            "  from merge to hot main           {:>6.1} s, {} requests to AWS and the registry",
            figures.promotion_seconds, figures.promotion_requests
        );
        let ok = self.checks.values().filter(|check| check.ok).count();
        println!("\n  {ok} of {} checks hold", self.checks.len());
    }
}

/// What a build read, in few words: of several commits only how many.
fn shown(reads: &[String]) -> String {
    let (commits, lines): (Vec<&String>, Vec<&String>) =
        reads.iter().partition(|read| read.starts_with("commit/"));
    if commits.len() < 2 {
        return if reads.is_empty() { "nothing: cold".to_owned() } else { reads.join(" ") };
    }
    let lines: Vec<&str> = lines.into_iter().map(String::as_str).collect();
    format!("{} {} commits", lines.join(" "), commits.len())
}

/// Six characters, filled as far as the steps were reused.
fn bar(reused: u64, steps: u64) -> String {
    const WIDTH: u64 = 6;
    let full = (reused * WIDTH + steps / 2).checked_div(steps).unwrap_or_default();
    let mut bar = String::new();
    for i in 0..WIDTH {
        let _ = write!(bar, "{}", if i < full { '█' } else { '░' });
    }
    bar
}

fn shorten(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length - 1).chain(['…']).collect()
}
