//! `stoker onboard` in an account that others wrote: projects of many kinds, three of them taken into service and out
//! of it. What the account says afterwards is what it said before.
//!
//! `cargo xtask test` says where ministack is (`STOKER_TEST_MINISTACK`).
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that talks")]

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_codebuild::types::{
    ArtifactsType, ComputeType, EnvironmentType, ProjectArtifacts, ProjectEnvironment, ProjectSource,
    SourceType,
};
use aws_sdk_ecr::config::{Credentials, SharedCredentialsProvider};
use serde_json::json;

/// Longer than it takes to start.
const PATIENCE: Duration = Duration::from_mins(1);
const SPEC: &str =
    "version: 0.2\nphases:\n  build:\n    commands:\n      - docker build -t $IMAGE . # ours\n";
const POLICY: &str = "version: 1\nprojects:\n  - name: other\n    repository: github.com/example/other\n";

/// An AWS of its own, with a directory.
struct TestEnvironment {
    directory: PathBuf,
    port: u16,
    process: Child,
    config: SdkConfig,
}

impl TestEnvironment {
    fn start() -> Option<Self> {
        let Some(program) = std::env::var_os("STOKER_TEST_MINISTACK") else {
            println!("SKIPPED: STOKER_TEST_MINISTACK names no program; `cargo xtask test` does");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = std::env::temp_dir().join(format!("stoker-onboard-{port}"));
        std::fs::create_dir_all(&directory).unwrap();
        let process = Command::new(program)
            .args(["ministack.app:app", "--bind", &format!("127.0.0.1:{port}")])
            .env("TMPDIR", &directory)
            .envs([("GATEWAY_PORT", port.to_string().as_str()), ("MINISTACK_HOST", "127.0.0.1")])
            .envs([
                ("DOCKER_HOST", "unix:///nonexistent.sock"),
                ("IOT_MTLS_ENABLED", "0"),
                ("SFTP_ENABLED", "0"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < PATIENCE, "it does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let credentials = Credentials::new("test", "test", None, None, "test");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(format!("http://127.0.0.1:{port}"))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        std::fs::write(directory.join("policy.yaml"), POLICY).unwrap();
        Some(Self { directory, port, process, config })
    }

    fn onboard(&self, line: &str) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_stoker"))
            .arg("onboard")
            .args(line.split_whitespace())
            .current_dir(&self.directory)
            .env_clear()
            .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port))
            .envs([
                ("AWS_REGION", "us-east-1"),
                ("AWS_ACCESS_KEY_ID", "test"),
                ("AWS_SECRET_ACCESS_KEY", "test"),
            ])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{line}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// The role and the policy of builds, and a stack that says what Stoker's does.
    async fn deploy(&self) -> String {
        let iam = aws_sdk_iam::Client::new(&self.config);
        let trust = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
            "Principal": {"Service": "codebuild.amazonaws.com"}}]});
        let role =
            iam.create_role().role_name("builds").assume_role_policy_document(trust.to_string()).send().await;
        let role = role.unwrap().role.unwrap().arn;
        let allowed = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Resource": "*",
            "Action": "ecr:GetAuthorizationToken"}]});
        let policy =
            iam.create_policy().policy_name("stoker-BuildPolicy").policy_document(allowed.to_string());
        let policy = policy.send().await.unwrap().policy.unwrap().arn.unwrap();
        let output = |value: &str| json!({ "Value": value });
        let template = json!({
            "Parameters": {"SafetyNetDays": {"Type": "Number", "Default": 30}},
            "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
            "Outputs": {"BuildPolicy": output(&policy), "WebhookUrl": output("https://hook.example/"),
                "WebhookSecret": output("secret"), "ResolveCacheFunction": output("stoker-resolve-cache")},
        });
        let cloudformation = aws_sdk_cloudformation::Client::new(&self.config);
        cloudformation
            .create_stack()
            .stack_name("stoker")
            .template_body(template.to_string())
            .send()
            .await
            .unwrap();
        role
    }

    async fn project(&self, name: &str, kind: EnvironmentType, spec: &str, role: &str) {
        let location = format!("https://github.com/example/{name}.git");
        let source = ProjectSource::builder().r#type(SourceType::Github).location(location).buildspec(spec);
        let environment = ProjectEnvironment::builder()
            .r#type(kind)
            .image("aws/codebuild/standard:7.0")
            .compute_type(ComputeType::BuildGeneral1Small)
            .privileged_mode(true);
        let codebuild = aws_sdk_codebuild::Client::new(&self.config);
        let asked = codebuild
            .create_project()
            .name(name)
            .source(source.build().unwrap())
            .artifacts(ProjectArtifacts::builder().r#type(ArtifactsType::NoArtifacts).build().unwrap())
            .environment(environment.build().unwrap())
            .service_role(role);
        asked.send().await.unwrap();
    }

    /// What the account says of itself, and what is in the directory.
    async fn seen(&self, projects: &[&str]) -> BTreeMap<String, String> {
        let mut seen = BTreeMap::new();
        let codebuild = aws_sdk_codebuild::Client::new(&self.config);
        let names = projects.iter().map(|name| (*name).to_owned()).collect();
        let found =
            codebuild.batch_get_projects().set_names(Some(names)).send().await.unwrap().projects.unwrap();
        for mut project in found {
            project.last_modified = None;
            seen.insert(format!("project {}", project.name().unwrap()), format!("{project:?}"));
        }
        let ecr = aws_sdk_ecr::Client::new(&self.config);
        for repository in ecr.describe_repositories().send().await.unwrap().repositories() {
            seen.insert(
                format!("repository {}", repository.repository_name().unwrap()),
                format!("{repository:?}"),
            );
        }
        let iam = aws_sdk_iam::Client::new(&self.config);
        let attached = iam.list_attached_role_policies().role_name("builds").send().await.unwrap();
        seen.insert("role".to_owned(), format!("{:?}", attached.attached_policies()));
        for name in ["policy.yaml", "onboard"] {
            let path = self.directory.join(name);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|_| path.exists().to_string());
            seen.insert(name.to_owned(), text);
        }
        seen
    }
}

