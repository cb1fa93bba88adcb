//! ECR, CodeBuild, IAM, SQS and stacks in memory, as their JSON and query APIs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use buildkit_cache::CONFIG_MEDIA_TYPE;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stoker_core::names::Digest;

use crate::run::{Home, Ran};

const MOST_IDS: usize = 100;
const MOST_ON_A_PAGE: usize = 1000;

/// An image as ECR has it.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) manifest: String,
    pub(crate) tags: Vec<String>,
    pub(crate) pushed_at: Timestamp,
    pub(crate) pulled_at: Option<Timestamp>,
}

pub(crate) struct Stack {
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) parameters: BTreeMap<String, String>,
}

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) attributes: Value,
    /// As `ReceiveMessage` answers them, each with whether it is hidden.
    pub(crate) messages: Vec<(Value, bool)>,
    /// What was sent to it: the bodies, and the message groups.
    pub(crate) sent: Vec<(String, Option<String>)>,
}

type Change = Box<dyn FnOnce(&mut TestEnvironment) + Send>;

#[derive(Default)]
pub(crate) struct TestEnvironment {
    /// By repository, in the order of pushing.
    pub(crate) images: BTreeMap<String, Vec<(String, Image)>>,
    pub(crate) projects: Vec<String>,
    /// As `BatchGetBuilds` answers them, the newest first.
    pub(crate) builds: Vec<Value>,
    /// Calls that fail: the name, how many of them, and the error's code. One with a page fails at that page.
    pub(crate) failing: Vec<(String, usize, &'static str)>,
    /// Manifests that are listed and cannot be read.
    pub(crate) unreadable: Vec<String>,
    /// What ECR says instead of deleting.
    pub(crate) undeletable: BTreeMap<String, String>,
    /// What somebody else does just before the first of these calls is answered.
    pub(crate) meanwhile: Option<(String, Change)>,
    /// What ECR says of repositories, by name: `DescribeRepositories`' words.
    pub(crate) repositories: BTreeMap<String, Value>,
    /// Texts of lifecycle policies and of repository policies.
    pub(crate) lifecycles: BTreeMap<String, String>,
    pub(crate) access: BTreeMap<String, String>,
    /// Images that nobody can pull.
    pub(crate) archived: Vec<String>,
    /// Layers that cannot be had.
    pub(crate) missing_layers: Vec<String>,
    pub(crate) blob_mounting: String,
    /// As `BatchGetProjects` answers them.
    pub(crate) codebuild: Vec<Value>,
    /// What roles may do: the role's ARN, the action, the resource.
    pub(crate) allowed: Vec<(String, String, String)>,
    pub(crate) stack: Option<Stack>,
    /// The stack's resources with kind and id, and the messages of its queues.
    pub(crate) resources: Vec<(String, String, String)>,
    pub(crate) messages: BTreeMap<String, u64>,
    /// Queues with their messages, by their addresses.
    pub(crate) queues: BTreeMap<String, Queue>,
    /// The lines of builds' logs, by their streams.
    pub(crate) build_logs: BTreeMap<String, Vec<String>>,
    /// What a query of the logs answers: messages, each with its log group.
    pub(crate) log: Vec<(String, String)>,
    /// The log of any build.
    pub(crate) build_log: String,
    /// The queries that were asked, as JSON.
    pub(crate) queries: Vec<Value>,
    /// By how many seconds its clock is behind.
    pub(crate) is_behind: i64,
    /// The tags of repositories, and the managed policies of roles.
    pub(crate) tags: BTreeMap<String, Value>,
    pub(crate) attached: BTreeMap<String, Vec<String>>,
    /// The stack's outputs.
    pub(crate) outputs: BTreeMap<String, String>,
    /// Kills whoever calls.
    pub(crate) fuse: Option<Arc<Fuse>>,
    /// The names of the calls, in their order.
    pub(crate) calls: Vec<String>,
}

/// Counts calls that leave a process, and ends the process after one of them.
#[derive(Default)]
pub(crate) struct Fuse {
    pub(crate) calls: AtomicUsize,
    /// The call after whose effect the process dies, by its number from one.
    pub(crate) at: Option<usize>,
    pub(crate) is_blown: AtomicBool,
}

impl Fuse {
    pub(crate) fn at(call: Option<usize>) -> Arc<Self> {
        Arc::new(Self { at: call, ..Self::default() })
    }

