//! The Lambda function `promote-cache`.

use aws_lambda_events::sqs::SqsEvent;
use jiff::Timestamp;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let name = env!("CARGO_PKG_NAME");
    stoker_lambda::init_logs(name);
    let policy = &stoker_lambda::policy()?;
    let aws = &stoker_lambda::aws(name);
    let instance = &promote_cache::Instance::default();
    run(service_fn(|event: LambdaEvent<SqsEvent>| async move {
        Ok::<_, Error>(promote_cache::handle(&event.payload, policy, aws, instance, Timestamp::now()).await)
    }))
    .await
}
