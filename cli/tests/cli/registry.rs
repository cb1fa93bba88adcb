//! A registry in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use stoker_core::names::Digest;

/// Whom the registry lets in.
#[derive(Default)]
pub(crate) enum Door {
    #[default]
    Open,
    /// Who has this `Authorization` header.
    Basic(String),
    /// Who has a token of its token service, which gives them to everybody, or to who has this header or refresh token.
    Bearer { password: Option<String>, refresh_token: Option<String> },
}

/// A request that was made.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) authorization: Option<String>,
}

#[derive(Default)]
pub(crate) struct TestEnvironment {
    pub(crate) blobs: BTreeMap<(String, Digest), Bytes>,
    pub(crate) manifests: BTreeMap<(String, Digest), Bytes>,
    pub(crate) tags: BTreeMap<(String, String), Digest>,
    pub(crate) door: Door,
    pub(crate) refuses_mounts: bool,
    /// Where uploads are sent instead of here.
    pub(crate) upload_elsewhere: Option<String>,
    /// Where blobs are to be read instead of here.
    pub(crate) blobs_elsewhere: Option<String>,
    /// Answered to every GET of a manifest.
    pub(crate) manifest_instead: Option<Bytes>,
    /// Answered to every GET of a blob.
    pub(crate) blob_instead: Option<Bytes>,
    /// Tags on a page, whatever is asked for; 0 for all.
    pub(crate) page: usize,
    /// Where the next page of tags is, instead of here.
    pub(crate) next_page: Option<String>,
    /// Answered to every GET of tags.
    pub(crate) tags_instead: Option<Bytes>,
    /// Where a line is moved to, by somebody else, once a blob was looked for.
    pub(crate) moved_meanwhile: Option<((String, String), Digest)>,
    /// Answers never end.
    pub(crate) is_endless: bool,
    /// Answers this to everything.
    pub(crate) status: Option<StatusCode>,
    tokens: Vec<String>,
    pub(crate) asked: Vec<Asked>,
}

#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    env: Arc<Mutex<TestEnvironment>>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self { address: listener.local_addr().unwrap(), env: Arc::default() };
        let router = Router::new().fallback(handle).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        fake
    }

    pub(crate) fn env(&self) -> MutexGuard<'_, TestEnvironment> {
        self.env.lock().unwrap()
    }

    /// Puts a cache under a tag of a repository: each word is a step on a source of its own.
    pub(crate) fn put(&self, repository: &str, tag: &str, steps: &str) -> String {
        self.put_made(repository, tag, steps, "2026-11-21T09:00:00Z")
    }

    /// As [`Fake::put`], with steps that were made at a time.
    pub(crate) fn put_made(&self, repository: &str, tag: &str, steps: &str, made: &str) -> String {
        let mut env = self.env();
        let (mut layers, mut records, mut descriptors) = (Vec::new(), Vec::new(), Vec::new());
        for (n, step) in steps.split(' ').enumerate() {
            let bytes = Bytes::from(format!("the layer of {step}"));
            let digest = Digest::of(&bytes);
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            descriptors.push(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}));
            layers.push(json!({"blob": digest, "parent": -1}));
            records.push(json!({"digest": format!("source of {step}")}));
            records.push(json!({"digest": format!("run {step}"), "inputs": [[{"link": 2 * n}]],
                                "layers": [{"layer": n, "createdAt": made}]}));
            env.blobs.insert((repository.to_owned(), digest), bytes);
        }
        drop(env);
        let config = json!({"layers": layers, "records": records}).to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.buildkit.cacheconfig.v0"},
            "layers": descriptors,
        });
        self.put_cache(repository, tag, manifest, config)
    }

    /// Puts a cache of this config under a tag.
    pub(crate) fn put_cache(
        &self,
        repository: &str,
        tag: &str,
        mut manifest: Value,
        config: String,
    ) -> String {
        let config = Bytes::from(config);
        manifest["config"]["digest"] = json!(Digest::of(&config));
        manifest["config"]["size"] = json!(config.len());
        let mut env = self.env();
        env.blobs.insert((repository.to_owned(), Digest::of(&config)), config);
        let manifest = Bytes::from(manifest.to_string());
        env.tags.insert((repository.to_owned(), tag.to_owned()), Digest::of(&manifest));
        env.manifests.insert((repository.to_owned(), Digest::of(&manifest)), manifest);
        drop(env);
        self.reference(repository, tag)
    }

    pub(crate) fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Gives what a tag holds these annotations.
    pub(crate) fn annotate(&self, repository: &str, tag: &str, annotations: &Value) -> Digest {
        let mut manifest = self.manifest(repository, tag).unwrap();
        manifest["annotations"] = annotations.clone();
        let manifest = Bytes::from(manifest.to_string());
        let digest = Digest::of(&manifest);
        let mut env = self.env();
        env.tags.insert((repository.to_owned(), tag.to_owned()), digest.clone());
        env.manifests.insert((repository.to_owned(), digest.clone()), manifest);
        digest
    }

    /// What a tag holds.
    pub(crate) fn manifest(&self, repository: &str, tag: &str) -> Option<Value> {
        let env = self.env();
        let digest = env.tags.get(&(repository.to_owned(), tag.to_owned()))?;
        serde_json::from_slice(&env.manifests[&(repository.to_owned(), digest.clone())]).ok()
    }

    /// How many requests of this kind were made, whose path or query contains a text.
    pub(crate) fn count(&self, method: &str, text: &str) -> usize {
        let env = self.env();
        env.asked.iter().filter(|a| a.line.starts_with(method) && a.line.contains(text)).count()
    }
}