    /// Whether this call is one that nobody hears the answer of.
    pub(crate) fn blows(&self) -> bool {
        let is_last = Some(self.calls.fetch_add(1, Ordering::SeqCst) + 1) == self.at;
        self.is_blown.fetch_or(is_last, Ordering::SeqCst);
        is_last
    }
}

/// An account of AWS.
pub(crate) struct Account {
    pub(crate) address: SocketAddr,
    env: Arc<Mutex<TestEnvironment>>,
    home: Home,
}

pub(crate) fn days_ago(days: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(24 * days)
}

/// A cache's manifest with these layers, each with its size in MB.
pub(crate) fn cache(name: &str, layers: &[(&str, u64)], annotations: &Value) -> String {
    let layers: Vec<Value> = layers
        .iter()
        .map(|(layer, megabytes)| {
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::of(layer.as_bytes()), "size": megabytes * 1_000_000})
        })
        .collect();
    let config = json!({"mediaType": CONFIG_MEDIA_TYPE, "digest": Digest::of(format!("config of \
         {name}").as_bytes()), "size": 1000});
    json!({"schemaVersion": 2, "config": config, "layers": layers, "annotations": annotations}).to_string()
}

impl Account {
    pub(crate) async fn start() -> Self {
        let env = Arc::new(Mutex::new(TestEnvironment::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&env));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, env, home: Home::new() }
    }

    pub(crate) fn env(&self) -> MutexGuard<'_, TestEnvironment> {
        self.env.lock().unwrap()
    }

    /// Pushes an image; answers its digest.
    pub(crate) fn push(&self, repository: &str, manifest: &str, tags: &[&str], days: i64) -> String {
        let digest = Digest::of(manifest.as_bytes()).to_string();
        let image = Image {
            manifest: manifest.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            pushed_at: days_ago(days),
            pulled_at: None,
        };
        self.env().images.entry(repository.to_owned()).or_default().push((digest.clone(), image));
        digest
    }

    /// The digests of a repository.
    pub(crate) fn digests(&self, repository: &str) -> Vec<String> {
        let mut digests: Vec<String> =
            self.env().images[repository].iter().map(|(digest, _)| digest.clone()).collect();
        digests.sort();
        digests
    }

    /// How many calls of a name there were.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.env().calls.iter().filter(|call| *call == name).count()
    }

    pub(crate) async fn stoker(&self, policy: &str, line: &str) -> Ran {
        self.stoker_in(policy, line, &[]).await
    }

    /// Runs it in this account under a policy, which the command line calls `POLICY`.
    pub(crate) async fn stoker_in(&self, policy: &str, line: &str, more: &[(&str, &str)]) -> Ran {
        let path = self.home.path().join("policy.yaml");
        std::fs::write(&path, policy).unwrap();
        let path = path.to_str().unwrap().to_owned();
        let words: Vec<&str> =
            line.split_whitespace().map(|word| if word == "POLICY" { path.as_str() } else { word }).collect();
        let mut environment: Vec<(&str, String)> = vec![
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_REGION", "eu-west-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ];
        environment.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        environment.extend(
            more.iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        self.home.stoker_in(&environment, &words, "").await
    }
}