impl Drop for TestEnvironment {
    fn drop(&mut self) {
        drop(Command::new("kill").args(["-KILL", "--", &format!("-{}", self.process.id())]).status());
        drop(self.process.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

#[tokio::test]
async fn an_account_is_as_before_once_what_was_taken_into_service_is_taken_out() {
    let Some(environment) = TestEnvironment::start() else { return };
    let role = environment.deploy().await;
    let linux = || EnvironmentType::LinuxContainer;
    let of = |commands: &str| SPEC.replace("docker build -t $IMAGE .", commands);
    let projects = [
        ("team-a", linux(), SPEC.to_owned()),
        ("team-b", linux(), SPEC.to_owned()),
        ("app", linux(), SPEC.to_owned()),
        ("lambda", EnvironmentType::LinuxLambdaContainer, SPEC.to_owned()),
        ("windows", EnvironmentType::WindowsServer2019Container, SPEC.to_owned()),
        ("batch", linux(), format!("{SPEC}batch: {{ build-list: [] }}\n")),
        ("compose", linux(), of("docker compose build")),
        ("two", linux(), of("docker build -t a a && docker build -t b b")),
        ("tests", linux(), of("cargo test")),
        ("in-source", linux(), "ci/buildspec.yml".to_owned()),
    ];
    for (name, kind, spec) in &projects {
        environment.project(name, kind.clone(), spec, &role).await;
    }
    let names: Vec<&str> = projects.iter().map(|(name, ..)| *name).collect();
    let before = environment.seen(&names).await;
    let audit = environment.onboard("audit");
    assert!(audit.contains("10 projects in us-east-1, 3 ready"), "{audit}");
    environment.onboard("plan --policy policy.yaml");
    assert_eq!(environment.seen(&names).await, before, "what only reads changes nothing");
    environment.onboard("apply --policy policy.yaml --project team-* --yes");
    environment.onboard("apply --policy policy.yaml --project app --yes");
    let applied = environment.seen(&names).await;
    let changed: Vec<&String> = applied.keys().filter(|key| applied.get(*key) != before.get(*key)).collect();
    let repositories =
        ["repository stoker/app", "repository stoker/team-a", "repository stoker/team-b", "role"];
    let expected = ["onboard", "policy.yaml", "project app", "project team-a", "project team-b"];
    assert_eq!(changed, [&expected[..], &repositories].concat());
    environment.onboard("apply --policy policy.yaml --project app --yes");
    assert_eq!(environment.seen(&names).await, applied, "once more");
    environment.onboard("undo --project app --yes");
    environment.onboard("undo --project team-* --yes");
    assert_eq!(environment.seen(&names).await, before);
}
