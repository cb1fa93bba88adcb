//! `stoker cache verify`: whether BuildKit will import a cache, and find every blob.

use buildkit_cache::{Descriptor, IMPORT_LIMIT, SAFE_SIZE};
use futures_util::StreamExt as _;
use serde::Serialize;

use stoker_aws::registry::Presence;

use crate::outcome::CommandOutcome;
use crate::problem::Problem;
use crate::reference::Reference;
use crate::remote::{self, Found, Held, Remotes};
use crate::text::{count, percent, size};

/// Missing blobs that are named; the others are counted.
const NAMED: usize = 5;
/// Caches that are checked at a time.
const AT_A_TIME: usize = 4;

/// Checks that BuildKit will import caches, and that no blob of theirs is missing
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker cache verify registry.example/app/cache:main
  stoker cache verify registry.example/app/cache:{main,arm64} || echo 'some build will be cold, or fail'

BuildKit builds cold from a cache it cannot import, and says so only in its log. Where a blob is missing it is worse: \
the build fails (\"could not fetch content descriptor\"). Blobs are asked for, not read.")]
pub(crate) struct Args {
    /// The caches
    #[arg(required = true, value_name = "REF")]
    references: Vec<Reference>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: &Args) -> Result<CommandOutcome, Problem> {
    let remotes = Remotes::default();
    let checks = args.references.iter().map(|reference| check(&remotes, reference));
    let checks: Vec<_> = futures_util::stream::iter(checks).buffered(AT_A_TIME).collect().await;
    let checks = checks.into_iter().collect::<Result<Vec<Verdict>, Problem>>()?;
    let success = checks.iter().all(Verdict::is_sound);
    let text = if args.json { super::to_json(&checks) } else { checks.iter().map(render).collect() };
    Ok(CommandOutcome { text, success })
}

/// What is to be said of a cache.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verdict {
    reference: String,
    sound: bool,
    /// What is there, in a few words.
    holds: String,
    findings: Vec<Finding>,
}

/// Something that is wrong, or soon will be.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    is_fatal: bool,
    what: String,
    next: String,
}

impl Verdict {
    fn new(reference: &Reference, holds: String, findings: Vec<Finding>) -> Self {
        let sound = findings.iter().all(|finding| !finding.is_fatal);
        Self { reference: reference.to_string(), sound, holds, findings }
    }

    fn is_sound(&self) -> bool {
        self.sound
    }

    /// Why no build should be given the cache, if it should not.
    pub(crate) fn against(&self) -> Option<String> {
        let fatal = self.findings.iter().filter(|finding| finding.is_fatal);
        let fatal: Vec<&str> = fatal.map(|finding| finding.what.as_str()).collect();
        (!fatal.is_empty()).then(|| fatal.join("; "))
    }
}

async fn check(remotes: &Remotes, reference: &Reference) -> Result<Verdict, Problem> {
    match remote::find(remotes, reference).await? {
        Some(found) => check_found(remotes, found).await,
        None => Ok(fatal(reference, &remote::nothing_at(reference))),
    }
}

fn fatal(reference: &Reference, problem: &Problem) -> Verdict {
    let finding =
        Finding { is_fatal: true, what: problem.text().to_owned(), next: problem.next().to_owned() };
    Verdict::new(reference, String::new(), vec![finding])
}

/// Checks what was found.
pub(crate) async fn check_found(remotes: &Remotes, found: Found) -> Result<Verdict, Problem> {
    let reference = &found.reference.clone();
    let held = match remote::open(remotes, found).await {
        Ok(held) => held,
        Err(problem) if problem.is_no() => return Ok(fatal(reference, &problem)),
        Err(problem) => return Err(problem),
    };
    let blobs: Vec<&Descriptor> = held.cache.blobs().collect();
    let present = remote::present(remotes, reference, &blobs).await?;
    Ok(judge(&held, &blobs, &present))
}