/// `cargo xtask test` holds what is asked against AWS's own models.
fn record(target: Option<&str>, body: &[u8]) {
    let Some(file) = std::env::var_os("STOKER_TEST_REQUESTS") else { return };
    let line = json!({ "target": target, "body": std::str::from_utf8(body).unwrap() });
    let mut file = std::fs::File::options().create(true).append(true).open(file).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

async fn answer(State(env): State<Arc<Mutex<TestEnvironment>>>, headers: HeaderMap, body: Bytes) -> Response {
    let response = answered(&env, &headers, &body);
    let fuse = env.lock().unwrap().fuse.clone();
    if fuse.is_some_and(|fuse| fuse.blows()) {
        std::future::pending::<()>().await;
    }
    response
}

#[expect(clippy::too_many_lines, reason = "an arm for each call")]
fn answered(env: &Mutex<TestEnvironment>, headers: &HeaderMap, body: &[u8]) -> Response {
    let target = headers.get("x-amz-target").map(|target| target.to_str().unwrap().to_owned());
    record(target.as_deref(), body);
    let Some(target) = target else { return answer_query(env, body) };
    let asked: Value = serde_json::from_slice(body).unwrap();
    let name = target.rsplit_once('.').unwrap().1;
    // What `apply` looks at once more is another call to the tests.
    let name = match (name, asked.get("imageIds"), asked["nextToken"].as_str()) {
        ("DescribeImages", Some(_), _) => "DescribeImages again".to_owned(),
        ("DescribeImages", None, Some(page)) => format!("DescribeImages from {page}"),
        _ => name.to_owned(),
    };
    let mut env = env.lock().unwrap();
    env.calls.push(name.clone());
    if env.meanwhile.as_ref().is_some_and(|(call, _)| *call == name) {
        let (_, change) = env.meanwhile.take().unwrap();
        change(&mut env);
    }
    if let Some((_, times, code)) =
        env.failing.iter_mut().find(|(call, times, _)| *call == name && *times > 0)
    {
        *times -= 1;
        return error(code);
    }
    let answered = match target.as_str() {
        "AmazonEC2ContainerRegistry_V20150921.DescribeImages" => env.describe(&asked),
        "AmazonEC2ContainerRegistry_V20150921.BatchGetImage" => env.get(&asked),
        "AmazonEC2ContainerRegistry_V20150921.BatchDeleteImage" => env.delete(&asked),
        "CodeBuild_20161006.ListBuildsForProject" => env.list_builds(&asked),
        "CodeBuild_20161006.BatchGetBuilds" => env.get_builds(&asked),
        "Logs_20140328.GetLogEvents" => {
            // A page for each line, and at the end the same token again.
            let of_stream = asked["logStreamName"].as_str().and_then(|stream| env.build_logs.get(stream));
            let any: Vec<String> = env.build_log.lines().map(str::to_owned).collect();
            let lines = of_stream.unwrap_or(&any);
            let at: usize = asked["nextToken"].as_str().and_then(|token| token.parse().ok()).unwrap_or(0);
            let events: Vec<Value> = lines
                .get(at)
                .map(|line| json!({"timestamp": 0, "message": line, "ingestionTime": 0}))
                .into_iter()
                .collect();
            Ok(json!({"events": events, "nextForwardToken": (at + events.len()).to_string()}))
        }
        "AmazonEC2ContainerRegistry_V20150921.GetAccountSetting" => {
            Ok(json!({"name": asked["name"], "value": env.blob_mounting}))
        }
        "AmazonEC2ContainerRegistry_V20150921.DescribeRepositories" => {
            let found = env.repositories.get(asked["repositoryNames"][0].as_str().unwrap());
            found.map(|found| json!({"repositories": [found]})).ok_or("RepositoryNotFoundException")
        }
        "AmazonEC2ContainerRegistry_V20150921.GetLifecyclePolicy" => {
            let text = env.lifecycles.get(asked["repositoryName"].as_str().unwrap());
            text.map(|text| json!({"lifecyclePolicyText": text})).ok_or("LifecyclePolicyNotFoundException")
        }
        "AmazonEC2ContainerRegistry_V20150921.GetRepositoryPolicy" => {
            let text = env.access.get(asked["repositoryName"].as_str().unwrap());
            text.map(|text| json!({"policyText": text})).ok_or("RepositoryPolicyNotFoundException")
        }
        "AmazonEC2ContainerRegistry_V20150921.BatchCheckLayerAvailability" => env.layers(&asked),
        "CodeBuild_20161006.BatchGetProjects" => {
            let names = asked["names"].as_array().unwrap();
            let found = env.codebuild.iter().filter(|project| names.contains(&project["name"]));
            Ok(json!({"projects": found.collect::<Vec<_>>()}))
        }
        "AmazonSQS.GetQueueAttributes" if asked["AttributeNames"][0] == "All" => {
            env.queue(&asked).map(|queue| json!({"Attributes": queue.attributes}))
        }
        "AmazonSQS.ReceiveMessage" => env.receive(&asked),
        "AmazonSQS.ChangeMessageVisibilityBatch" => env.give_back(&asked),
        "AmazonSQS.DeleteMessage" => env.queue(&asked).map(|queue| {
            queue.messages.retain(|(message, _)| message["ReceiptHandle"] != asked["ReceiptHandle"]);
            json!({})
        }),
        "AmazonSQS.SendMessage" => env.queue(&asked).map(|queue| {
            let group = asked["MessageGroupId"].as_str().map(str::to_owned);
            queue.sent.push((asked["MessageBody"].as_str().unwrap().to_owned(), group));
            json!({"MessageId": "sent"})
        }),
        "AmazonSQS.StartMessageMoveTask" => {
            env.calls.push(format!("moves {}", asked["SourceArn"].as_str().unwrap()));
            Ok(json!({"TaskHandle": "task"}))
        }
        "Logs_20140328.StartQuery" => {
            env.queries.push(asked.clone());
            Ok(json!({"queryId": "query"}))
        }
        "Logs_20140328.GetQueryResults" => Ok(env.results()),
        // A line a page; at the end the token stays the same.
        "AmazonSQS.GetQueueAttributes" => {
            let messages = env.messages.get(asked["QueueUrl"].as_str().unwrap());
            let messages = messages.ok_or("QueueDoesNotExist");
            messages.map(|n| json!({"Attributes": {"ApproximateNumberOfMessages": n.to_string()}}))
        }
        "CodeBuild_20161006.UpdateProject" => env.project(&asked["name"]).map(|project| {
            project["source"] = asked["source"].clone();
            json!({"project": project})
        }),
        "CodeBuild_20161006.DeleteWebhook" => env.project(&asked["projectName"]).and_then(|project| {
            let webhook = project.as_object_mut().unwrap().remove("webhook");
            webhook.map(|_| json!({})).ok_or("ResourceNotFoundException")
        }),
        "CodeBuild_20161006.CreateWebhook" => env.project(&asked["projectName"]).and_then(|project| {
            let mut webhook = asked.clone();
            webhook.as_object_mut().unwrap().remove("projectName");
            if project.get("webhook").is_some() {
                return Err("ResourceAlreadyExistsException");
            }
            project["webhook"] = webhook.clone();
            Ok(json!({"webhook": webhook}))
        }),
        "AmazonEC2ContainerRegistry_V20150921.CreateRepository" => env.create_repository(&asked),
        "AmazonEC2ContainerRegistry_V20150921.DeleteRepository" => {
            let name = asked["repositoryName"].as_str().unwrap();
            env.lifecycles.remove(name);
            env.images.remove(name);
            env.tags.remove(name);
            env.repositories.remove(name).map(|_| json!({})).ok_or("RepositoryNotFoundException")
        }
        "AmazonEC2ContainerRegistry_V20150921.PutLifecyclePolicy" => {
            let (name, text) =
                (asked["repositoryName"].as_str().unwrap(), asked["lifecyclePolicyText"].as_str().unwrap());
            if env.repositories.contains_key(name) {
                env.lifecycles.insert(name.to_owned(), text.to_owned());
                Ok(json!({}))
            } else {
                Err("RepositoryNotFoundException")
            }
        }
        "AmazonEC2ContainerRegistry_V20150921.ListTagsForResource" => {
            let name = asked["resourceArn"].as_str().unwrap().split_once("repository/").unwrap().1;
            Ok(json!({"tags": env.tags.get(name).cloned().unwrap_or(json!([]))}))
        }
        "secretsmanager.GetSecretValue" => Ok(json!({"Name": "secret", "SecretString": "hook-secret\n"})),
        "CodeBuild_20161006.ListProjects" => Ok(json!({"projects": env.projects})),
        other => panic!("nobody may call {other}"),
    };
    let date = Timestamp::now() - SignedDuration::from_secs(env.is_behind);
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&date).unwrap();
    let head = [("content-type", "application/x-amz-json-1.1".to_owned()), ("date", date)];
    match answered {
        Ok(json) => (head, json.to_string()).into_response(),
        Err(code) => error(code),
    }
}

