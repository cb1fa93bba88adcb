//! Blobs: small ones in memory, large ones as streams.

use std::fmt::Display;

use aws_smithy_runtime_api::http::Response;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;

use super::http::{Ask, Call, call_once, is_redirect, request};
use super::{Authorize, Registry};
use stoker_core::error::{CallError, Failure};
use stoker_core::names::Digest;

/// A blob is often answered with an address of the storage behind the registry.
const REDIRECTS: u32 = 3;

/// Whether a blob is in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is not.
    Missing,
    /// It is.
    There {
        /// How long the registry says it is, if it says so.
        length: Option<u64>,
    },
}

/// A blob that is about to be read; its digest is for the reader to check.
pub struct OpenBlob {
    /// How long the registry says it is.
    pub length: Option<u64>,
    /// Its bytes.
    pub body: SdkBody,
}

/// Where the registry wants a blob sent to: an address of its own.
pub struct Upload {
    location: String,
}

/// What became of a mount.
pub enum Mounted {
    /// The blob is in the repository.
    Done,
    /// The registry does not mount it, and wants the bytes.
    Refused(Upload),
}

impl Registry {
    /// A blob of at most `limit` bytes whose digest is right.
    pub async fn blob(
        &self,
        authorize: &impl Authorize,
        repository: &impl Display,
        digest: &Digest,
        limit: usize,
    ) -> Result<Bytes, CallError> {
        let call = Call { operation: "registry:GetBlob", subject: format!("{repository}@{digest}") };
        let url = format!("{}/v2/{repository}/blobs/{digest}", self.base);
        let response = self.follow(authorize, &call, Ask::new("GET", &url)).await?;
        let bytes = call.body(response, limit).await?;
        if Digest::of(&bytes) != *digest {
            let cause = "the registry answered other bytes than the digest's";
            return Err(call.fail(Failure::Unavailable, cause));
        }
        Ok(bytes)
    }

    /// A blob of any length, as a stream.
    pub async fn open_blob(
        &self,
        authorize: &impl Authorize,
        repository: &impl Display,
        digest: &Digest,
    ) -> Result<OpenBlob, CallError> {
        let call = Call { operation: "registry:GetBlob", subject: format!("{repository}@{digest}") };
        let url = format!("{}/v2/{repository}/blobs/{digest}", self.base);
        let response = self.follow(authorize, &call, Ask::new("GET", &url)).await?;
        Ok(OpenBlob { length: length_of(&response), body: response.into_body() })
    }

    /// Whether a blob is there, without reading it.
    pub async fn find_blob(
        &self,
        authorize: &impl Authorize,
        repository: &impl Display,
        digest: &Digest,
    ) -> Result<Presence, CallError> {
        let call = Call { operation: "registry:HeadBlob", subject: format!("{repository}@{digest}") };
        let url = format!("{}/v2/{repository}/blobs/{digest}", self.base);
        match self.send(authorize, &call, &Ask::new("HEAD", &url)).await {
            // A redirect to the storage says that the blob is there; what is behind it may not know HEAD.
            Ok(response) if is_redirect(&response) => Ok(Presence::There { length: None }),
            Ok(response) => Ok(Presence::There { length: length_of(&response) }),
            Err(error) if error.failure == Failure::NotFound => Ok(Presence::Missing),
            Err(error) => Err(error),
        }
    }

