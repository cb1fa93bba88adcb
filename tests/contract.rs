//! What Stoker takes for granted of each service, asked of all that stands in for it: of the account in
//! memory, on which the scenarios are told, and through the adapters of ministack, to which the template is
//! deployed, and of moto, which others wrote. Where they differ AWS's documentation decides, and
//! docs/assumptions.md has the difference.
//!
//! `cargo xtask test` says where the two programs are (`STOKER_TEST_MINISTACK`, `STOKER_TEST_MOTO`).
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test that talks")]

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ecr::config::{Credentials, SharedCredentialsProvider};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use scenarios::account::{Account, OTHERS};
use scenarios::ministack;
use serde_json::{Value, json};
use stoker_aws::{Aws, AwsSettings};
use stoker_core::error::Failure;
use stoker_core::event::{Event, WebhookRefused};
use stoker_core::names::{CacheRepository, Digest, ProjectName, Scope, Tag};
use stoker_core::ports::{
    BuildOrder, BuildStatus, Catalogue, FindDigests, ListProjects, MakeRepositories, MountBlobs, Mounted,
    Ordered, Publish, ReadBlobs, ReadBuilds, ReadImages, ReadManifests, ReadSecrets, StartBuilds, StopBuilds,
    WriteImages,
};

const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &[u8] = b"{}";
const SECRETS: &str = "first\n\n second \n";
/// Longer than either takes to start.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a stand-in does otherwise than AWS, as far as a contract would show it.
#[derive(Debug, Clone, Copy, Default)]
struct Differences {
    /// An order that comes again under its token is another build.
    forgets_tokens: bool,
    /// There is no distribution API.
    has_no_registry: bool,
}

fn repository(name: &str) -> CacheRepository {
    CacheRepository::new(name).unwrap()
}

fn tag(name: &str) -> Tag {
    Tag::export(&Scope::of(&ProjectName::new("app").unwrap()), name)
}

fn manifest(name: &str) -> Bytes {
    let config = json!({ "mediaType": "application/vnd.buildkit.cacheconfig.v0", "size": CONFIG.len(),
        "digest": Digest::of(CONFIG) });
    let manifest = json!({ "schemaVersion": 2, "mediaType": TYPE, "config": config, "layers": [],
        "annotations": { "name": name } });
    Bytes::from(manifest.to_string())
}

/// ECR's own API. `push` puts a manifest under a tag, whoever does it.
async fn ecr_keeps_images(
    aws: &(impl ReadImages + ReadManifests + Catalogue + FindDigests),
    push: impl Fn(&Tag, &Bytes),
) {
    let (app, none) = (repository("stoker/app"), repository("stoker/none"));
    assert_eq!(aws.images(&none, &[tag("one")]).await.unwrap(), [None], "a repository that is not there");
    assert_eq!(aws.list(&none).await.unwrap(), []);
    assert_eq!(aws.list(&app).await.unwrap(), []);
    assert_eq!(aws.digest_of(&app, tag("one").as_str()).await.unwrap(), None);

    let (a, b) = (manifest("a"), manifest("b"));
    let digests = [Digest::of(&a), Digest::of(&b)];
    push(&tag("one"), &a);
    push(&tag("two"), &a);
    let listed = aws.list(&app).await.unwrap();
    let [image] = listed.as_slice() else { panic!("one image with two tags: {listed:?}") };
    let tags: BTreeSet<&str> = image.tags.iter().map(String::as_str).collect();
    assert_eq!(tags, [tag("one").as_str(), tag("two").as_str()].into());
    assert!(!image.is_archived);

    push(&tag("one"), &b);
    // In the order of the question, which is another than that of pushing.
    let found = aws.images(&app, &[tag("one"), tag("none"), tag("two")]).await.unwrap();
    let found: Vec<_> =
        found.into_iter().map(|image| image.map(|image| (image.digest, image.manifest))).collect();
    let [of_a, of_b] = [(digests[0].clone(), a.clone()), (digests[1].clone(), b.clone())];
    assert_eq!(found, [Some(of_b.clone()), None, Some(of_a.clone())], "a tag moves, and the others stay");
    assert_eq!(aws.digest_of(&app, tag("one").as_str()).await.unwrap(), Some(digests[1].clone()));

    let gone = Digest::of(b"gone");
    let asked = [digests[0].clone(), gone.clone(), digests[1].clone()];
    let manifests = aws.manifests(&app, &asked, 1 << 20).await.unwrap().unwrap();
    let manifests: BTreeSet<_> = manifests.into_iter().collect();
    assert_eq!(manifests, [of_a, of_b].into(), "what is not there is left out");
    let described = aws.describe(&app, &asked).await.unwrap();
    let described: BTreeSet<_> = described.into_iter().map(|image| image.digest).collect();
    assert_eq!(described, digests.iter().cloned().collect());

    assert_eq!(aws.delete(&app, &[digests[1].clone(), gone]).await.unwrap(), [], "what is gone is deleted");
    assert_eq!(aws.list(&app).await.unwrap().len(), 1);
    assert_eq!(aws.images(&app, &[tag("one")]).await.unwrap(), [None], "a tag goes with its image");
}