/// IAM and stacks, which are asked in forms and answer XML.
fn answer_query(env: &Mutex<TestEnvironment>, body: &[u8]) -> Response {
    let form: Vec<(String, String)> = std::str::from_utf8(body)
        .unwrap()
        .split('&')
        .map(|field| field.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), unescaped(value)))
        .collect();
    let field = |name: &str| form.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str()).unwrap();
    let name = field("Action").to_owned();
    let mut env = env.lock().unwrap();
    env.calls.push(name.clone());
    let failing = env.failing.iter_mut().find(|(call, times, _)| *call == name && *times > 0);
    if let Some((_, times, code)) = failing {
        *times -= 1;
        return xml(StatusCode::FORBIDDEN, &error_xml(code, "no"));
    }
    let members: String = match name.as_str() {
        "ListAttachedRolePolicies" => match env.attached.get(field("RoleName")) {
            None => return xml(StatusCode::NOT_FOUND, &error_xml("NoSuchEntity", "no such role")),
            Some(arns) => {
                let arns = arns.iter().map(|arn| {
                    format!("<member><PolicyName>p</PolicyName><PolicyArn>{arn}</PolicyArn></member>")
                });
                format!("<AttachedPolicies>{}</AttachedPolicies>", arns.collect::<String>())
            }
        },
        "AttachRolePolicy" | "DetachRolePolicy" => {
            let (role, policy) = (field("RoleName").to_owned(), field("PolicyArn").to_owned());
            let Some(arns) = env.attached.get_mut(&role) else {
                return xml(StatusCode::NOT_FOUND, &error_xml("NoSuchEntity", "no such role"));
            };
            let had = arns.len();
            arns.retain(|arn| *arn != policy);
            if name == "AttachRolePolicy" {
                arns.push(policy);
            } else if arns.len() == had {
                return xml(StatusCode::NOT_FOUND, &error_xml("NoSuchEntity", "it is not attached"));
            }
            String::new()
        }
        "SimulatePrincipalPolicy" => {
            let (role, resource) = (field("PolicySourceArn"), field("ResourceArns.member.1"));
            let actions = form.iter().filter(|(name, _)| name.starts_with("ActionNames.member."));
            let decided = actions.map(|(_, action)| {
                let may = (role.to_owned(), action.clone(), resource.to_owned());
                let decision = if env.allowed.contains(&may) { "allowed" } else { "implicitDeny" };
                format!(
                    "<member><EvalActionName>{action}</EvalActionName><EvalDecision>{decision}</EvalDecision></member>"
                )
            });
            format!("<EvaluationResults>{}</EvaluationResults>", decided.collect::<String>())
        }
        "DescribeStacks" => match &env.stack {
            Some(Stack { name, status, parameters }) if name == field("StackName") => format!(
                "<Stacks><member><StackName>{name}</StackName><StackStatus>{status}</StackStatus>\
                 <CreationTime>2026-01-01T00:00:00Z</CreationTime><Parameters>{}</Parameters>\
                 <Outputs>{}</Outputs></member></Stacks>",
                members("Parameter", parameters),
                members("Output", &env.outputs)
            ),
            _ => {
                let message = format!("Stack with id {} does not exist", field("StackName"));
                return xml(StatusCode::BAD_REQUEST, &error_xml("ValidationError", &message));
            }
        },
        "ListStackResources" => {
            let resources = env.resources.iter().map(|(name, kind, id)| {
                format!(
                    "<member><LogicalResourceId>{name}</LogicalResourceId><PhysicalResourceId>{id}</PhysicalResourceId>\
                     <ResourceType>{kind}</ResourceType><ResourceStatus>CREATE_COMPLETE</ResourceStatus>\
                     <LastUpdatedTimestamp>2026-01-01T00:00:00Z</LastUpdatedTimestamp></member>"
                )
            });
            format!("<StackResourceSummaries>{}</StackResourceSummaries>", resources.collect::<String>())
        }
        other => panic!("nobody may call {other}"),
    };
    xml(StatusCode::OK, &format!("<{name}Response><{name}Result>{members}</{name}Result></{name}Response>"))
}

