//! A TLS client without an SDK: sends the requests that it is given, which nobody signs and whose answers
//! nobody parses.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde::Deserialize;

/// A request, as a function sent it.
#[derive(Deserialize)]
struct Sent {
    url: String,
    headers: Vec<(String, String)>,
    body: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let connector = HttpsConnectorBuilder::new().with_native_roots()?.https_only().enable_http1().build();
    let client = &Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(connector);
    run(service_fn(|event: LambdaEvent<Vec<Sent>>| async move {
        for sent in event.payload {
            let mut request = Request::post(&sent.url);
            for (name, value) in &sent.headers {
                request = request.header(name, value);
            }
            let answer = client.request(request.body(Full::from(sent.body))?).await?;
            answer.into_body().collect().await?;
        }
        Ok::<_, Error>(())
    }))
    .await
}
