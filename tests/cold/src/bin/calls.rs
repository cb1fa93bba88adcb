//! The calls of a function and nothing else: made through the SDK, with the functions' own adapters, from the
//! requests that the function sent. No event is read, no policy, and nothing is decided.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde::Deserialize;
use serde_json::{Value, from_value, json};
use stoker_aws::Aws;
use stoker_core::names::{CacheRepository, Digest, ProjectName, Tag};
use stoker_core::ports::{
    BuildOrder, Catalogue as _, CheckBlobs as _, Publish as _, ReadBuilds as _, ReadImages as _,
    ReadManifests as _, ReadSecrets as _, StartBuilds as _,
};

/// What a function asked for.
#[derive(Deserialize)]
struct Sent {
    operation: String,
    body: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    stoker_lambda::init_logs("calls");
    let aws = &stoker_lambda::aws("calls");
    run(service_fn(|event: LambdaEvent<Vec<Sent>>| async move {
        // The adapter that lists builds asks right away what they are.
        let mut asked_already = 0;
        for request in event.payload {
            match request.operation.as_str() {
                "BatchGetBuilds" if asked_already > 0 => {
                    asked_already -= 1;
                    continue;
                }
                "ListBuildsForProject" => asked_already += 1,
                _ => {}
            }
            call(aws, &request.operation, &serde_json::from_str(&request.body)?).await?;
        }
        Ok::<_, Error>(())
    }))
    .await
}

async fn call(aws: &Aws, operation: &str, body: &Value) -> Result<(), Error> {
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let repository = || CacheRepository::new(text("repositoryName"));
    match operation {
        "ListBuildsForProject" => drop(aws.recent(&ProjectName::new(text("projectName"))?, None).await?),
        "BatchGetBuilds" => drop(aws.get(&from_value::<Vec<String>>(body["ids"].clone())?).await?),
        "StartBuild" => {
            let variables = body["environmentVariablesOverride"].as_array().into_iter().flatten();
            let environment = variables
                .map(|variable| {
                    Ok((from_value(variable["name"].clone())?, from_value(variable["value"].clone())?))
                })
                .collect::<Result<_, Error>>()?;
            let order = BuildOrder {
                project: ProjectName::new(text("projectName"))?,
                source_version: body["sourceVersion"].as_str().map(str::to_owned),
                environment,
                token: text("idempotencyToken"),
            };
            aws.start(&order).await?;
        }
        "BatchGetImage" => {
            let ids = || body["imageIds"].as_array().into_iter().flatten();
            let tags: Vec<_> = ids().filter_map(|id| Tag::known(id["imageTag"].as_str()?)).collect();
            let digests: Vec<_> =
                ids().filter_map(|id| Digest::new(id["imageDigest"].as_str()?).ok()).collect();
            match tags.as_slice() {
                [] => drop(aws.manifests(&repository()?, &digests, usize::MAX).await?),
                tags => drop(aws.images(&repository()?, tags).await?),
            }
        }
        "DescribeImages" => drop(aws.list(&repository()?).await?),
        "BatchCheckLayerAvailability" => {
            let digests: Vec<Digest> = from_value(body["layerDigests"].clone())?;
            aws.unavailable(&repository()?, &digests).await?;
        }
        "PutEvents" => {
            let entries = body["Entries"].as_array().into_iter().flatten();
            let events = entries.map(|entry| {
                let detail: Value = serde_json::from_str(entry["Detail"].as_str().unwrap_or_default())?;
                from_value(json!({ "detail-type": entry["DetailType"], "detail": detail }))
            });
            aws.publish(&events.collect::<Result<Vec<_>, serde_json::Error>>()?).await?;
        }
        "GetSecretValue" => drop(aws.webhook_secrets(false).await?),
        other => return Err(format!("no function calls {other}").into()),
    }
    Ok(())
}