/// The registry, by the OCI distribution API.
async fn a_registry_keeps_blobs(aws: &(impl ReadImages + ReadBlobs + WriteImages + MountBlobs)) {
    let (app, builds) = (repository("stoker/app"), repository("stoker-builds/app"));
    let (blob, config) = (Bytes::from_static(b"a layer"), Bytes::from_static(CONFIG));
    let digest = Digest::of(&blob);
    let missing = aws.blob(&builds, &digest, 100).await.unwrap_err();
    assert_eq!(missing.failure, Failure::NotFound);
    assert_eq!(aws.mount(&app, &builds, &digest).await.unwrap(), Mounted::Missing);
    for _ in 0..2 {
        // Whoever lost the answer puts it once more.
        aws.put_blob(&builds, &digest, blob.clone()).await.unwrap();
        aws.put_blob(&builds, &Digest::of(CONFIG), config.clone()).await.unwrap();
        aws.put_image(&builds, &tag("three"), TYPE, manifest("c")).await.unwrap();
    }
    assert_eq!(aws.blob(&builds, &digest, 100).await.unwrap(), blob);
    let found = aws.images(&builds, &[tag("three")]).await.unwrap();
    assert_eq!(
        found[0].as_ref().unwrap().manifest,
        manifest("c"),
        "what is pushed is the same in ECR's own API"
    );
    assert_eq!(found[0].as_ref().unwrap().media_type, TYPE);
    assert_eq!(aws.mount(&app, &builds, &digest).await.unwrap(), Mounted::Done);
    assert_eq!(aws.blob(&app, &digest, 100).await.unwrap(), blob);
}

async fn codebuild_starts_builds(
    aws: &(impl StartBuilds + StopBuilds + ReadBuilds + ListProjects),
    differs: Differences,
) {
    let [app, none] = ["app", "none"].map(|name| ProjectName::new(name).unwrap());
    assert_eq!(aws.projects().await.unwrap(), std::slice::from_ref(&app));
    let order = |project: &ProjectName, version: &str, token: &str| BuildOrder {
        project: project.clone(),
        source_version: Some(version.to_owned()),
        environment: vec![
            ("STOKER_LINE".to_owned(), "branch/feature".to_owned()),
            ("STOKER_EXPORT".to_owned(), "app.export.1".to_owned()),
        ],
        token: token.to_owned(),
    };
    assert_eq!(aws.start(&order(&none, "main", "0")).await.unwrap(), Ordered::NoSuchProject);
    assert_eq!(aws.recent(&none, None).await.unwrap(), []);
    assert_eq!(aws.recent(&app, None).await.unwrap(), []);

    let version = format!("refs/heads/feature^{{{}}}", "1".repeat(40));
    let first = aws.start(&order(&app, &version, "1")).await.unwrap();
    let Ordered::Started(first) = first else { panic!("{first:?}") };
    if !differs.forgets_tokens {
        let again = aws.start(&order(&app, &version, "1")).await.unwrap();
        assert_eq!(again, Ordered::Started(first.clone()), "one token, one build");
        assert_eq!(aws.start(&order(&app, "main", "1")).await.unwrap(), Ordered::AlreadyOrdered);
    }
    let second = aws.start(&order(&app, "main", "2")).await.unwrap();
    let Ordered::Started(second) = second else { panic!("{second:?}") };

    let unknown = "app:00000000-0000-0000-0000-000000000000".to_owned();
    let builds = aws.get(&[second.clone(), unknown, first.clone()]).await.unwrap();
    assert_eq!(builds.len(), 2, "what is not there is left out: {builds:?}");
    let build = builds.iter().find(|build| build.id == first).unwrap();
    assert_eq!((&build.project, build.source_version.as_deref()), (&app, Some(version.as_str())));
    let since = Timestamp::now() - SignedDuration::from_hours(1);
    for since in [None, Some(since)] {
        let recent = aws.recent(&app, since).await.unwrap();
        let ids: BTreeSet<&str> = recent.iter().map(|build| build.id.as_str()).collect();
        assert_eq!(ids, [first.as_str(), second.as_str()].into());
        assert!(recent.is_sorted_by_key(|build| std::cmp::Reverse(build.started_at)), "the newest first");
    }
    for _ in 0..2 {
        aws.stop(&first).await.unwrap();
    }
    let stopped = aws.get(&[first]).await.unwrap();
    assert!(matches!(stopped[0].status, BuildStatus::Stopped | BuildStatus::Succeeded), "{stopped:?}");
}

