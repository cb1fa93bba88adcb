//! What every function's `main` does before its handler: logs, settings, AWS, policy. And the boundary at which an
//! error is logged once and told to Lambda or SQS.

use std::error::Error as StdError;
use std::fs::OpenOptions;
use std::path::PathBuf;

use lambda_runtime::Diagnostic;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::{BoxMakeWriter, Tee};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

pub mod metrics;
pub mod sqs;

use stoker_aws::{Aws, AwsSettings};

use stoker_core::error::{CallError, Disposition, chain};
use stoker_core::policy::Policy;

/// Where the policy's layer is unpacked.
const POLICY: &str = "/opt/stoker.yaml";

/// Starts JSON logs. `STOKER_LOG` sets the level, as `debug` or `info,hyper=debug`; `STOKER_LOG_DIR` adds a
/// file for each function, for places that keep no standard output.
pub fn init_logs(function: &str) {
    let wanted = std::env::var("STOKER_LOG").ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let filter = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    // The runtime tells of a failed invocation too; it has been told here, with its causes.
    let filter = filter.with_target("lambda_runtime", LevelFilter::OFF);
    let file = std::env::var_os("STOKER_LOG_DIR").and_then(|dir| {
        let path = PathBuf::from(dir).join(format!("{function}.log"));
        OpenOptions::new().create(true).append(true).open(path).ok()
    });
    let writer = match file {
        Some(file) => BoxMakeWriter::new(Tee::new(std::io::stdout, file)),
        None => BoxMakeWriter::new(std::io::stdout),
    };
    // A second call, as tests make it, changes nothing.
    let _ = tracing_subscriber::registry().with(lines(writer).with_filter(filter)).try_init();
}

/// Log lines as `docs/metrics.md` describes them: JSON, with the event that a line is about as its `span`.
pub fn lines<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_span_list(false)
        .with_target(false)
        .with_writer(writer)
}

/// The adapters to AWS, set up from the function's environment.
#[must_use]
pub fn aws(function: &'static str) -> Aws {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let settings = AwsSettings {
        registry: registry(),
        bus: variable("STOKER_BUS"),
        webhook_secret: variable("STOKER_WEBHOOK_SECRET"),
        starters: Some(variable("STOKER_STARTERS").split_whitespace().map(str::to_owned).collect()),
        // Whether to make them, and the days.
        safety_net_days: variable("STOKER_REPOSITORIES")
            .strip_prefix("true ")
            .and_then(|days| days.parse().ok()),
    };
    Aws::new(function, settings)
}

/// Host of the registry that serves the cache repositories.
#[must_use]
pub fn registry() -> String {
    std::env::var("STOKER_REGISTRY").unwrap_or_default()
}

/// The policy; a function without a valid one does not start, and says every mistake.
pub fn policy() -> Result<Policy, lambda_runtime::Error> {
    let path = std::env::var_os("STOKER_POLICY").map_or_else(|| POLICY.into(), PathBuf::from);
    let policy = Policy::load(&path).inspect_err(|error| {
        tracing::error!(error = chain(error), "the policy is not valid; the function does not start");
    })?;
    metrics::set_projects(&policy);
    Ok(policy)
}

/// An error at the boundary of a function: logged once, when it comes to be.
#[derive(Debug)]
pub struct Failed {
    disposition: Disposition,
    message: String,
}

impl Failed {
    /// Logs an error.
    #[must_use]
    pub fn new(disposition: Disposition, error: &(dyn StdError + 'static)) -> Self {
        log(disposition, error);
        Self { disposition, message: chain(error) }
    }

    /// What can never be handled ends here; anything else fails the invocation, so that Lambda tries again
    /// and at last puts the event into the dead-letter queue with this cause.
    pub fn or_dropped(self) -> Result<(), Self> {
        if self.disposition == Disposition::Drop { Ok(()) } else { Err(self) }
    }
}

impl From<CallError> for Failed {
    fn from(error: CallError) -> Self {
        Self::new(error.disposition(), &error)
    }
}

impl From<stoker_core::promote::Error> for Failed {
    fn from(error: stoker_core::promote::Error) -> Self {
        Self::new(error.disposition(), &error)
    }
}

impl From<Failed> for Diagnostic {
    fn from(failed: Failed) -> Self {
        let error_type = match failed.disposition {
            Disposition::Retry => "Stoker.Retry",
            Disposition::Drop => "Stoker.Drop",
            Disposition::Alarm => "Stoker.Alarm",
        };
        Self { error_type: error_type.to_owned(), error_message: failed.message }
    }
}

/// Logs an error, once.
pub fn log(disposition: Disposition, error: &(dyn StdError + 'static)) {
    let error = chain(error);
    match disposition {
        Disposition::Drop => tracing::error!(error, "dropped"),
        Disposition::Retry => tracing::warn!(error, "to be tried again"),
        Disposition::Alarm => tracing::error!(error, "somebody has to look"),
    }
}