fn status(code: StatusCode) -> Response {
    code.into_response()
}

fn with(code: StatusCode, name: &'static str, value: &str) -> Response {
    (code, [(name, value)]).into_response()
}

async fn handle(State(fake): State<Fake>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let mut env = fake.env();
    let line = format!("{} {}", head.method, head.uri);
    let authorization = header(&head.headers, "authorization");
    env.asked.push(Asked { line, authorization: authorization.clone() });
    if let Some(code) = env.status {
        return status(code);
    }
    let query = head.uri.query().unwrap_or_default().to_owned();
    let path = head.uri.path();
    if path == "/token" {
        return token(&mut env, &query, authorization.as_deref(), &body);
    }
    if path.starts_with("/elsewhere/") {
        let digest = Digest::new(path.rsplit('/').next().unwrap_or_default()).ok();
        let found = env.blobs.iter().find(|((_, known), _)| Some(known) == digest.as_ref());
        return found
            .map_or_else(|| status(StatusCode::NOT_FOUND), |(_, bytes)| bytes.clone().into_response());
    }
    if let Some(refusal) = refusal(&env, fake.address, &head.method, path, authorization.as_deref()) {
        return refusal;
    }
    let path = path.strip_prefix("/v2/").unwrap_or_default();
    if let Some((repository, version)) = path.split_once("/manifests/") {
        let content_type = header(&head.headers, "content-type");
        return manifests(&mut env, &head.method, repository, version, content_type.as_deref(), body);
    }
    if let Some(repository) = path.strip_suffix("/tags/list") {
        return tags(&env, repository, &query);
    }
    match path.split_once("/blobs/") {
        Some((repository, rest)) => blobs(&mut env, &head.method, repository, rest, &query, body),
        None => status(StatusCode::NOT_FOUND),
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| value.to_str().unwrap().to_owned())
}

fn token(env: &mut TestEnvironment, query: &str, authorization: Option<&str>, body: &Bytes) -> Response {
    let body = String::from_utf8_lossy(body);
    if let Door::Bearer { password, refresh_token } = &env.door {
        let is_known = match refresh_token {
            Some(token) => {
                body.contains(&format!("refresh_token={token}")) && body.contains("grant_type=refresh_token")
            }
            None => password.is_none() || password.as_deref() == authorization,
        };
        if !is_known {
            return status(StatusCode::UNAUTHORIZED);
        }
    }
    // The token is what it is good for.
    let scopes = format!("{query}&{body}").replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    env.tokens.push(scopes);
    let name = format!("token-{}", env.tokens.len() - 1);
    axum::Json(json!({"token": name, "expires_in": 300})).into_response()
}

fn refusal(
    env: &TestEnvironment,
    address: SocketAddr,
    method: &Method,
    path: &str,
    authorization: Option<&str>,
) -> Option<Response> {
    match &env.door {
        Door::Open => None,
        Door::Basic(header) if authorization == Some(header) => None,
        Door::Basic(_) => Some(with(StatusCode::UNAUTHORIZED, "www-authenticate", "Basic realm=\"x\"")),
        Door::Bearer { .. } => {
            let repository = path.strip_prefix("/v2/").unwrap_or_default();
            let repository = repository.split("/manifests/").next().unwrap_or_default();
            let repository = repository.split("/blobs/").next().unwrap_or_default();
            let repository = repository.split("/tags/").next().unwrap_or_default();
            let reads = matches!(*method, Method::GET | Method::HEAD);
            let right = format!("repository:{repository}:pull{}", if reads { "" } else { ",push" });
            let number = authorization.and_then(|header| header.strip_prefix("Bearer token-")?.parse().ok());
            let scopes = number.and_then(|number: usize| env.tokens.get(number));
            if scopes.is_some_and(|scopes| scopes.contains(&right)) {
                return None;
            }
            let challenge =
                format!("Bearer realm=\"http://{address}/token\",service=\"fake\",scope=\"{right}\"");
            Some(with(StatusCode::UNAUTHORIZED, "www-authenticate", &challenge))
        }
    }
}