async fn a_bus_takes_more_events_than_a_request_carries(aws: &impl Publish) {
    let event =
        Event::WebhookRefused(WebhookRefused { forge: "github".to_owned(), why: "a test".to_owned() });
    aws.publish(&vec![event; 11]).await.unwrap();
}

async fn a_repository_is_made_once(aws: &impl MakeRepositories) {
    for (name, is_immutable) in [("stoker/new", false), ("stoker-builds/new", true)] {
        assert!(aws.make_repository(&repository(name), is_immutable).await.unwrap(), "{name}");
        assert!(!aws.make_repository(&repository(name), is_immutable).await.unwrap(), "{name} once more");
    }
}

async fn a_secret_has_a_line_for_each(aws: &impl ReadSecrets) {
    let read = aws.webhook_secrets(false).await.unwrap();
    assert_eq!(read, [b"first".to_vec(), b"second".to_vec()]);
}

#[tokio::test]
async fn the_account_in_memory() {
    let account = Account::default();
    account.set_now(Timestamp::now());
    account.projects.borrow_mut().push(ProjectName::new("app").unwrap());
    account.secrets.borrow_mut().extend([b"first".to_vec(), b"second".to_vec()]);
    let contracts = async {
        ecr_keeps_images(&account, |tag, manifest| {
            account.push(
                &repository("stoker/app"),
                tag.as_str(),
                TYPE,
                manifest.clone(),
                vec![Bytes::from_static(CONFIG)],
            );
        })
        .await;
        a_registry_keeps_blobs(&account).await;
        codebuild_starts_builds(&account, Differences::default()).await;
        a_bus_takes_more_events_than_a_request_carries(&account).await;
        a_secret_has_a_line_for_each(&account).await;
        account.makes_repositories.set(true);
        a_repository_is_made_once(&account).await;
    };
    account.act(OTHERS, contracts).await.unwrap();
}

#[tokio::test]
async fn ministack() {
    let Some(server) = Server::start("STOKER_TEST_MINISTACK", ministack::serve) else {
        return;
    };
    server.keeps_the_contracts(Differences { forgets_tokens: true, has_no_registry: false }).await;
}

#[tokio::test]
async fn moto() {
    let Some(server) = Server::start("STOKER_TEST_MOTO", |program, port, _| {
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        command
    }) else {
        return;
    };
    let differs = Differences { forgets_tokens: true, has_no_registry: true };
    server.keeps_the_contracts(differs).await;
}

/// A stand-in that others wrote: a process on the loopback interface, and its files.
struct Server {
    port: u16,
    dir: PathBuf,
    process: Child,
    http: ureq::Agent,
}

