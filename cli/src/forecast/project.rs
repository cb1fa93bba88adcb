//! What CodeBuild tells of a project: how often it builds, and the logs of its newest builds.

use aws_config::SdkConfig;
use stoker_core::error::chain;
use stoker_core::names::ProjectName;

use crate::problem::Problem;
use crate::retain::{call_words, config};
use crate::text::plain;

/// How many logs are read at most.
const LOGS: usize = 5;
/// Pages of a log, of a megabyte each.
const PAGES: usize = 32;
const SECONDS_OF_A_MONTH: f64 = 30.44 * 86_400.0;

/// A project's builds.
pub(super) struct Built {
    /// The logs of those that succeeded, the newest first.
    pub(super) logs: Vec<String>,
    pub(super) builds_per_month: Option<f64>,
}

/// Asks for a project's newest builds, a hundred at most, and for logs of theirs.
pub(super) async fn read(project: &ProjectName) -> Result<Built, Problem> {
    let config = config(None).await?;
    let codebuild = aws_sdk_codebuild::Client::new(&config);
    let listed = codebuild.list_builds_for_project().project_name(project.as_str()).send().await;
    let ids =
        listed.map_err(|error| problem("codebuild:ListBuildsForProject", &error))?.ids.unwrap_or_default();
    if ids.is_empty() {
        return Err(Problem::usage(
            format!("{} has no build", plain(project.as_str())),
            "name another with --project, or give a log with --log",
        ));
    }
    let got = codebuild.batch_get_builds().set_ids(Some(ids.into_iter().take(100).collect())).send().await;
    let mut builds =
        got.map_err(|error| problem("codebuild:BatchGetBuilds", &error))?.builds.unwrap_or_default();
    let started =
        |build: &aws_sdk_codebuild::types::Build| build.start_time.map_or(0.0, |time| time.as_secs_f64());
    builds.sort_by(|a, b| started(b).total_cmp(&started(a)));
    let span = builds.first().map_or(0.0, &started) - builds.last().map_or(0.0, &started);
    let between = f64::from(u32::try_from(builds.len().saturating_sub(1)).unwrap_or_default());
    let builds_per_month = (span > 0.0).then(|| between / span * SECONDS_OF_A_MONTH);
    let mut logs = Vec::new();
    for build in builds {
        let is_good = build.build_status == Some(aws_sdk_codebuild::types::StatusType::Succeeded);
        let place =
            build.logs.filter(|_| is_good).and_then(|logs| Some((logs.group_name?, logs.stream_name?)));
        if let Some((group, stream)) = place {
            logs.push(log(&config, &group, &stream).await?);
        }
        if logs.len() == LOGS {
            break;
        }
    }
    Ok(Built { logs, builds_per_month })
}

async fn log(config: &SdkConfig, group: &str, stream: &str) -> Result<String, Problem> {
    let client = aws_sdk_cloudwatchlogs::Client::new(config);
    let (mut text, mut token) = (String::new(), None);
    for _ in 0..PAGES {
        let page = client
            .get_log_events()
            .log_group_name(group)
            .log_stream_name(stream)
            .start_from_head(true)
            .set_next_token(token.clone())
            .send()
            .await
            .map_err(|error| problem("logs:GetLogEvents", &error))?;
        for event in page.events.unwrap_or_default() {
            text += event.message.as_deref().unwrap_or_default().trim_end();
            text.push('\n');
        }
        // The last page's token is the one that asked for it.
        if page.next_forward_token == token {
            break;
        }
        token = page.next_forward_token;
    }
    Ok(text)
}

fn problem(call: &str, error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::failed(
        format!("{call}: {}", plain(&call_words(&chain(error)))),
        "check `aws sts get-caller-identity`, AWS_REGION, and that this identity may do that",
    )
}
