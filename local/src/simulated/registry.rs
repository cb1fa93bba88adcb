//! The part of the OCI distribution API that caches need, over plain HTTP on this machine.

use axum::body::Bytes;
use axum::http::{Method, StatusCode};

use crate::http::{Http, HttpError, Reply, is_local};

/// The type of an OCI image manifest.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The registry did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    #[error("`{0}` is not a reference to a registry on this machine")]
    Reference(String),
    #[error("the registry cannot be reached")]
    Http(#[from] HttpError),
    #[error("{what}: unexpected status {status}: {message}")]
    Status { what: String, status: u16, message: String },
    #[error("{what}: the answer has no location")]
    NoLocation { what: String },
}

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repository {
    pub(super) host: String,
    pub(super) name: String,
}

/// A manifest in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) repository: Repository,
    /// A tag or a digest.
    pub(super) version: String,
}

impl Reference {
    /// Reads `host/name:tag`, `host/name@digest`, or both.
    pub(super) fn parse(text: &str) -> Result<Self, RegistryError> {
        let wrong = || RegistryError::Reference(text.to_owned());
        let (host, rest) = text.split_once('/').ok_or_else(wrong)?;
        if !is_local(&format!("http://{host}/")) {
            return Err(wrong());
        }
        let (tagged, digest) = rest.split_once('@').map_or((rest, None), |(t, d)| (t, Some(d)));
        let (name, tag) = tagged.split_once(':').map_or((tagged, None), |(n, t)| (n, Some(t)));
        let version = digest.or(tag).unwrap_or("latest");
        if name.is_empty() || version.is_empty() {
            return Err(wrong());
        }
        let repository = Repository { host: host.to_owned(), name: name.to_owned() };
        Ok(Self { repository, version: version.to_owned() })
    }
}

fn unexpected(what: &str, reply: &Reply) -> RegistryError {
    RegistryError::Status { what: what.to_owned(), status: reply.status.as_u16(), message: reply.text() }
}

/// A client.
#[derive(Debug, Default)]
pub(super) struct Registry(Http);

impl Registry {
    /// A manifest, if it is there.
    pub(super) async fn manifest(&self, reference: &Reference) -> Result<Option<Bytes>, RegistryError> {
        let Repository { host, name } = &reference.repository;
        let url = format!("http://{host}/v2/{name}/manifests/{}", reference.version);
        let reply = self.0.send(Method::GET, &url, &[("accept", MANIFEST)], "").await?;
        match reply.status {
            StatusCode::OK => Ok(Some(reply.body)),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(unexpected("fetching the manifest", &reply)),
        }
    }

    /// Whether a blob is there.
    pub(super) async fn has_blob(
        &self,
        repository: &Repository,
        digest: &str,
    ) -> Result<bool, RegistryError> {
        let reply = self.0.send(Method::HEAD, &blob(repository, digest), &[], "").await?;
        match reply.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(unexpected("asking for a blob", &reply)),
        }
    }

    /// A blob.
    pub(super) async fn blob(&self, repository: &Repository, digest: &str) -> Result<Bytes, RegistryError> {
        let reply = self.0.send(Method::GET, &blob(repository, digest), &[], "").await?;
        if reply.status == StatusCode::OK {
            Ok(reply.body)
        } else {
            Err(unexpected(&format!("fetching blob {digest}"), &reply))
        }
    }

    /// Makes a blob of another repository one of this repository.
    pub(super) async fn copy_blob(
        &self,
        from: &Repository,
        to: &Repository,
        digest: &str,
    ) -> Result<(), RegistryError> {
        if from.host == to.host {
            let uploads = format!("http://{}/v2/{}/blobs/uploads/", to.host, to.name);
            let url = format!("{uploads}?mount={digest}&from={}", from.name);
            let reply = self.0.send(Method::POST, &url, &[], "").await?;
            if reply.status == StatusCode::CREATED {
                return Ok(());
            }
        }
        let bytes = self.blob(from, digest).await?;
        self.push_blob(to, digest, bytes).await
    }

    /// Uploads a blob.
    pub(super) async fn push_blob(
        &self,
        repository: &Repository,
        digest: &str,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let what = format!("uploading blob {digest}");
        let Repository { host, name } = repository;
        let url = format!("http://{host}/v2/{name}/blobs/uploads/");
        let reply = self.0.send(Method::POST, &url, &[], "").await?;
        if reply.status != StatusCode::ACCEPTED {
            return Err(unexpected(&what, &reply));
        }
        let location =
            reply.header("location").ok_or_else(|| RegistryError::NoLocation { what: what.clone() })?;
        let join = if location.contains('?') { '&' } else { '?' };
        let base = if location.starts_with('/') { format!("http://{host}") } else { String::new() };
        let url = format!("{base}{location}{join}digest={digest}");
        let reply = self.0.send(Method::PUT, &url, &[("content-type", "application/octet-stream")], bytes);
        let reply = reply.await?;
        if reply.status == StatusCode::CREATED { Ok(()) } else { Err(unexpected(&what, &reply)) }
    }

    /// Writes a manifest.
    pub(super) async fn put_manifest(
        &self,
        reference: &Reference,
        bytes: Vec<u8>,
    ) -> Result<(), RegistryError> {
        let Repository { host, name } = &reference.repository;
        let url = format!("http://{host}/v2/{name}/manifests/{}", reference.version);
        let reply = self.0.send(Method::PUT, &url, &[("content-type", MANIFEST)], bytes).await?;
        if reply.status.is_success() { Ok(()) } else { Err(unexpected("writing the manifest", &reply)) }
    }
}

fn blob(Repository { host, name }: &Repository, digest: &str) -> String {
    format!("http://{host}/v2/{name}/blobs/{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read() {
        let read = |text| Reference::parse(text).map(|r| (r.repository.host, r.repository.name, r.version));
        let app = |version: &str| ("127.0.0.1:4567".to_owned(), "cache/app".to_owned(), version.to_owned());
        assert_eq!(read("127.0.0.1:4567/cache/app:x").unwrap(), app("x"));
        assert_eq!(read("127.0.0.1:4567/cache/app@sha256:00").unwrap(), app("sha256:00"));
        assert_eq!(read("127.0.0.1:4567/cache/app:x@sha256:00").unwrap(), app("sha256:00"));
        assert!(read("example.com/cache/app:x").is_err());
        assert!(read("app:x").is_err());
    }
}