impl Server {
    /// Starts the program that an environment variable names; nothing where it names none.
    fn start(variable: &str, command: impl Fn(&Path, u16, &Path) -> Command) -> Option<Self> {
        let Ok(program) = std::env::var(variable) else {
            println!("SKIPPED: {variable} names no program; `cargo xtask test` does");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = std::env::temp_dir().join(format!("stoker-contract-{port}"));
        std::fs::create_dir_all(&dir).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let mut command = command(Path::new(&program), port, &dir);
        let command =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let process = command.spawn().unwrap();
        let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false);
        let http = config.timeout_global(Some(Duration::from_secs(30))).build().new_agent();
        let mut server = Self { port, dir, process, http };
        let started = Instant::now();
        while server.http.get(format!("http://127.0.0.1:{port}/")).call().is_err() {
            let has_ended = server.process.try_wait().unwrap().is_some();
            assert!(!has_ended && started.elapsed() < PATIENCE, "{program} does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    /// Calls a service that speaks JSON, as whoever sets an account up.
    fn call(&self, service: &str, target: &str, input: &Value) {
        let credential =
            format!("AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/{service}/aws4_request");
        let answer = self
            .http
            .post(format!("http://127.0.0.1:{}/", self.port))
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", target)
            .header("authorization", format!("{credential}, SignedHeaders=host, Signature=0"))
            .send(input.to_string());
        let mut answer = answer.unwrap();
        let words = answer.body_mut().read_to_string().unwrap();
        assert!(answer.status().is_success(), "{target}: {words}");
    }

    fn adapters(&self) -> Aws {
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new(
                "test", "test", None, None, "test",
            )))
            .endpoint_url(format!("http://127.0.0.1:{}", self.port))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        let settings = AwsSettings {
            registry: format!("127.0.0.1:{}", self.port),
            bus: "stoker".to_owned(),
            webhook_secret: "webhook".to_owned(),
            safety_net_days: Some(30),
            ..AwsSettings::default()
        };
        Aws::from_config(config, settings)
    }

    async fn keeps_the_contracts(&self, differs: Differences) {
        const ECR: &str = "AmazonEC2ContainerRegistry_V20150921";
        for name in ["stoker/app", "stoker-builds/app"] {
            self.call("ecr", &format!("{ECR}.CreateRepository"), &json!({ "repositoryName": name }));
        }
        let project = json!({
            "name": "app", "source": { "type": "GITHUB", "location": "https://github.com/example/app.git" },
            "artifacts": { "type": "NO_ARTIFACTS" }, "serviceRole": "arn:aws:iam::123456789012:role/builds",
            "environment": { "type": "LINUX_CONTAINER", "image": "image", "computeType": "BUILD_GENERAL1_SMALL" },
        });
        self.call("codebuild", "CodeBuild_20161006.CreateProject", &project);
        self.call("events", "AWSEvents.CreateEventBus", &json!({ "Name": "stoker" }));
        let secret =
            json!({ "Name": "webhook", "SecretString": SECRETS, "ClientRequestToken": "1".repeat(36) });
        self.call("secretsmanager", "secretsmanager.CreateSecret", &secret);

        let aws = self.adapters();
        ecr_keeps_images(&aws, |tag, manifest| {
            let input = json!({
                "repositoryName": "stoker/app", "imageTag": tag.as_str(), "imageManifestMediaType": TYPE,
                "imageManifest": std::str::from_utf8(manifest).unwrap(), "imageDigest": Digest::of(manifest),
            });
            self.call("ecr", &format!("{ECR}.PutImage"), &input);
        })
        .await;
        if !differs.has_no_registry {
            a_registry_keeps_blobs(&aws).await;
        }
        codebuild_starts_builds(&aws, differs).await;
        a_bus_takes_more_events_than_a_request_carries(&aws).await;
        a_secret_has_a_line_for_each(&aws).await;
        a_repository_is_made_once(&aws).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The whole group: one of them has a child that does the work.
        drop(Command::new("kill").args(["-KILL", "--", &format!("-{}", self.process.id())]).status());
        drop(self.process.wait());
        drop(std::fs::remove_dir_all(&self.dir));
    }
}
