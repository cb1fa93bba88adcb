//! The Lambda function `receive-webhook`.

use aws_lambda_events::lambda_function_urls::LambdaFunctionUrlRequest;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let name = env!("CARGO_PKG_NAME");
    stoker::lambda::init_logs(name);
    let aws = &stoker::lambda::aws(name);
    run(service_fn(|event: LambdaEvent<LambdaFunctionUrlRequest>| async move {
        Ok::<_, Error>(receive_webhook::handle(&event.payload, aws).await)
    }))
    .await
}
