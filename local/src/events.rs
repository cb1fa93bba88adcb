//! The events that AWS emits by itself, shaped as AWS shapes them.
//!
//! Consumers break on the difference between a documented sample and a real event, so this keeps to what real ones
//! look like: while a build runs there are no `phases` and no artifact, the log is only a deep link to nothing, counts
//! are floats, and times inside `detail` are not ISO.

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::build::{Build, Phase, PhaseRecord, whole};
use crate::project::{COMPUTE_TYPE, IMAGE};
use crate::{ACCOUNT, REGION};

pub(crate) fn envelope(
    kind: &str,
    source: &str,
    resources: &[String],
    detail: &Value,
    now: Timestamp,
) -> Value {
    json!({
        "version": "0",
        "id": Uuid::new_v4().to_string(),
        "detail-type": kind,
        "source": source,
        "account": ACCOUNT,
        "time": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "region": REGION,
        "resources": resources,
        "detail": detail,
    })
}

/// "CodeBuild Build State Change" for the state that the build is in.
#[must_use]
pub fn build_state_change(build: &Build, now: Timestamp) -> Value {
    let mut information = json!({
        "timeout-in-minutes": f64::from(build.timeout_in_minutes),
        "queued-timeout-in-minutes": 480.0,
        "build-complete": build.is_over(),
        "initiator": build.initiator,
        "build-start-time": console_time(build.queued_at),
        "build-number": f64::from(build.number),
        "source": {
            "type": build.project.source_type,
            "location": build.project.location.as_deref().unwrap_or(&build.project.source),
            "buildspec": build.project.buildspec,
            "report-build-status": false,
        },
        "cache": {"type": "NO_CACHE"},
        "environment": {
            "type": "LINUX_CONTAINER",
            "image": IMAGE,
            "compute-type": COMPUTE_TYPE,
            "privileged-mode": true,
            "image-pull-credentials-type": "CODEBUILD",
            "environment-variables": build.environment,
        },
        "project-file-system-locations": [],
    });
    if let Some(version) = &build.source_version {
        information["source-version"] = json!(version);
    }
    let console = format!("https://console.aws.amazon.com/cloudwatch/home?region={REGION}#logEvent:");
    if build.is_over() {
        let (group, stream) = (build.log_group(), &build.uuid);
        information["logs"] = json!({
            "group-name": group,
            "stream-name": stream,
            "deep-link": format!("{console}group={group};stream={stream}"),
        });
        information["artifact"] = json!({"location": ""});
        information["phases"] = build.phases.iter().map(phase).collect();
        let exported: Vec<Value> =
            build.exported.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        information["exported-environment-variables"] = json!(exported);
    } else {
        information["logs"] = json!({"deep-link": format!("{console}group=null;stream=null")});
    }
    let current = if build.is_over() { Phase::Completed } else { Phase::Submitted };
    let detail = json!({
        "build-status": build.status.as_str(),
        "project-name": build.project.name,
        "build-id": build.arn(),
        "additional-information": information,
        "current-phase": current.as_str(),
        "current-phase-context": "[]",
        "version": "1",
    });
    envelope("CodeBuild Build State Change", "aws.codebuild", &[build.arn()], &detail, now)
}

fn phase(record: &PhaseRecord) -> Value {
    let mut phase = json!({"phase-type": record.phase.as_str(), "start-time": console_time(record.start)});
    if let (Some(end), Some(status), Some(seconds)) = (record.end, record.status, record.seconds()) {
        phase["phase-context"] =
            json!([record.context.as_ref().map_or(": ".to_owned(), |c| format!(": {c}"))]);
        phase["end-time"] = json!(console_time(end));
        phase["duration-in-seconds"] = json!(whole(seconds));
        phase["phase-status"] = json!(status.as_str());
    }
    phase
}

/// Such as `Sep 1, 2017 4:12:29 PM`.
fn console_time(at: Timestamp) -> String {
    at.strftime("%b %-d, %Y %-I:%M:%S %p").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Status;
    use crate::ledger::tests::{at, ledger, request};

    #[test]
    fn a_running_build_tells_little() {
        let ledger = ledger();
        let build = ledger.start(&request("app"), at(0)).unwrap().build;
        let event = build_state_change(&build, at(1));
        assert_eq!(event["detail-type"], "CodeBuild Build State Change");
        assert_eq!(event["source"], "aws.codebuild");
        assert_eq!(event["account"], ACCOUNT);
        assert_eq!(event["resources"], json!([build.arn()]));
        let detail = &event["detail"];
        assert_eq!(detail["build-status"], "IN_PROGRESS");
        assert_eq!(detail["current-phase-context"], "[]");
        let information = &detail["additional-information"];
        assert!(information.get("phases").is_none());
        assert!(information.get("artifact").is_none());
        assert!(information.get("source-version").is_none());
        assert!(information["logs"].get("group-name").is_none());
        assert!(information["logs"]["deep-link"].as_str().unwrap().ends_with("group=null;stream=null"));
        assert_eq!(information["build-number"].to_string(), "1.0");
        assert_eq!(information["build-complete"], false);
    }

    #[test]
    fn a_build_that_is_over_tells_all() {
        let ledger = ledger();
        let mut build = ledger.start(&request("app"), at(0)).unwrap().build;
        build.enter(Phase::Build, at(2));
        build.leave(Status::Failed, Some("exit status 1".to_owned()), at(5));
        build.enter(Phase::Completed, at(6));
        build.status = Status::Failed;
        build.exported.push(("A".to_owned(), "1".to_owned()));
        let event = build_state_change(&build, at(7));
        let information = &event["detail"]["additional-information"];
        assert_eq!(event["detail"]["current-phase"], "COMPLETED");
        assert_eq!(information["exported-environment-variables"], json!([{"name": "A", "value": "1"}]));
        let phases = information["phases"].as_array().unwrap();
        assert_eq!(phases[phases.len() - 2]["duration-in-seconds"], 3);
        assert_eq!(phases[phases.len() - 2]["phase-status"], "FAILED");
        assert!(phases[phases.len() - 1].get("end-time").is_none());
    }

    #[test]
    fn times_look_like_the_consoles() {
        assert_eq!(console_time("2017-09-01T16:12:29Z".parse().unwrap()), "Sep 1, 2017 4:12:29 PM");
    }
}
