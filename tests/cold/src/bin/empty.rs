//! The runtime's loop and nothing else: what any function written in Rust costs.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde::de::IgnoredAny;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(service_fn(|_: LambdaEvent<IgnoredAny>| async { Ok::<_, Error>(()) })).await
}