fn error_xml(code: &str, message: &str) -> String {
    format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
    )
}

fn xml(status: StatusCode, text: &str) -> Response {
    (status, [("content-type", "text/xml")], text.to_owned()).into_response()
}

/// A form's value without its `%` and `+`.
fn unescaped(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, more @ ..] = rest {
        rest = more;
        match first {
            b'%' => {
                bytes.extend(hex::decode(&more[..2]).unwrap());
                rest = &more[2..];
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Keys and values as stacks tell them.
fn members(what: &str, all: &BTreeMap<String, String>) -> String {
    let member = |(key, value): (&String, &String)| {
        format!("<member><{what}Key>{key}</{what}Key><{what}Value>{value}</{what}Value></member>")
    };
    all.iter().map(member).collect::<Vec<_>>().concat()
}

fn error(code: &str) -> Response {
    let json = json!({"__type": code, "message": "no \u{1b}[31mred"});
    let head = [("content-type", "application/x-amz-json-1.1")];
    (StatusCode::BAD_REQUEST, head, json.to_string()).into_response()
}

fn ids(asked: &Value) -> Result<Vec<&str>, &'static str> {
    let ids = asked["imageIds"].as_array().ok_or("InvalidParameterException")?;
    if ids.is_empty() || ids.len() > MOST_IDS {
        return Err("InvalidParameterException");
    }
    Ok(ids.iter().map(|id| id["imageDigest"].as_str().unwrap()).collect())
}

#[expect(clippy::cast_precision_loss, reason = "AWS's times are such numbers")]
fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

fn detail(digest: &str, image: &Image, is_archived: bool) -> Value {
    let manifest: Value = serde_json::from_str(&image.manifest).unwrap_or_default();
    let layers = manifest["layers"].as_array().into_iter().flatten();
    let size: u64 = layers.filter_map(|layer| layer["size"].as_u64()).fold(0, u64::saturating_add);
    let mut detail = json!({"registryId": "123456789012", "imageDigest": digest,
        "imageSizeInBytes": size.min(i64::MAX as u64),
        "imagePushedAt": seconds(image.pushed_at), "imageStatus": if is_archived { "ARCHIVED" } else { "ACTIVE" }});
    if !image.tags.is_empty() {
        detail["imageTags"] = json!(image.tags);
    }
    if let Some(pulled_at) = image.pulled_at {
        detail["lastRecordedPullTime"] = json!(seconds(pulled_at));
    }
    detail
}

impl TestEnvironment {
    fn of(&self, asked: &Value) -> Result<&[(String, Image)], &'static str> {
        let images = self.images.get(asked["repositoryName"].as_str().unwrap_or_default());
        images.map(Vec::as_slice).ok_or("RepositoryNotFoundException")
    }

    fn detail(&self, digest: &String, image: &Image) -> Value {
        detail(digest, image, self.archived.contains(digest))
    }

    fn describe(&self, asked: &Value) -> Result<Value, &'static str> {
        let images = self.of(asked)?;
        if asked.get("imageIds").is_some() {
            let find =
                |id: &str| images.iter().find(|(digest, _)| digest == id).ok_or("ImageNotFoundException");
            let found: Result<Vec<_>, _> = ids(asked)?.into_iter().map(find).collect();
            let details: Vec<Value> =
                found?.into_iter().map(|(digest, image)| self.detail(digest, image)).collect();
            return Ok(json!({"imageDetails": details}));
        }
        let most = asked["maxResults"].as_u64().map_or(MOST_IDS, |most| usize::try_from(most).unwrap());
        let from: usize = asked["nextToken"].as_str().map_or(0, |token| token.parse().unwrap());
        let is_asked = |digest: &String| match asked["filter"]["imageStatus"].as_str() {
            None | Some("ACTIVE") => !self.archived.contains(digest),
            Some("ARCHIVED") => self.archived.contains(digest),
            Some("ANY") => true,
            Some(_) => false,
        };
        let images: Vec<&(String, Image)> = images.iter().filter(|(digest, _)| is_asked(digest)).collect();
        let to = (from + most.min(MOST_ON_A_PAGE)).min(images.len());
        let details: Vec<Value> =
            images[from..to].iter().map(|(digest, image)| self.detail(digest, image)).collect();
        let mut page = json!({"imageDetails": details});
        if to < images.len() {
            page["nextToken"] = json!(to.to_string());
        }
        Ok(page)
    }

    /// Images by their tags, which are answered with the tag.
    fn get_tagged(&self, asked: &Value) -> Result<Value, &'static str> {
        let all = self.of(asked)?;
        let (mut images, mut failures) = (Vec::new(), Vec::new());
        for tag in asked["imageIds"].as_array().unwrap().iter().map(|id| id["imageTag"].as_str().unwrap()) {
            match all.iter().find(|(_, image)| image.tags.iter().any(|of| of == tag)) {
                Some((digest, image)) => images.push(
                    json!({"imageId": {"imageDigest": digest, "imageTag": tag}, "imageManifest": image.manifest}),
                ),
                None => failures.push(json!({"imageId": {"imageTag": tag}, "failureCode": "ImageNotFound"})),
            }
        }
        Ok(json!({"images": images, "failures": failures}))
    }

    fn get(&self, asked: &Value) -> Result<Value, &'static str> {
        if asked["imageIds"][0].get("imageTag").is_some() {
            return self.get_tagged(asked);
        }
        let known: BTreeMap<&str, &Image> =
            self.of(asked)?.iter().map(|(digest, image)| (digest.as_str(), image)).collect();
        let (mut images, mut failures) = (Vec::new(), Vec::new());
        for id in ids(asked)? {
            match known.get(id).filter(|_| !self.unreadable.iter().any(|digest| digest == id)) {
                Some(image) => {
                    images.push(json!({"imageId": {"imageDigest": id}, "imageManifest": image.manifest}));
                }
                None => {
                    failures.push(json!({"imageId": {"imageDigest": id}, "failureCode": "ImageNotFound"}));
                }
            }
        }
        Ok(json!({"images": images, "failures": failures}))
    }

    fn delete(&mut self, asked: &Value) -> Result<Value, &'static str> {
        self.of(asked)?;
        let ids = ids(asked)?;
        let images = self.images.get_mut(asked["repositoryName"].as_str().unwrap()).unwrap();
        let (mut gone, mut failures) = (Vec::new(), Vec::new());
        for id in ids {
            if let Some(why) = self.undeletable.get(id) {
                failures.push(json!({"imageId": {"imageDigest": id},
                    "failureCode": "ImageReferencedByManifestList", "failureReason": why}));
            } else {
                images.retain(|(digest, _)| digest != id);
                gone.push(json!({"imageDigest": id}));
            }
        }
        Ok(json!({"imageIds": gone, "failures": failures}))
    }

    fn layers(&self, asked: &Value) -> Result<Value, &'static str> {
        self.of(asked)?;
        let digests = asked["layerDigests"].as_array().ok_or("InvalidParameterException")?;
        if digests.is_empty() || digests.len() > MOST_IDS {
            return Err("InvalidParameterException");
        }
        let layers = digests.iter().map(|digest| {
            let is_missing = self.missing_layers.iter().any(|missing| digest == missing);
            let availability = if is_missing { "UNAVAILABLE" } else { "AVAILABLE" };
            json!({"layerDigest": digest, "layerAvailability": availability})
        });
        Ok(json!({"layers": layers.collect::<Vec<_>>(), "failures": []}))
    }

    fn queue(&mut self, asked: &Value) -> Result<&mut Queue, &'static str> {
        self.queues.get_mut(asked["QueueUrl"].as_str().unwrap()).ok_or("QueueDoesNotExist")
    }

    fn receive(&mut self, asked: &Value) -> Result<Value, &'static str> {
        assert!(asked["VisibilityTimeout"].as_u64().is_some_and(|seconds| seconds <= 60), "hidden for long");
        let most = usize::try_from(asked["MaxNumberOfMessages"].as_u64().unwrap()).unwrap();
        assert!(most <= 10);
        let queue = self.queue(asked)?;
        let is_fifo = queue.attributes["FifoQueue"] == "true";
        // A group of which messages are under way gives no others.
        let is_blocked = is_fifo && queue.messages.iter().any(|(_, is_hidden)| *is_hidden);
        let visible = queue.messages.iter_mut().filter(|(_, is_hidden)| !*is_hidden && !is_blocked);
        let mut received = Vec::new();
        for (message, is_hidden) in visible.take(most) {
            *is_hidden = true;
            received.push(message.clone());
        }
        Ok(json!({"Messages": received}))
    }

    fn give_back(&mut self, asked: &Value) -> Result<Value, &'static str> {
        let entries = asked["Entries"].as_array().unwrap();
        assert!(!entries.is_empty() && entries.len() <= 10);
        let queue = self.queue(asked)?;
        for entry in entries {
            assert_eq!(entry["VisibilityTimeout"], 0);
            let of_entry =
                |(message, _): &&mut (Value, bool)| message["ReceiptHandle"] == entry["ReceiptHandle"];
            queue.messages.iter_mut().find(of_entry).unwrap().1 = false;
        }
        Ok(json!({"Successful": entries.iter().map(|entry| json!({"Id": entry["Id"]})).collect::<Vec<_>>(),
                "Failed": []}))
    }

    /// The first look finds a query that runs.
    fn results(&self) -> Value {
        if self.calls.iter().filter(|call| *call == "GetQueryResults").count() < 2 {
            return json!({"status": "Running", "results": []});
        }
        let field = |name: &str, value: &str| json!({"field": name, "value": value});
        let lines =
            self.log.iter().map(|(message, group)| json!([field("@message", message), field("@log", group)]));
        json!({"status": "Complete", "results": lines.collect::<Vec<_>>()})
    }

    fn project(&mut self, name: &Value) -> Result<&mut Value, &'static str> {
        self.codebuild.iter_mut().find(|project| project["name"] == *name).ok_or("ResourceNotFoundException")
    }

    fn create_repository(&mut self, asked: &Value) -> Result<Value, &'static str> {
        let name = asked["repositoryName"].as_str().unwrap().to_owned();
        if self.repositories.contains_key(&name) {
            return Err("RepositoryAlreadyExistsException");
        }
        let found = json!({"repositoryName": name, "registryId": "123456789012",
            "repositoryArn": format!("arn:aws:ecr:eu-west-1:123456789012:repository/{name}"),
            "imageTagMutability": asked["imageTagMutability"]});
        self.repositories.insert(name.clone(), found.clone());
        self.tags.insert(name, asked["tags"].clone());
        Ok(json!({"repository": found}))
    }

    fn list_builds(&self, asked: &Value) -> Result<Value, &'static str> {
        let project = asked["projectName"].as_str().unwrap_or_default();
        if !self.projects.iter().any(|name| name == project) {
            return Err("ResourceNotFoundException");
        }
        let token = asked["nextToken"].as_str();
        // "Sort order can't be specified when passing a nextToken"
        if token.is_some() && asked.get("sortOrder").is_some() {
            return Err("InvalidInputException");
        }
        let from: usize = token.map_or(0, |token| token.parse().unwrap());
        let of_project = self.builds.iter().filter(|build| build["projectName"] == project);
        let ids: Vec<&Value> = of_project.map(|build| &build["id"]).skip(from).collect();
        let mut page = json!({"ids": ids[..ids.len().min(MOST_IDS)]});
        if ids.len() > MOST_IDS {
            page["nextToken"] = json!((from + MOST_IDS).to_string());
        }
        Ok(page)
    }

    fn get_builds(&self, asked: &Value) -> Result<Value, &'static str> {
        let ids = asked["ids"].as_array().ok_or("InvalidInputException")?;
        if ids.is_empty() || ids.len() > MOST_IDS {
            return Err("InvalidInputException");
        }
        Ok(
            json!({"builds": self.builds.iter().filter(|build| ids.contains(&build["id"])).collect::<Vec<_>>()}),
        )
    }
}

/// A build of a project that was given a cache, and told to export to a tag.
pub(crate) fn build(project: &str, number: u32, is_running: bool, reads: &str, exports: &str) -> Value {
    let variable = |name: &str, value: &str| json!({"name": name, "value": value, "type": "PLAINTEXT"});
    json!({
        "id": format!("{project}:{number}"),
        "projectName": project,
        "buildStatus": if is_running { "IN_PROGRESS" } else { "SUCCEEDED" },
        "startTime": seconds(days_ago(1)),
        "environment": {"type": "LINUX_CONTAINER", "image": "i", "computeType": "BUILD_GENERAL1_SMALL",
            "environmentVariables": [
                variable("STOKER_LINE", "branch/feature-a"),
                variable("STOKER_COMMIT", &"ab".repeat(20)),
                variable("STOKER_EXPORT", exports),
                variable("STOKER_CACHE_FROM", &format!("type=registry,ref=registry.example/stoker/app@{reads}")),
            ]},
    })
}
