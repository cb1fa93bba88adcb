//! The Lambda function `enforce-retention`. Two things invoke it: a queue with the branches that went, and the
//! nightly schedule.

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use jiff::Timestamp;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use stoker::error::Disposition;
use stoker::event::{Envelope, Event};
use stoker::lambda::boundary;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let name = env!("CARGO_PKG_NAME");
    stoker::lambda::init_logs(name);
    let policy = &stoker::lambda::policy()?;
    let aws = &stoker::lambda::aws(name);
    run(service_fn(|event: LambdaEvent<serde_json::Value>| async move {
        let now = Timestamp::now();
        if let Ok(batch) = serde_json::from_value::<SqsEvent>(event.payload.clone()) {
            return Ok(enforce_retention::handle_batch(&batch, policy, aws, now).await);
        }
        let nothing = SqsBatchResponse::default();
        match Envelope::from_value(event.payload) {
            Ok(envelope) if envelope.event == (Event::NightlyRetention {}) => {}
            // Whatever else it is, it is no reason to delete anything.
            Ok(_) => return Ok(nothing),
            Err(unknown) => return boundary(Disposition::Drop, &unknown).map(|()| nothing),
        }
        match enforce_retention::handle_nightly(aws, policy, now).await {
            Ok(_) => Ok(nothing),
            Err(error) => boundary(error.disposition(), &error).map(|()| nothing),
        }
    }))
    .await
}