    /// Stores a blob: one request opens the upload, one fills it.
    pub async fn put_blob(
        &self,
        authorize: &impl Authorize,
        repository: &impl Display,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<(), CallError> {
        let call = Call { operation: "registry:PutBlob", subject: format!("{repository}@{digest}") };
        let upload = self.open_upload(authorize, repository, digest).await?;
        let url = upload.filled_with(digest);
        let headers = [("content-type", "application/octet-stream")];
        let ask = Ask { headers: &headers, body: Some(bytes), ..Ask::new("PUT", &url) };
        let response = self.send(authorize, &call, &ask).await?;
        call.expect_success(response).await.map(drop)
    }

    /// Asks for a place to send a blob to.
    pub async fn open_upload(
        &self,
        authorize: &impl Authorize,
        repository: &impl Display,
        digest: &Digest,
    ) -> Result<Upload, CallError> {
        let call = Call { operation: "registry:PutBlob", subject: format!("{repository}@{digest}") };
        let url = format!("{}/v2/{repository}/blobs/uploads/", self.base);
        let opened = self.send(authorize, &call, &Ask::new("POST", &url)).await?;
        self.upload(&call, &opened)
    }

    /// Makes a blob of the repository `from` one of `repository` too, without moving its bytes.
    pub async fn mount(
        &self,
        authorize: &impl Authorize,
        repository: &impl Display,
        digest: &Digest,
        from: &impl Display,
    ) -> Result<Mounted, CallError> {
        let call = Call { operation: "registry:MountBlob", subject: format!("{repository}@{digest}") };
        let url = format!("{}/v2/{repository}/blobs/uploads/?mount={digest}&from={from}", self.base);
        let response = self.send(authorize, &call, &Ask::new("POST", &url)).await?;
        match response.status().as_u16() {
            201 => Ok(Mounted::Done),
            _ => self.upload(&call, &response).map(Mounted::Refused),
        }
    }

    /// Fills an upload from a stream, once: who wants to try again needs a new upload and a new stream.
    pub async fn fill_upload(
        &self,
        authorize: &impl Authorize,
        upload: &Upload,
        digest: &Digest,
        length: u64,
        body: SdkBody,
    ) -> Result<(), CallError> {
        let call = Call { operation: "registry:PutBlob", subject: digest.to_string() };
        let authorization = authorize.authorization().await?;
        let headers = [("content-type", "application/octet-stream")];
        let url = upload.filled_with(digest);
        let request = request("PUT", &url, authorization.as_deref(), &headers, Some(length), body)
            .map_err(|error| call.fail(Failure::Refused, error))?;
        let response = call_once(self.patient(), &call, request).await?;
        call.expect_success(response).await.map(drop)
    }

    fn upload(&self, call: &Call, opened: &Response<SdkBody>) -> Result<Upload, CallError> {
        let location = opened.headers().get("location").map(|location| self.resolve(location));
        let location = location
            .ok_or_else(|| call.fail(Failure::Unavailable, "the registry names no upload location"))?;
        if self.is_own(&location) {
            Ok(Upload { location })
        } else {
            let place: String = location.split('?').next().unwrap_or_default().chars().take(100).collect();
            let cause =
                format!("the registry wants the upload sent elsewhere, to `{}`", place.escape_debug());
            Err(call.fail(Failure::Refused, cause))
        }
    }

    /// Sends a request and goes where the registry sends it, without credentials where that is another host.
    pub(super) async fn follow(
        &self,
        authorize: &impl Authorize,
        call: &Call,
        ask: Ask<'_>,
    ) -> Result<Response<SdkBody>, CallError> {
        let mut url = ask.url.to_owned();
        for _ in 0..=REDIRECTS {
            let response = self.send(authorize, call, &Ask { url: &url, body: None, ..ask }).await?;
            if !is_redirect(&response) {
                return Ok(response);
            }
            let location = response.headers().get("location").unwrap_or_default();
            url = self.resolve(location);
            if !self.is_safe(&url) {
                let cause = "the registry sends to an address that is not HTTPS";
                return Err(call.fail(Failure::Refused, cause));
            }
        }
        Err(call.fail(Failure::Refused, "the registry sends from one address to the next"))
    }
}

impl Upload {
    fn filled_with(&self, digest: &Digest) -> String {
        let separator = if self.location.contains('?') { '&' } else { '?' };
        format!("{}{separator}digest={digest}", self.location)
    }
}

impl Call {
    /// Takes redirects for the failures that they are where something is written.
    pub(super) async fn expect_success(
        &self,
        response: Response<SdkBody>,
    ) -> Result<Response<SdkBody>, CallError> {
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }
}

fn length_of(response: &Response<SdkBody>) -> Option<u64> {
    response.headers().get("content-length")?.parse().ok()
}
