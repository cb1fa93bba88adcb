//! The Lambda function `start-build`.

use aws_lambda_events::sqs::SqsEvent;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use stoker_lambda::registry;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let name = env!("CARGO_PKG_NAME");
    stoker_lambda::init_logs(name);
    let policy = &stoker_lambda::policy()?;
    let aws = &stoker_lambda::aws(name);
    let registry = &registry();
    let instance = &start_build::Instance::default();
    run(service_fn(|event: LambdaEvent<SqsEvent>| async move {
        let now = jiff::Timestamp::now();
        Ok::<_, Error>(start_build::handle(&event.payload, policy, registry, aws, instance, now).await)
    }))
    .await
}