fn tags(env: &TestEnvironment, repository: &str, query: &str) -> Response {
    if env.is_endless {
        return endless();
    }
    if let Some(instead) = &env.tags_instead {
        return instead.clone().into_response();
    }
    let last = query.split('&').find_map(|pair| pair.strip_prefix("last=")).unwrap_or_default();
    let own = env.tags.keys().filter(|(own, tag)| own == repository && tag.as_str() > last);
    let all: Vec<&String> = own.map(|(_, tag)| tag).collect();
    let page = &all[..if env.page == 0 { all.len() } else { env.page.min(all.len()) }];
    let answer = axum::Json(json!({"name": repository, "tags": page}));
    let here = page.last().map(|last| format!("/v2/{repository}/tags/list?last={last}"));
    match env.next_page.clone().or(here.filter(|_| page.len() < all.len())) {
        Some(next) => ([("link", format!("<{next}>; rel=\"next\""))], answer).into_response(),
        None => answer.into_response(),
    }
}

fn manifests(
    env: &mut TestEnvironment,
    method: &Method,
    repository: &str,
    version: &str,
    content_type: Option<&str>,
    body: Bytes,
) -> Response {
    let media_type = |manifest: &Bytes| {
        let manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
        manifest["mediaType"].as_str().unwrap_or("text/plain").to_owned()
    };
    if *method == Method::PUT {
        if content_type != Some(&media_type(&body)) {
            return status(StatusCode::BAD_REQUEST);
        }
        let digest = Digest::of(&body);
        env.tags.insert((repository.to_owned(), version.to_owned()), digest.clone());
        env.manifests.insert((repository.to_owned(), digest), body);
        return status(StatusCode::CREATED);
    }
    if env.is_endless {
        return endless();
    }
    if let Some(instead) = &env.manifest_instead {
        return instead.clone().into_response();
    }
    let tagged = env.tags.get(&(repository.to_owned(), version.to_owned())).cloned();
    let digest = tagged.or_else(|| Digest::new(version).ok());
    let found = digest.and_then(|digest| env.manifests.get(&(repository.to_owned(), digest)));
    found.map_or_else(
        || status(StatusCode::NOT_FOUND),
        |manifest| ([("content-type", media_type(manifest))], manifest.clone()).into_response(),
    )
}

fn blobs(
    env: &mut TestEnvironment,
    method: &Method,
    repository: &str,
    rest: &str,
    query: &str,
    body: Bytes,
) -> Response {
    let field = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    match *method {
        Method::POST => {
            let mounted = field("mount").zip(field("from")).and_then(|(digest, from)| {
                let digest = Digest::new(digest).ok()?;
                env.blobs.get(&(from.to_owned(), digest.clone())).cloned().map(|bytes| (digest, bytes))
            });
            if let Some((digest, bytes)) = mounted.filter(|_| !env.refuses_mounts) {
                env.blobs.insert((repository.to_owned(), digest), bytes);
                return status(StatusCode::CREATED);
            }
            let here = format!("/v2/{repository}/blobs/uploads/1?state=x");
            with(StatusCode::ACCEPTED, "location", env.upload_elsewhere.as_ref().unwrap_or(&here))
        }
        Method::PUT => {
            let digest = Digest::of(&body);
            if field("digest") != Some(digest.to_string().as_str()) {
                return status(StatusCode::BAD_REQUEST);
            }
            env.blobs.insert((repository.to_owned(), digest), body);
            status(StatusCode::CREATED)
        }
        _ => {
            if let Some((tag, digest)) = env.moved_meanwhile.take_if(|_| *method == Method::HEAD) {
                env.tags.insert(tag, digest);
            }
            let found =
                Digest::new(rest).ok().and_then(|digest| env.blobs.get(&(repository.to_owned(), digest)));
            match (found, &env.blobs_elsewhere) {
                (None, _) => status(StatusCode::NOT_FOUND),
                (Some(_), Some(place)) => {
                    with(StatusCode::TEMPORARY_REDIRECT, "location", &format!("{place}/{rest}"))
                }
                (Some(_), None) if env.is_endless && *method == Method::GET => endless(),
                (Some(bytes), None) => env.blob_instead.as_ref().unwrap_or(bytes).clone().into_response(),
            }
        }
    }
}

fn endless() -> Response {
    let chunk = Bytes::from(vec![b' '; 1 << 16]);
    let chunks = futures_util::stream::repeat_with(move || Ok::<_, std::convert::Infallible>(chunk.clone()));
    Body::from_stream(chunks).into_response()
}
