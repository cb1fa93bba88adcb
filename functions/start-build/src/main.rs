//! The Lambda function `start-build`.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use stoker::error::Disposition;
use stoker::event::Envelope;
use stoker::lambda::{boundary, registry};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let name = env!("CARGO_PKG_NAME");
    stoker::lambda::init_logs(name);
    let policy = &stoker::lambda::policy()?;
    let aws = &stoker::lambda::aws(name);
    let registry = &registry();
    run(service_fn(|event: LambdaEvent<serde_json::Value>| async move {
        let envelope = match Envelope::from_value(event.payload) {
            Ok(envelope) => envelope,
            Err(unknown) => return boundary(Disposition::Drop, &unknown),
        };
        match start_build::handle(&envelope, policy, registry, aws).await {
            Ok(_) => Ok(()),
            Err(error) => boundary(error.disposition(), &error),
        }
    }))
    .await
}
