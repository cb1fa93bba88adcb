//! The Lambda function `receive-codecommit`.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use stoker_lambda::Failed;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let name = env!("CARGO_PKG_NAME");
    stoker_lambda::init_logs(name);
    let policy = &stoker_lambda::policy()?;
    let aws = &stoker_lambda::aws(name);
    run(service_fn(|event: LambdaEvent<serde_json::Value>| async move {
        match receive_codecommit::handle(event.payload, policy, aws).await {
            Ok(_) => Ok(()),
            Err(error) => Failed::from(error).or_dropped(),
        }
    }))
    .await
}
