//! The Lambda function `resolve-cache`.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let name = env!("CARGO_PKG_NAME");
    stoker_lambda::init_logs(name);
    let policy = &stoker_lambda::policy()?;
    let aws = &stoker_lambda::aws(name);
    let registry = &stoker_lambda::registry();
    run(service_fn(|event: LambdaEvent<serde_json::Value>| async move {
        let now = jiff::Timestamp::now();
        stoker_core::resolve::handle(event.payload, policy, registry, aws, now).await.map_err(|error| {
            // The caller reads only one line of this, so it holds every cause.
            let message = stoker_core::error::chain(&error);
            tracing::warn!(error = message, "not answered");
            Error::from(message)
        })
    }))
    .await
}
