//! The Lambda function `receive-webhook`.

use aws_lambda_events::lambda_function_urls::LambdaFunctionUrlRequest;
use jiff::Timestamp;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use receive_webhook::Refusals;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let name = env!("CARGO_PKG_NAME");
    stoker_lambda::init_logs(name);
    let policy = &stoker_lambda::policy()?;
    let aws = &stoker_lambda::aws(name);
    let refusals = &Refusals::default();
    run(service_fn(|event: LambdaEvent<LambdaFunctionUrlRequest>| async move {
        let now = Timestamp::now();
        Ok::<_, Error>(receive_webhook::handle(&event.payload, policy, aws, refusals, now).await)
    }))
    .await
}
