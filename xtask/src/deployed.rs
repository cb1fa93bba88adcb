//! Tests of what is built and deployed, from outside.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::demo::Stage;
use crate::stack;

/// The largest that a function's program may be, in bytes.
const MAX_PROGRAM: u64 = 8_000_000;
/// A policy with three mistakes.
const BAD_POLICY: &str = "\
version: 1
defaults: { warm: { stale-after: soon } }
projects:
  - { name: app, repositry: github.com/example/app }
";

/// The functions' programs: small, and not to be started with a policy that has mistakes.
pub(crate) fn check_binaries() -> anyhow::Result<()> {
    for (name, program) in stack::programs()? {
        let size = fs::metadata(&program)?.len();
        println!("   {name:<20} {} kB", size / 1000);
        ensure!(size <= MAX_PROGRAM, "{name} has {size} bytes, more than {MAX_PROGRAM}");
        if name == "ReceiveWebhook" {
            continue; // it reads no policy
        }
        let policy = crate::home().join("logs/bad-policy.yaml");
        fs::write(&policy, BAD_POLICY)?;
        let output = Command::new(&program)
            .env("STOKER_POLICY", &policy)
            .env("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")
            .env("AWS_REGION", "us-east-1")
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(!output.status.success(), "{name} starts with a policy that has mistakes");
        for place in ["bad-policy.yaml:2:", "bad-policy.yaml:4:", "stale-after", "repositry"] {
            ensure!(said.contains(place), "{name} does not name the mistake at {place}: {said}");
        }
    }
    Ok(())
}

/// The deployed stack, after the story: answers what did not hold.
pub(crate) fn check(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let mut failed = Vec::new();
    let mut note = |what: &str, ok: bool| {
        println!("  {} {what}", if ok { "ok  " } else { "FAIL" });
        if !ok {
            failed.push(what.to_owned());
        }
    };
    println!("== the deployed stack");
    let aws = stage.world.aws();
    let builds =
        || Ok::<_, anyhow::Error>(stage.local("GET", "builds", None)?.as_array().map_or(0, Vec::len));
    let before = builds()?;

    let url = stage.output("WebhookUrl")?;
    let forge = stage.forge()?;
    let signed = |body: &str| forge.sign(body);
    let large = " ".repeat(4 * 1024 * 1024 + 1);
    for (what, status, event, signature, body) in [
        ("an unsigned webhook is refused with 401", 401, "push", None, "{}"),
        ("a wrongly signed webhook is refused with 401", 401, "push", Some("sha256=00".to_owned()), "{}"),
        (
            "an oversized webhook is refused with 413",
            413,
            "push",
            Some("sha256=00".to_owned()),
            large.as_str(),
        ),
        ("a webhook that is no JSON is refused with 400", 400, "push", Some(signed("hello")), "hello"),
        ("an unknown webhook is answered with 200", 200, "star", Some(signed("{}")), "{}"),
    ] {
        let mut headers = vec![("content-type", "application/json"), ("x-github-event", event)];
        headers.extend(signature.as_deref().map(|signature| ("x-hub-signature-256", signature)));
        let answer = aws.post_to_function(url, &headers, body.as_bytes())?;
        note(&format!("{what} ({})", answer.status), answer.status == status);
    }

    let resolve = stage.output("ResolveCacheFunction")?;
    let answer = aws.invoke(resolve, &json!({ "project": "app" }))?;
    let flags = answer["environment"]["STOKER_CACHE_FLAGS"].as_str().unwrap_or_default();
    note("resolve-cache hands out main", flags.starts_with("--cache-from type=registry,ref="));
    let error =
        aws.invoke(resolve, &json!({ "project": "other" })).map_or_else(|e| e.to_string(), |a| a.to_string());
    note("resolve-cache says what to do about an unknown project", error.contains("policy/stoker.yaml"));

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

    stack::deploy(&stage.world, crate::demo::POLICY, &crate::demo::PARAMETERS)?;
    let answer = aws.invoke(resolve, &json!({ "project": "app" }))?;
    note("a second deployment keeps everything", answer["environment"]["STOKER_CACHE_FLAGS"] == flags);
    Ok(failed)
}

/// What the deployed policies let the roles of builds do, as IAM decides it: an attack that has to fail.
fn builds_are_kept_out(stage: &Stage) -> anyhow::Result<bool> {
    const TRUSTED: &str = "stoker/app";
    const BUILDS: &str = "stoker-builds/app";
    let aws = stage.world.aws();
    aws.make_role("of-builds", stage.output("BuildPolicy")?)?;
    aws.make_role("of-forks", stage.output("ForkBuildPolicy")?)?;
    let mut as_expected = true;
    let mut expect = |role: &str, action: &str, repository: &str, expected: bool| -> anyhow::Result<()> {
        if aws.may(role, action, repository)? != expected {
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