fn judge(held: &Held, blobs: &[&Descriptor], present: &[Presence]) -> Verdict {
    let steps = held.cache.steps();
    let steps_on = |blob: &Descriptor| steps.values().filter(|step| step.blob == blob.digest).count();
    let mut findings = Vec::new();
    let mut more = 0;
    for (blob, &found) in blobs.iter().zip(present) {
        let what = match found {
            Presence::Missing => format!("blob {} ({}) is missing", blob.digest, size(blob.size)),
            Presence::There { length: Some(length) } if length != blob.size => {
                let (is, says) = (size(length), size(blob.size));
                format!("blob {} has {is}, and the cache says {says}", blob.digest)
            }
            Presence::There { .. } => continue,
        };
        if findings.len() == NAMED {
            more += 1;
            continue;
        }
        let needed = match steps_on(blob) {
            0 => "a base image's layer below some steps".to_owned(),
            steps => format!("the result of {}", count(steps, "step")),
        };
        findings.push(Finding {
            is_fatal: true,
            what: format!("{what}: {needed}; a build that wants it fails"),
            next: format!("delete {} now, and export it anew from a cold build", held.reference),
        });
    }
    if let Some(last) = findings.last_mut().filter(|_| more > 0) {
        last.what += &format!("; and {} more like it", count(more, "blob"));
    }
    for (name, bytes) in [("config", held.config_size), ("manifest", held.manifest_size)] {
        if bytes > SAFE_SIZE as u64 {
            findings.push(Finding {
                is_fatal: bytes > IMPORT_LIMIT as u64,
                what: format!(
                    "its {name} is at {} of what BuildKit imports",
                    percent(bytes, IMPORT_LIMIT as u64)
                ),
                next: format!("stoker cache prune {} --budget SIZE", held.reference),
            });
        }
    }
    if held.loses_links {
        findings.push(Finding {
            is_fatal: false,
            what:
                "it has several leaves, of which BuildKit 0.25 and newer lose some at random: steps run again"
                    .to_owned(),
            next: format!("stoker cache merge {0} --into {0}", held.reference),
        });
    }
    let largest = held.config_size.max(held.manifest_size);
    let holds = format!(
        "{}, {} in {}, at {} of the import limit",
        count(steps.len(), "step"),
        size(held.cache.blob_bytes()),
        count(blobs.len(), "blob"),
        percent(largest, IMPORT_LIMIT as u64),
    );
    Verdict::new(&held.reference, holds, findings)
}

fn render(verdict: &Verdict) -> String {
    let mut text = if verdict.sound {
        format!("sound      {}: {}\n", verdict.reference, verdict.holds)
    } else {
        format!("NOT SOUND  {}\n", verdict.reference)
    };
    let mut last_next = "";
    for finding in &verdict.findings {
        let kind = if finding.is_fatal { "error" } else { "warning" };
        if finding.next != last_next && !last_next.is_empty() {
            text += &format!("     next: {last_next}\n");
        }
        text += &format!("  {kind}: {}\n", finding.what);
        last_next = &finding.next;
    }
    if !last_next.is_empty() {
        text += &format!("     next: {last_next}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_say_what_to_do_next_once() {
        let finding =
            |is_fatal, what: &str| Finding { is_fatal, what: what.to_owned(), next: "do it".to_owned() };
        let reference = "registry.example/app:main".parse().unwrap();
        let bad = Verdict::new(&reference, String::new(), vec![finding(true, "one"), finding(true, "two")]);
        assert_eq!(
            render(&bad),
            "NOT SOUND  registry.example/app:main\n  error: one\n  error: two\n     next: do it\n"
        );
        let good = Verdict::new(&reference, "3 steps".to_owned(), vec![finding(false, "near")]);
        assert_eq!(
            render(&good),
            "sound      registry.example/app:main: 3 steps\n  warning: near\n     next: do it\n"
        );
    }
}
