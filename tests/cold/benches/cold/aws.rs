//! The stand-in for AWS: four services over TLS, each at an address of its own, as each of AWS's takes a handshake.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::http::{Answer, Request, serve};

/// The services, by the names that the SDKs' variables have for them.
const SERVICES: [&str; 4] = ["CODEBUILD", "ECR", "EVENTBRIDGE", "SECRETS_MANAGER"];
/// Where systems keep the roots that they trust.
const ROOTS: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
/// The time of everything that there is.
const TIME: u32 = 1_795_248_000;

/// What was asked for.
#[derive(Default)]
pub(crate) struct Asked {
    /// Every request, in the form that the clients take.
    pub(crate) requests: Vec<Value>,
    /// How many connections were opened.
    pub(crate) handshakes: usize,
}

/// The stand-in.
pub(crate) struct Aws {
    endpoints: BTreeMap<&'static str, String>,
    asked: Arc<Mutex<Asked>>,
    /// The certificate of this run's authority alone.
    pub(crate) authority: PathBuf,
    /// The same, after the roots that this machine trusts: no system has only one.
    pub(crate) roots: PathBuf,
    /// How many roots that are.
    pub(crate) roots_count: usize,
}

impl Aws {
    /// Starts it, with an authority that is made for it.
    pub(crate) fn start(directory: &Path) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "the authority of this run");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, "a stand-in for AWS");
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer)?;
        let authority = directory.join("authority.pem");
        fs::write(&authority, issuer.pem())?;
        let of_machine = ROOTS.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let all = format!("{of_machine}\n{}", issuer.pem());
        let roots = directory.join("roots.pem");
        fs::write(&roots, &all)?;

        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone(), issuer.der().clone()], key)?;
        let tls = Arc::new(tls);

        let asked = Arc::<Mutex<Asked>>::default();
        let mut endpoints = BTreeMap::new();
        for service in SERVICES {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let endpoint = format!("https://{}", listener.local_addr()?);
            endpoints.insert(service, endpoint.clone());
            let (asked, tls) = (Arc::clone(&asked), Arc::clone(&tls));
            thread::spawn(move || listen(&listener, &endpoint, &tls, &asked));
        }
        let roots_count = all.matches("BEGIN CERTIFICATE").count();
        Ok(Self { endpoints, asked, authority, roots, roots_count })
    }

    /// Where the services are, in the variables that every SDK knows.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (String, &str)> {
        self.endpoints.iter().map(|(service, url)| (format!("AWS_ENDPOINT_URL_{service}"), url.as_str()))
    }

    /// What was asked for since the last time.
    pub(crate) fn asked(&self) -> Asked {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn listen(listener: &TcpListener, endpoint: &str, tls: &Arc<ServerConfig>, asked: &Arc<Mutex<Asked>>) {
    for stream in listener.incoming().flatten() {
        let (endpoint, tls, asked) = (endpoint.to_owned(), Arc::clone(tls), Arc::clone(asked));
        thread::spawn(move || -> anyhow::Result<()> {
            stream.set_nodelay(true)?;
            asked.lock().unwrap_or_else(PoisonError::into_inner).handshakes += 1;
            serve(StreamOwned::new(ServerConnection::new(tls)?, stream), |request| {
                let answer = answer(request.header("x-amz-target"))
                    .with_context(|| format!("nobody answers {}", request.header("x-amz-target")));
                let note = note(&endpoint, &request);
                asked.lock().unwrap_or_else(PoisonError::into_inner).requests.push(note);
                answer.map(|answer| Answer::json(&answer))
            })
            .inspect_err(|error| println!("the stand-in: {error:#}"))
        });
    }
}

/// What is called, of a header such as `CodeBuild_20161006.StartBuild`.
fn operation(target: &str) -> &str {
    target.rsplit('.').next().unwrap_or_default()
}

/// A request in the form that the clients take. Its headers are as many and as long as they were, but for those that
/// the client writes itself.
fn note(endpoint: &str, request: &Request) -> Value {
    let own = ["host", "content-length"];
    let headers: Vec<_> = request.headers.iter().filter(|(name, _)| !own.contains(&name.as_str())).collect();
    json!({
        "url": format!("{endpoint}{}", request.path), "headers": headers,
        "operation": operation(request.header("x-amz-target")),
        "body": String::from_utf8_lossy(&request.body),
    })
}

/// An account with one project, one build of it and one cache; neither ever changes.
fn answer(target: &str) -> Option<Value> {
    let id = "app:8745a7a9-c340-456a-9166-edf953571b00";
    let commit = "a".repeat(40);
    let variable = |name: &str, value: &str| json!({ "name": name, "value": value, "type": "PLAINTEXT" });
    let build = json!({
        "id": id, "arn": format!("arn:aws:codebuild:us-east-1:123456789012:build/{id}"), "projectName": "app",
        "buildStatus": "SUCCEEDED", "startTime": TIME, "endTime": TIME + 60, "sourceVersion": commit,
        "resolvedSourceVersion": commit, "buildComplete": true, "currentPhase": "COMPLETED",
        "environment": {
            "type": "LINUX_CONTAINER", "image": "aws/codebuild/standard:7.0", "computeType": "BUILD_GENERAL1_SMALL",
            "environmentVariables": [variable("STOKER_LINE", "main"), variable("STOKER_COMMIT", &commit)],
        },
    });
    let digest = format!("sha256:{}", "5".repeat(64));
    let layer = |number: usize| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": 1000 + number,
            "digest": format!("sha256:{number:064x}"),
            "annotations": { "buildkit/createdat": "2026-11-20T09:30:15.123456789Z" },
        })
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.buildkit.cacheconfig.v0", "digest": digest, "size": 5000 },
        "layers": (0..15).map(layer).collect::<Vec<_>>(),
    });
    let blobs = (0..15).map(|number| format!("sha256:{number:064x}")).chain([digest.clone()]);
    let available = blobs.map(|digest| json!({ "layerDigest": digest, "layerAvailability": "AVAILABLE" }));
    let image = json!({ "imageDigest": digest, "imageTag": "app.main" });
    Some(match operation(target) {
        "ListBuildsForProject" => json!({ "ids": [id] }),
        "BatchGetBuilds" => json!({ "builds": [build] }),
        "ListProjects" => json!({ "projects": ["app"] }),
        "StartBuild" => json!({ "build": build }),
        "BatchGetImage" => json!({
            "images": [{
                "registryId": "123456789012", "repositoryName": "stoker/app", "imageId": image,
                "imageManifest": manifest.to_string(), "imageManifestMediaType": manifest["mediaType"],
            }],
            "failures": [],
        }),
        "BatchCheckLayerAvailability" => json!({ "layers": available.collect::<Vec<_>>(), "failures": [] }),
        "DescribeImages" => json!({
            "imageDetails": [{
                "registryId": "123456789012", "repositoryName": "stoker/app", "imageDigest": digest,
                "imageTags": ["app.main"], "imageSizeInBytes": 15000, "imagePushedAt": TIME,
            }],
        }),
        "PutEvents" => json!({ "FailedEntryCount": 0, "Entries": [{ "EventId": "1" }] }),
        "GetSecretValue" => json!({ "Name": "webhook", "SecretString": "a secret for examples" }),
        _ => return None,
    })
}
