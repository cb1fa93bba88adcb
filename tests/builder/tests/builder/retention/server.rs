//! A registry over the account in memory, for builders: what retention took, no build finds.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{Method, Response, StatusCode, Uri};
use buildkit_cache::MANIFEST_MEDIA_TYPE;
use scenarios::account::{Account, OTHERS, named};
use stoker_core::names::{CacheRepository, Digest};
use stoker_core::ports::{MountBlobs as _, Mounted, WriteImages as _};
use tokio::sync::{mpsc, oneshot};

/// A base image is the largest that builds write.
const LARGEST: usize = 64 << 20;

/// A request, and where its answer goes.
pub(crate) struct Asked {
    method: Method,
    uri: Uri,
    body: Bytes,
    answer: oneshot::Sender<Response<Body>>,
}

/// What the registry saw.
#[derive(Default)]
pub(crate) struct Seen {
    /// Every blob that a builder wrote.
    pub(crate) written: BTreeSet<String>,
    /// Blobs that builders read.
    pub(crate) read: usize,
    /// Manifests and blobs that builders wanted to read, and that were not there.
    pub(crate) missing: usize,
    /// Manifests that were not taken, as a blob of theirs was not there.
    pub(crate) refused: usize,
}

/// Listens on the loopback interface until the receiver is dropped. The account lives on one thread, so requests
/// are only passed on.
pub(crate) fn listen() -> anyhow::Result<(SocketAddr, mpsc::UnboundedReceiver<Asked>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let (ask, asked) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || {
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let to = ask.clone();
            let app = Router::new().fallback(move |request| pass_on(to.clone(), request));
            let server = axum::serve(listener, app);
            tokio::select! {
                ended = server => ended.expect("a server never ends"),
                () = ask.closed() => {}
            }
        });
    });
    Ok((address, asked))
}

async fn pass_on(ask: mpsc::UnboundedSender<Asked>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LARGEST).await else { return plain(StatusCode::BAD_REQUEST) };
    let (answer, answered) = oneshot::channel();
    let asked = Asked { method: head.method, uri: head.uri, body, answer };
    if ask.send(asked).is_err() {
        return plain(StatusCode::SERVICE_UNAVAILABLE);
    }
    answered.await.unwrap_or_else(|_| plain(StatusCode::SERVICE_UNAVAILABLE))
}

fn plain(status: StatusCode) -> Response<Body> {
    with(status, &[], Bytes::new())
}

fn with(status: StatusCode, headers: &[(&str, &str)], body: Bytes) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Body::from(body)).expect("an answer")
}

impl Asked {
    /// Whether a blob is read, not only looked for.
    pub(crate) fn reads_blob(&self) -> bool {
        self.method == Method::GET && self.uri.path().contains("/blobs/")
    }

    /// Whether a layer is: a cache's config is JSON.
    pub(crate) fn reads_layer(&self, account: &Account) -> bool {
        let digest = self.uri.path().rsplit('/').next().and_then(|digest| Digest::new(digest).ok());
        let blob = digest.and_then(|digest| account.raw_blob(&digest));
        self.reads_blob() && blob.is_some_and(|blob| !blob.starts_with(b"{"))
    }

    /// Answers it out of the account.
    pub(crate) async fn answer(self, account: &Account, seen: &mut Seen) {
        let response = self.response(account, seen).await;
        // Before a builder writes a blob, it looks whether it is there; a manifest it looks for to read it.
        let reads = self.method == Method::GET || self.uri.path().contains("/manifests/sha256:");
        seen.missing += usize::from(reads && response.status() == StatusCode::NOT_FOUND);
        // A builder that was stopped waits for no answer.
        let _ = self.answer.send(response);
    }

