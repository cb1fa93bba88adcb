//! What the deployed roles may do, as the local AWS decides it (`SimulatePrincipalPolicy`), beside what the
//! scenarios' evaluator says of the built template: two judges that nobody here wrote together.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::aws::{self, ACCOUNT, Aws, REGION};
use crate::demo::Stage;
use crate::{commands, stack};

/// How many questions both are asked.
const QUESTIONS: u64 = 300;

/// Whether both give the same answers. Those that differ are printed.
pub(crate) fn agrees(stage: &Stage) -> anyhow::Result<bool> {
    let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    let seed = env::var("STOKER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now);
    let aws = stage.setup.aws();
    let resources = resources(&aws)?;
    let mut arns = BTreeMap::from([("WebhookSecret", stage.output("WebhookSecret")?.to_owned())]);
    for (name, (kind, id)) in &resources {
        let last = id.rsplit('/').next().unwrap_or_default();
        match kind.as_str() {
            "AWS::SQS::Queue" => drop(arns.insert(name, aws::queue_arn(last))),
            "AWS::ECR::Repository" => {
                drop(arns.insert(name, format!("arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{id}")));
            }
            _ => {}
        }
    }
    let place = json!({
        "template": stack::build_dir().join("template.yaml"), "stack": stack::NAME, "account": ACCOUNT,
        "region": REGION, "parameters": BTreeMap::from(crate::demo::PARAMETERS), "arns": arns, "seed": seed,
        "number": QUESTIONS,
    });
    let questions = judged(&place)?;
    let (mut allowed, mut differ) = (0, String::new());
    for question in &questions {
        let text = |name: &str| question[name].as_str().unwrap_or_default();
        let (_, role) =
            resources.get(text("role")).with_context(|| format!("there is no {}", text("role")))?;
        let may = aws.may(role, text("action"), text("resource"))?;
        allowed += usize::from(may);
        if question["may"] != may {
            writeln!(differ, "    the local AWS says {may}, the scenarios {question}")?;
        }
    }
    print!("{differ}");
    println!("    STOKER_SEED={seed}: {} questions, {allowed} of them allowed", questions.len());
    ensure!(allowed > 0 && allowed < questions.len(), "the questions are of one kind");
    Ok(differ.is_empty())
}

/// The questions, with the answers of the scenarios' evaluator.
fn judged(place: &Value) -> anyhow::Result<Vec<Value>> {
    let judge = commands::programs()?.join("examples/judge");
    let mut child = Command::new(&judge)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", judge.display()))?;
    child.stdin.take().context("no standard input")?.write_all(place.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the scenarios' evaluator does not understand the built template");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The stack's resources by their names in the template: type, and what AWS calls them.
fn resources(aws: &Aws) -> anyhow::Result<BTreeMap<String, (String, String)>> {
    let parameters = [("StackName", stack::NAME)];
    let text = aws.query("cloudformation", "2010-05-15", "DescribeStackResources", &parameters)?;
    let members = text.split("<member>").skip(1).filter_map(|member| {
        let of = |name: &str| {
            let (_, rest) = member.split_once(&format!("<{name}>"))?;
            Some(rest.split_once('<')?.0.to_owned())
        };
        Some((of("LogicalResourceId")?, (of("ResourceType")?, of("PhysicalResourceId")?)))
    });
    Ok(members.collect())
}
