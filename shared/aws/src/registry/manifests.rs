//! Manifests.

use std::fmt::Display;

use bytes::Bytes;

use super::http::{Ask, Call};
use super::{Authorize, Registry};
use stoker_core::error::CallError;

/// Every form in which a cache is kept. A registry that is not told may answer a form older than the one it holds.
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                        application/vnd.docker.distribution.manifest.v2+json, \
                        application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest as a registry answered it: hostile, and its digest is still to be compared with the one asked for.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// What the registry calls it.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Registry {
    /// The manifest of at most `limit` bytes under a tag or a digest.
    pub async fn manifest(
        &self,
        authorize: &impl Authorize,
        repository: &impl Display,
        version: &impl Display,
        limit: usize,
    ) -> Result<FetchedManifest, CallError> {
        let call = Call { operation: "registry:GetManifest", subject: format!("{repository} at {version}") };
        let url = format!("{}/v2/{repository}/manifests/{version}", self.base);
        let ask = Ask { headers: &[("accept", ACCEPTED)], ..Ask::new("GET", &url) };
        let response = self.follow(authorize, &call, ask).await?;
        let media_type = response.headers().get("content-type").unwrap_or_default().to_owned();
        Ok(FetchedManifest { media_type, bytes: call.body(response, limit).await? })
    }

    /// Stores a manifest under a tag.
    pub async fn put_manifest(
        &self,
        authorize: &impl Authorize,
        repository: &impl Display,
        tag: &impl Display,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<(), CallError> {
        let call = Call { operation: "registry:PutManifest", subject: format!("{repository}:{tag}") };
        let url = format!("{}/v2/{repository}/manifests/{tag}", self.base);
        let headers = [("content-type", media_type)];
        let ask = Ask { headers: &headers, body: Some(manifest), ..Ask::new("PUT", &url) };
        let response = self.send(authorize, &call, &ask).await?;
        call.expect_success(response).await.map(drop)
    }
}
