//! A limit for what AWS answers: what is longer is not read.

use std::error::Error as StdError;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextMut;
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use http_body_util::{LengthLimitError, Limited};

/// Reads an answer only if it has no more bytes.
#[derive(Debug)]
pub(super) struct AtMost(pub(super) usize);

/// The answer says that it is longer.
#[derive(Debug, thiserror::Error)]
#[error("the answer has {0} bytes")]
struct TooLong(u64);

#[dyn_dispatch_hint]
impl Intercept for AtMost {
    fn name(&self) -> &'static str {
        "AtMost"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response_mut();
        let length = response.headers().get("content-length").and_then(|length| length.parse().ok());
        if let Some(length) = length.filter(|length| *length > self.0 as u64) {
            return Err(TooLong(length).into());
        }
        // An answer need not say how long it is.
        let body = response.take_body();
        *response.body_mut() = SdkBody::from_body_1_x(Limited::new(body, self.0));
        Ok(())
    }
}

/// Whether a call failed as its answer was too long.
pub(super) fn is_exceeded(error: &(dyn StdError + 'static)) -> bool {
    let is_limit = |error: &(dyn StdError + 'static)| error.is::<TooLong>() || error.is::<LengthLimitError>();
    let mut cause = Some(error);
    while let Some(error) = cause {
        if is_limit(error) {
            return true;
        }
        cause = error.source();
    }
    false
}