    async fn response(&self, account: &Account, seen: &mut Seen) -> Response<Body> {
        let path = self.uri.path().trim_start_matches("/v2/");
        let place = path.split_once("/manifests/").map(|place| (true, place));
        let place = place.or_else(|| path.split_once("/blobs/").map(|place| (false, place)));
        let Some((is_manifest, (repository, reference))) = place else { return plain(StatusCode::OK) };
        let Ok(repository) = CacheRepository::new(repository) else { return plain(StatusCode::NOT_FOUND) };
        let reads = [Method::GET, Method::HEAD].contains(&self.method);
        match (is_manifest, reads) {
            (true, true) => manifest(account, &repository, reference),
            (true, false) => self.write_manifest(account, &repository, reference, seen),
            (false, true) => self.blob(account, &repository, reference, seen),
            (false, false) => self.write_blob(account, &repository, path, seen).await,
        }
    }

    fn blob(
        &self,
        account: &Account,
        repository: &CacheRepository,
        digest: &str,
        seen: &mut Seen,
    ) -> Response<Body> {
        let blob = Digest::new(digest).ok().filter(|digest| account.has_blob(repository, digest));
        let Some(blob) = blob.and_then(|digest| account.raw_blob(&digest)) else {
            return plain(StatusCode::NOT_FOUND);
        };
        seen.read += usize::from(self.reads_blob());
        let headers = [("content-type", "application/octet-stream"), ("docker-content-digest", digest)];
        with(StatusCode::OK, &headers, blob)
    }

    fn write_manifest(
        &self,
        account: &Account,
        repository: &CacheRepository,
        tag: &str,
        seen: &mut Seen,
    ) -> Response<Body> {
        let is_there = |digest: &Digest| account.has_blob(repository, digest);
        let is_taken = named(&self.body).iter().all(is_there)
            && account.push(repository, tag, MANIFEST_MEDIA_TYPE, self.body.clone(), Vec::new());
        if !is_taken {
            seen.refused += 1;
            return plain(StatusCode::BAD_REQUEST);
        }
        let digest = Digest::of(&self.body);
        with(StatusCode::CREATED, &[("docker-content-digest", &digest.to_string())], Bytes::new())
    }

    /// A mount, the beginning of an upload, or the whole of it.
    async fn write_blob(
        &self,
        account: &Account,
        repository: &CacheRepository,
        path: &str,
        seen: &mut Seen,
    ) -> Response<Body> {
        let asked = |name: &str| {
            let query = self.uri.query().unwrap_or_default().replace("%3A", ":").replace("%2F", "/");
            query.split('&').find_map(|pair| Some(pair.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
        };
        let digest = |name| asked(name).and_then(|digest| Digest::new(digest).ok());
        if self.method == Method::PUT {
            let Some(digest) = digest("digest").filter(|digest| *digest == Digest::of(&self.body)) else {
                return plain(StatusCode::BAD_REQUEST);
            };
            seen.written.insert(digest.to_string());
            let put = account.put_blob(repository, &digest, self.body.clone());
            account.act(OTHERS, put).await.expect("nobody kills it").expect("a blob is taken");
            return with(
                StatusCode::CREATED,
                &[("docker-content-digest", &digest.to_string())],
                Bytes::new(),
            );
        }
        let from = asked("from").and_then(|from| CacheRepository::new(from).ok());
        if let (Some(digest), Some(from)) = (digest("mount"), from)
            && let Some(Ok(Mounted::Done)) =
                account.act(OTHERS, account.mount(repository, &from, &digest)).await
        {
            return with(
                StatusCode::CREATED,
                &[("docker-content-digest", &digest.to_string())],
                Bytes::new(),
            );
        }
        let location = format!("/v2/{}/1", path.trim_end_matches('/'));
        with(StatusCode::ACCEPTED, &[("location", &location)], Bytes::new())
    }
}

fn manifest(account: &Account, repository: &CacheRepository, reference: &str) -> Response<Body> {
    let Some(image) = account.image(repository, reference) else { return plain(StatusCode::NOT_FOUND) };
    let headers =
        [("content-type", image.media_type.as_str()), ("docker-content-digest", &image.digest.to_string())];
    with(StatusCode::OK, &headers, image.manifest)
}
