//! Tests of what is built and deployed, from outside.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::aws::queue_arn;
use crate::demo::Stage;
use crate::stack;

/// The largest that a function's program may be, in bytes.
const MAX_PROGRAM: u64 = 8_000_000;
/// Longer than an event takes through the bus and a queue.
const PATIENCE: Duration = Duration::from_secs(30);
/// A policy with three mistakes.
const BAD_POLICY: &str = "\
version: 1
defaults: { warm: { stale-after: soon } }
projects:
  - { name: app, repositry: github.com/example/app }
";

/// The functions' programs as they are released: small, and not to be started with a policy that has mistakes.
pub(crate) fn check_binaries() -> anyhow::Result<()> {
    for (name, program) in stack::programs(&stack::release_dir())? {
        let size = fs::metadata(&program)?.len();
        println!("   {name:<20} {} kB", size / 1000);
        ensure!(size <= MAX_PROGRAM, "{name} has {size} bytes, more than {MAX_PROGRAM}");
        check_program(&name, &program, &[])?;
    }
    Ok(())
}

/// A function's program does not start with a policy that has mistakes, and names them.
pub(crate) fn check_program(name: &str, file: &Path, emulator: &[OsString]) -> anyhow::Result<()> {
    let policy = crate::paths::home().join("logs/bad-policy.yaml");
    fs::write(&policy, BAD_POLICY)?;
    let output = program(file, emulator)
        .env("STOKER_POLICY", &policy)
        .env("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")
        .env("AWS_REGION", "us-east-1")
        .output()
        .with_context(|| format!("cannot run {}", file.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "{name} starts with a policy that has mistakes");
    for place in ["bad-policy.yaml:2:", "bad-policy.yaml:4:", "stale-after", "repositry"] {
        ensure!(said.contains(place), "{name} does not name the mistake at {place}: {said}");
    }
    Ok(())
}

/// A program, run by the emulator where there is one.
pub(crate) fn program(file: &Path, emulator: &[OsString]) -> Command {
    let Some((emulator, arguments)) = emulator.split_first() else { return Command::new(file) };
    let mut command = Command::new(emulator);
    command.args(arguments).arg(file);
    command
}

/// The deployed stack, after the scenario: answers what did not hold.
pub(crate) fn check(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let mut failed = Vec::new();
    let mut note = |what: &str, ok: bool| {
        println!("  {} {what}", if ok { "ok  " } else { "FAIL" });
        if !ok {
            failed.push(what.to_owned());
        }
    };
    let aws = stage.setup.aws();
    let builds =
        || Ok::<_, anyhow::Error>(stage.local("GET", "builds", None)?.as_array().map_or(0, Vec::len));
    let before = builds()?;

    let url = stage.output("WebhookUrl")?;
    let forge = stage.forge()?;
    let signed = |body: &str| forge.sign(body);
    let large = " ".repeat(4 * 1024 * 1024 + 1);
    let wrong = || Some("sha256=00".to_owned());
    for (what, status, event, signature, body) in [
        ("an unsigned webhook is refused with 401", 401, Some("push"), None, "{}"),
        ("a wrongly signed webhook is refused with 401", 401, Some("push"), wrong(), "{}"),
        ("an oversized webhook is refused with 413", 413, Some("push"), wrong(), large.as_str()),
        ("a webhook that is no JSON is refused with 400", 400, Some("push"), Some(signed("hello")), "hello"),
        ("a webhook of no known forge is refused with 400", 400, None, Some(signed("{}")), "{}"),
        ("an unknown webhook is answered with 200", 200, Some("star"), Some(signed("{}")), "{}"),
    ] {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(event.map(|event| ("x-github-event", event)));
        headers.extend(signature.as_deref().map(|signature| ("x-hub-signature-256", signature)));
        let answer = aws.post_to_function(url, &headers, body.as_bytes())?;
        note(&format!("{what} ({})", answer.status), answer.status == status);
    }

    let resolve = stage.output("ResolveCacheFunction")?;
    let answer = aws.invoke(resolve, &json!({ "project": "app" }))?;
    let flags = answer["environment"]["STOKER_CACHE_FLAGS"].as_str().unwrap_or_default();
    note("resolve-cache gives main", flags.starts_with("--cache-from type=registry,ref="));
    let error =
        aws.invoke(resolve, &json!({ "project": "other" })).map_or_else(|e| e.to_string(), |a| a.to_string());
    note("resolve-cache says what to do about an unknown project", error.contains("policy/stoker.yaml"));

    for (forge, arrived) in other_forges(stage, forge.secret())? {
        note(&format!("a push to {forge} arrives as an event"), arrived);
    }
    settle(stage)?;

    note(
        "attack: a build role that writes the trusted repository, or another's export",
        builds_are_kept_out(stage)?,
    );

    for queue in ["DeadLettersUrl", "PromotionDeadLettersUrl"] {
        let input = json!({ "QueueUrl": stage.output(queue)?, "AttributeNames": ["All"] });
        let answer = aws.call("sqs", "AmazonSQS.GetQueueAttributes", &input)?;
        let empty = answer["Attributes"]["ApproximateNumberOfMessages"] == "0";
        note(&format!("{queue}: nothing was given up"), empty);
    }
    note("nothing of this started a build", builds()? == before);

    stack::deploy(&stage.setup, crate::demo::POLICY, &crate::demo::PARAMETERS)?;
    let answer = aws.invoke(resolve, &json!({ "project": "app" }))?;
    note("a second deployment keeps everything", answer["environment"]["STOKER_CACHE_FLAGS"] == flags);
    Ok(failed)
}

/// Pushes to forges that the scenario does not have; answers which of them arrive on the bus. Neither starts a build:
/// the one repository is not in the policy, the other is built by somebody else.
fn other_forges(stage: &Stage, secret: &str) -> anyhow::Result<[(&'static str, bool); 2]> {
    const SEEN: &str = "seen";
    let (aws, bus) = (stage.setup.aws(), stage.output("BusName")?);
    let queue = aws.call("sqs", "AmazonSQS.CreateQueue", &json!({ "QueueName": SEEN }))?;
    let queue = queue["QueueUrl"].as_str().context("there is no queue")?;
    let pattern = json!({ "source": ["stoker"], "detail-type": ["BranchPushed"] }).to_string();
    let rule = json!({ "Name": SEEN, "EventBusName": bus, "EventPattern": pattern });
    aws.call("events", "AWSEvents.PutRule", &rule)?;
    let target = json!({ "Id": SEEN, "Arn": queue_arn(SEEN) });
    let targets = json!({ "Rule": SEEN, "EventBusName": bus, "Targets": [target] });
    aws.call("events", "AWSEvents.PutTargets", &targets)?;

    let commit = "1".repeat(40);
    let push = json!({
        "object_kind": "push", "ref": "refs/heads/feature", "before": "0".repeat(40), "after": commit,
        "project": { "web_url": "https://gitlab.com/example/other", "default_branch": "main" },
        "commits": [{ "id": commit, "message": "Change something" }], "total_commits_count": 1,
    });
    let headers =
        [("content-type", "application/json"), ("x-gitlab-event", "Push Hook"), ("x-gitlab-token", secret)];
    let answer = aws.post_to_function(stage.output("WebhookUrl")?, &headers, push.to_string().as_bytes())?;
    ensure!(answer.status == 202, "GitLab's webhook was answered with {}: {}", answer.status, answer.text());

    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let push = json!({
        "version": "0", "id": "0", "detail-type": "CodeCommit Repository State Change", "source": "aws.codecommit",
        "account": crate::aws::ACCOUNT, "time": now, "region": crate::aws::REGION,
        "resources": [format!("arn:aws:codecommit:{}:{}:tools", crate::aws::REGION, crate::aws::ACCOUNT)],
        "detail": {
            "event": "referenceUpdated", "repositoryName": "tools", "repositoryId": "0", "referenceType": "branch",
            "referenceName": "feature", "referenceFullName": "refs/heads/feature", "commitId": commit,
            "oldCommitId": "2".repeat(40), "callerUserArn": "arn:aws:iam::000000000000:user/octocat",
        },
    });
    aws.invoke(&stack::function("receive-codecommit"), &push)?;

    let mut forges = [("GitLab", "gitlab.com", false), ("CodeCommit", "git-codecommit", false)];
    let started = Instant::now();
    while forges.iter().any(|(_, _, arrived)| !arrived) && started.elapsed() < PATIENCE {
        let ask = json!({ "QueueUrl": queue, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 1 });
        let messages = aws.call("sqs", "AmazonSQS.ReceiveMessage", &ask)?;
        for message in messages["Messages"].as_array().into_iter().flatten() {
            let event: Value = serde_json::from_str(message["Body"].as_str().unwrap_or_default())?;
            let repository = event["detail"]["repository"].as_str().unwrap_or_default();
            for (_, host, arrived) in &mut forges {
                *arrived |= repository.starts_with(*host) && event["detail"]["commit"] == commit;
            }
        }
    }
    aws.call(
        "events",
        "AWSEvents.RemoveTargets",
        &json!({ "Rule": SEEN, "EventBusName": bus, "Ids": [SEEN] }),
    )?;
    aws.call("events", "AWSEvents.DeleteRule", &json!({ "Name": SEEN, "EventBusName": bus }))?;
    aws.call("sqs", "AmazonSQS.DeleteQueue", &json!({ "QueueUrl": queue }))?;
    Ok(forges.map(|(forge, _, arrived)| (forge, arrived)))
}

/// Waits until the queues are empty.
fn settle(stage: &Stage) -> anyhow::Result<()> {
    let started = Instant::now();
    while stage.waiting()? > 0 {
        ensure!(started.elapsed() < PATIENCE, "Stoker's queues do not become empty");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// What the deployed policies let the roles of builds do, as IAM decides it: an attack that has to fail.
fn builds_are_kept_out(stage: &Stage) -> anyhow::Result<bool> {
    const TRUSTED: &str = "stoker/app";
    const BUILDS: &str = "stoker-builds/app";
    let aws = stage.setup.aws();
    aws.make_role("of-builds", stage.output("BuildPolicy")?)?;
    aws.make_role("of-forks", stage.output("ForkBuildPolicy")?)?;
    let mut as_expected = true;
    let mut expect = |role: &str, action: &str, repository: &str, expected: bool| -> anyhow::Result<()> {
        let resource =
            format!("arn:aws:ecr:{}:{}:repository/{repository}", crate::aws::REGION, crate::aws::ACCOUNT);
        if aws.may(role, action, &resource)? != expected {
            println!(
                "    {role}: {action} on {repository} should be {}",
                if expected { "allowed" } else { "denied" }
            );
            as_expected = false;
        }
        Ok(())
    };
    let writes =
        ["ecr:InitiateLayerUpload", "ecr:UploadLayerPart", "ecr:CompleteLayerUpload", "ecr:PutImage"];
    for action in writes {
        expect("of-builds", action, TRUSTED, false)?;
        expect("of-builds", action, BUILDS, true)?;
        expect("of-forks", action, TRUSTED, false)?;
        expect("of-forks", action, BUILDS, false)?;
    }
    for role in ["of-builds", "of-forks"] {
        expect(role, "ecr:BatchGetImage", TRUSTED, true)?;
        expect(role, "ecr:GetDownloadUrlForLayer", TRUSTED, true)?;
        for repository in [TRUSTED, BUILDS] {
            // Who can list exports can find another build's tag.
            for action in [
                "ecr:ListImages",
                "ecr:DescribeImages",
                "ecr:BatchDeleteImage",
                "ecr:PutImageTagMutability",
                "ecr:SetRepositoryPolicy",
            ] {
                expect(role, action, repository, false)?;
            }
        }
        for action in ["codebuild:StartBuild", "sqs:SendMessage", "events:PutEvents", "lambda:InvokeFunction"]
        {
            expect(role, action, TRUSTED, false)?;
        }
    }
    let mutability = aws.call(
        "ecr",
        "AmazonEC2ContainerRegistry_V20150921.DescribeRepositories",
        &json!({ "repositoryNames": [BUILDS] }),
    )?;
    Ok(as_expected && mutability["repositories"][0]["imageTagMutability"] == "IMMUTABLE")
}
