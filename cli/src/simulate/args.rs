//! What `stoker simulate` is asked.

use std::path::PathBuf;

use jiff::Timestamp;

use super::lookup;
use super::sender::Sender;

/// Says what Stoker would do with an event under a policy, which key of the policy says so, and what each
/// build would be given
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stoker simulate --offline events/receive-webhook-push.json
  stoker simulate --forge github --event push --offline payload.json
  stoker simulate --forge gitlab --event 'Merge Request Hook' --offline < payload.json
  gh api repos/example/app/hooks/1/deliveries/2 --jq .request.payload |
    stoker simulate --forge github --event pull_request --offline
  stoker simulate --registry 123456789012.dkr.ecr.eu-central-1.amazonaws.com event.json
  stoker simulate --offline --policy new.yaml --json event.json | jq -r .summary
  echo '{\"source\":\"stoker\",\"detail-type\":\"NightlyWarm\",\"detail\":{\"slots\":4,\"every_minutes\":15}}' |
    stoker simulate --offline --at 2026-11-21T02:15:00Z

FILE is told by its shape: a request to the webhooks' Function URL, a batch of SQS, an event of EventBridge \
(Stoker's own, \
of CodeBuild, ECR or CodeCommit), or a question to `resolve-cache`. What a forge's list of deliveries shows is \
its payload \
alone: say with --forge and --event what its headers said. CodeCommit's payloads are events of EventBridge.

It decides as the functions do, by the same code, and starts, writes and deletes nothing. Signatures are not checked. \
What has been built before it does not know: a build that it names is not started if that commit of that line has one.

Exit code 0 says that there is an answer, also when that is \"nothing\".")]
pub(crate) struct Args {
    /// A file with the event, or `-` for standard input
    #[arg(default_value = "-")]
    pub(super) file: PathBuf,
    /// The policy
    #[arg(long, value_name = "PATH", default_value = "policy/stoker.yaml")]
    pub(super) policy: PathBuf,
    /// The forge that sent it, for a payload without headers: github, gitlab, bitbucket or codecommit
    #[arg(long, value_name = "FORGE")]
    pub(super) forge: Option<Sender>,
    /// What the forge called the event, for a payload without headers: `push`, `pull_request`, `Push Hook`,
    /// `repo:push`, ...
    #[arg(long, value_name = "NAME", requires = "forge")]
    pub(super) event: Option<String>,
    /// The registry that holds the caches, such as 123456789012.dkr.ecr.eu-central-1.amazonaws.com
    #[arg(long, value_name = "HOST", value_parser = lookup::registry_host)]
    pub(super) registry: Option<String>,
    /// Look nothing up in the registry
    #[arg(long)]
    pub(super) offline: bool,
    /// When the event comes, where it does not say so itself; now unless given
    #[arg(long, value_name = "TIME")]
    pub(super) at: Option<Timestamp>,
    /// Print JSON, for programs
    #[arg(long)]
    pub(super) json: bool,
}
