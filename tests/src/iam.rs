//! What `template.yaml` lets the deployed roles do, and IAM's judgement of it: by default nothing, and what a statement
//! denies no other allows. What this does not understand ends the test; it allows nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value, json};
use wildmatch::WildMatch;

use crate::template::{self, RULE_OF_FUNCTION, events, of_type, resource_of};

/// Where the template is deployed, and with what.
#[derive(Debug, Clone)]
pub struct Place {
    /// The stack's name.
    pub stack: String,
    /// The account's number.
    pub account: String,
    /// The region.
    pub region: String,
    /// Parameters that are not the template's defaults.
    pub parameters: BTreeMap<String, String>,
    /// ARNs of resources that AWS names, by their names in the template, where they are known.
    pub arns: BTreeMap<String, String>,
}

impl Place {
    /// The scenarios' account, with these parameters.
    #[must_use]
    pub fn with(parameters: &[(&str, &str)]) -> Self {
        let parameters =
            parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self {
            stack: "stoker".to_owned(),
            account: "123456789012".to_owned(),
            region: "us-east-1".to_owned(),
            parameters,
            arns: BTreeMap::new(),
        }
    }

    /// An ARN of this account.
    #[must_use]
    pub fn arn(&self, service: &str, resource: &str) -> String {
        format!("arn:aws:{service}:{}:{}:{resource}", self.region, self.account)
    }
}

/// An action on a resource that a statement allows or denies: patterns both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// Whether it is allowed rather than denied.
    pub allows: bool,
    /// The action, such as `ecr:PutImage`.
    pub action: String,
    /// The resource's ARN, or `*`.
    pub resource: String,
}

impl Grant {
    fn is_of(&self, action: &str, resource: &str) -> bool {
        let pattern = WildMatch::new_case_insensitive(&self.action);
        pattern.matches(action) && arn_matches(&self.resource, resource)
    }
}

/// Whether IAM lets whoever has these statements do this. A resource of `*` is that of an action that knows none.
#[must_use]
pub fn may(grants: &[Grant], action: &str, resource: &str) -> bool {
    let mut of_it = grants.iter().filter(|grant| grant.is_of(action, resource)).peekable();
    of_it.peek().is_some() && of_it.all(|grant| grant.allows)
}

/// A wildcard spans no two of an ARN's parts; the last part may have colons of its own.
fn arn_matches(pattern: &str, arn: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    let patterns: Vec<&str> = pattern.splitn(6, ':').collect();
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let pairs = || patterns.iter().zip(&parts);
    patterns.len() == parts.len() && pairs().all(|(pattern, part)| WildMatch::new(pattern).matches(part))
}

/// A function and what Lambda itself does in its name.
#[derive(Debug)]
pub struct Function {
    /// Its role, by the name in the template.
    pub role: String,
    /// The statements of its role.
    pub grants: Vec<Grant>,
    /// Each of its queues, by the name in the template.
    pub queues: BTreeSet<String>,
    /// The actions that every invocation needs: of its logs, and for what it fails at.
    pub always: Vec<(&'static str, String)>,
}

/// The template, deployed.
#[derive(Debug)]
pub struct Deployed {
    /// Where.
    pub place: Place,
    /// The roles' statements, by their names in the template.
    pub roles: BTreeMap<String, Vec<Grant>>,
    /// The functions, by their names without the stack's.
    pub functions: BTreeMap<String, Function>,
    template: Value,
}

/// The repository's template as the scenarios have it deployed: with or without repositories for builds, with
/// or without images that main is built on.
#[must_use]
pub fn deployed(isolates_builds: bool, reads_base_images: bool) -> Arc<Deployed> {
    static DEPLOYED: OnceLock<[Arc<Deployed>; 4]> = OnceLock::new();
    let all = DEPLOYED.get_or_init(|| {
        let template = template::read();
        [(false, false), (false, true), (true, false), (true, true)]
            .map(|(isolates, reads)| Arc::new(Deployed::new(template.clone(), place(isolates, reads))))
    });
    all[usize::from(isolates_builds) * 2 + usize::from(reads_base_images)].clone()
}

/// The scenarios' account with the parameters that these policies need.
#[must_use]
pub fn place(isolates_builds: bool, reads_base_images: bool) -> Place {
    // It matches all that the default does, and a resource that is written out rather than asked for differs from it.
    let mut parameters = vec![("BuildProjectPattern", "?*")];
    parameters.extend(isolates_builds.then_some(("BuildsRepositoryPrefix", "stoker-builds")));
    parameters.extend(reads_base_images.then_some(("BaseImageRepositories", "library/*")));
    Place::with(&parameters)
}

/// Every statement of a template, whatever it is part of.
#[must_use]
pub fn statements(template: &Value) -> Vec<&Map<String, Value>> {
    let within: Vec<&Value> = match template {
        Value::Object(fields) if fields.contains_key("Effect") => return vec![fields],
        Value::Object(fields) => fields.values().collect(),
        Value::Array(items) => items.iter().collect(),
        _ => Vec::new(),
    };
    within.into_iter().flat_map(statements).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a text is wanted rather than {value}"))
}

/// One or many.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        one => vec![text(one).to_owned()],
    }
}

impl Deployed {
    /// A template that was parsed, deployed.
    #[must_use]
    pub fn new(template: Value, place: Place) -> Self {
        let mut deployed = Self { place, roles: BTreeMap::new(), functions: BTreeMap::new(), template };
        let template = deployed.template.clone();
        let of_type = |wanted: &'static str| {
            let resources = template["Resources"].as_object().unwrap().iter();
            resources.filter(move |(_, resource)| resource["Type"] == wanted)
        };
        for elsewhere in ["AWS::IAM::Policy", "AWS::IAM::RolePolicy"] {
            assert_eq!(of_type(elsewhere).count(), 0, "a role's policy is written out next to it");
        }
        for (name, policy) in of_type("AWS::IAM::ManagedPolicy") {
            assert!(policy["Properties"].get("Roles").is_none(), "{name} is for no role of the stack");
        }
        for (name, role) in of_type("AWS::IAM::Role") {
            deployed.roles.insert(name.clone(), deployed.grants(name, &role["Properties"]));
        }
        for (logical, function) in of_type("AWS::Serverless::Function") {
            let properties = &function["Properties"];
            assert!(properties.get("Policies").is_none(), "{logical} has a role that is written out");
            let name = deployed.text(&properties["FunctionName"]);
            let name = name.strip_prefix(&format!("{}-", deployed.place.stack)).unwrap().to_owned();
            deployed.functions.insert(name, deployed.function(properties));
        }
        deployed
    }

    /// What a managed policy lets a role with these tags do. A statement about a tag that the role has not is
    /// about nothing.
    #[must_use]
    pub fn managed(&self, policy: &str, tags: &[(&str, &str)]) -> Vec<Grant> {
        let document = self.resolved(&self.template["Resources"][policy]["Properties"]["PolicyDocument"]);
        let statements = document["Statement"].as_array().expect("statements").iter();
        let with_tags = statements.filter_map(|statement| {
            let mut text = statement.to_string();
            for (tag, value) in tags {
                text = text.replace(&format!("${{aws:PrincipalTag/{tag}}}"), value);
            }
            (!text.contains("${")).then(|| serde_json::from_str::<Value>(&text).expect("a statement"))
        });
        with_tags.flat_map(|statement| grants(policy, &statement)).collect()
    }

    fn grants(&self, name: &str, role: &Value) -> Vec<Grant> {
        for property in role.as_object().unwrap().keys() {
            assert!(
                ["AssumeRolePolicyDocument", "Policies"].contains(&property.as_str()),
                "{name}: {property}"
            );
        }
        let policies = role["Policies"].as_array().unwrap().iter();
        let statements = policies.flat_map(|policy| {
            let document = self.resolve(&policy["PolicyDocument"]).unwrap();
            assert_eq!(document["Version"], "2012-10-17", "{name}");
            document["Statement"].as_array().unwrap().clone()
        });
        statements.flat_map(|statement| grants(name, &statement)).collect()
    }

    fn function(&self, properties: &Value) -> Function {
        let named = |of: &Value| {
            let named = of["Fn::GetAtt"].as_str().and_then(|named| named.strip_suffix(".Arn"));
            named.unwrap_or_else(|| panic!("{of} is not an ARN")).to_owned()
        };
        let role = named(&properties["Role"]);
        let logs = self.arn_of(text(&properties["LoggingConfig"]["LogGroup"]["Ref"]));
        let stream = logs.replace(":*", ":log-stream:2026/11/21/[$LATEST]0");
        let mut always = vec![("logs:CreateLogStream", stream.clone()), ("logs:PutLogEvents", stream)];
        let failed = &properties["EventInvokeConfig"]["DestinationConfig"]["OnFailure"];
        if !failed.is_null() {
            always.push(("sqs:SendMessage", self.arn_of(&named(&failed["Destination"]))));
        }
        let sources = properties["Events"].as_object().into_iter().flatten();
        let queues = sources.filter(|(_, source)| source["Type"] == "SQS");
        let queues = queues.map(|(_, source)| named(&source["Properties"]["Queue"])).collect();
        let grants = self.roles.get(&role).unwrap_or_else(|| panic!("there is no {role}")).clone();
        Function { role, grants, queues, always }
    }

    /// The queues that the schedules send to: what their role needs.
    #[must_use]
    pub fn scheduled(&self) -> BTreeSet<String> {
        let resources = self.template["Resources"].as_object().unwrap().values();
        let schedules = resources.filter(|resource| resource["Type"] == "AWS::Scheduler::Schedule");
        let targets = schedules.flat_map(|schedule| {
            let target = &schedule["Properties"]["Target"];
            [self.text(&target["Arn"]), self.text(&target["DeadLetterConfig"]["Arn"])]
        });
        targets.collect()
    }

    /// A resource's ARN, by its name in the template.
    #[must_use]
    pub fn arn_of(&self, name: &str) -> String {
        if let Some(arn) = self.place.arns.get(name) {
            return arn.clone();
        }
        if let Some(rule) = self.rule(name) {
            return self.place.arn("events", &format!("rule/{}", rule.replace('|', "/")));
        }
        let resource = &self.template["Resources"][name];
        let (place, properties) = (&self.place, &resource["Properties"]);
        match text(&resource["Type"]) {
            "AWS::Logs::LogGroup" => {
                place.arn("logs", &format!("log-group:{}:*", self.text(&properties["LogGroupName"])))
            }
            "AWS::Events::EventBus" => {
                place.arn("events", &format!("event-bus/{}", self.text(&properties["Name"])))
            }
            // One that CloudFormation names.
            "AWS::ECR::Repository" => {
                place.arn("ecr", &format!("repository/{}-{}", place.stack, name.to_lowercase()))
            }
            "AWS::IAM::Role" => format!("arn:aws:iam::{}:role/{}-{name}", place.account, place.stack),
            "AWS::SQS::Queue" => place.arn("sqs", &format!("{}-{name}", place.stack)),
            "AWS::SecretsManager::Secret" => place.arn("secretsmanager", &format!("secret:{name}-AbCdEf")),
            other => panic!("{name}: which ARN has an {other}?"),
        }
    }

    /// What `!Ref` of a rule is: its name, after that of its bus where that is not the default one. The rules that SAM
    /// makes of functions' events are on the default one.
    fn rule(&self, name: &str) -> Option<String> {
        let own = format!("{}-{name}", self.place.stack);
        let Some(resource) = self.template["Resources"].get(name) else {
            return events(&self.template, RULE_OF_FUNCTION).contains_key(name).then_some(own);
        };
        if resource["Type"] != template::RULE {
            return None;
        }
        let bus = resource["Properties"].get("EventBusName").map(|bus| self.text(bus));
        Some(bus.map_or(own.clone(), |bus| format!("{bus}|{own}")))
    }

    /// What `!Ref` of a resource is.
    fn reference(&self, name: &str) -> Option<String> {
        if let Some(rule) = self.rule(name) {
            return Some(rule);
        }
        let resource = self.template["Resources"].get(name)?;
        let named = |property: &str| Some(self.text(&resource["Properties"][property]));
        match text(&resource["Type"]) {
            template::FUNCTION => named("FunctionName"),
            "AWS::Events::EventBus" | "AWS::Scheduler::ScheduleGroup" => named("Name"),
            _ => None,
        }
    }

    /// The template that was deployed.
    #[must_use]
    pub fn template(&self) -> &Value {
        &self.template
    }

    /// A value of the template without functions.
    #[must_use]
    pub fn resolved(&self, value: &Value) -> Value {
        self.resolve(value).unwrap_or_else(|| panic!("{value} is no value"))
    }

    /// Whether a queue's own policy lets a service send messages to it on behalf of a resource.
    #[must_use]
    pub fn lets_send(&self, queue: &str, service: &str, source: &str) -> bool {
        let policies = of_type(&self.template, "AWS::SQS::QueuePolicy").into_values();
        let of_queue = policies.filter(|policy| resource_of(&policy["Queues"]).as_deref() == Some(queue));
        let mut statements = of_queue.flat_map(|policy| {
            let statements = self.resolved(&policy["PolicyDocument"])["Statement"].take();
            statements.as_array().expect("statements").clone()
        });
        statements.any(|statement| {
            for element in statement.as_object().unwrap().keys() {
                let known =
                    ["Effect", "Principal", "Action", "Resource", "Condition"].contains(&element.as_str());
                assert!(known, "{queue}: what does {element} mean in {statement}?");
            }
            assert_eq!(statement["Effect"], "Allow", "{queue}");
            let condition = &statement["Condition"]["ArnEquals"]["aws:SourceArn"];
            statement["Principal"] == json!({ "Service": service })
                && statement["Action"] == "sqs:SendMessage"
                && [json!("*"), json!(self.arn_of(queue))].contains(&statement["Resource"])
                && texts(condition).iter().any(|pattern| arn_matches(pattern, source))
        })
    }

    /// The ARN of what a call is about: a repository, a project, or `*` where its action knows no resource.
    #[must_use]
    pub fn subject(&self, action: &str, subject: &str) -> String {
        match action.split(':').next() {
            _ if subject == "*" || subject.starts_with("arn:") => subject.to_owned(),
            Some("ecr") => self.place.arn("ecr", &format!("repository/{subject}")),
            Some("codebuild") => self.place.arn("codebuild", &format!("project/{subject}")),
            _ => self.arn_of(subject),
        }
    }

    /// The narrowest pattern that the template's parameters have for a resource: what a role should name.
    #[must_use]
    pub fn narrowest(&self, arn: &str) -> String {
        let Some((start, name)) = arn.split_once('/') else {
            return arn.split_once(":log-stream:").map_or(arn.to_owned(), |(group, _)| format!("{group}:*"));
        };
        let pattern = match start.split(':').nth(2) {
            Some("ecr") => {
                let prefixes = ["CacheRepositoryPrefix", "BuildsRepositoryPrefix"].map(|prefix| {
                    let prefix = self.parameter(prefix).unwrap();
                    (!prefix.is_empty()).then(|| format!("{prefix}/*"))
                });
                let base_images = self.parameter("BaseImageRepositories");
                let mut patterns = prefixes.into_iter().flatten().chain(base_images);
                let pattern = patterns.find(|pattern| WildMatch::new(pattern).matches(name));
                pattern.unwrap_or_else(|| panic!("no parameter is for {name}"))
            }
            Some("codebuild") => self.parameter("BuildProjectPattern").unwrap(),
            Some("logs") => return arn.split_once(":log-stream:").unwrap().0.to_owned() + ":*",
            _ => name.to_owned(),
        };
        format!("{start}/{pattern}")
    }

    fn parameter(&self, name: &str) -> Option<String> {
        let of_aws = match name {
            "AWS::AccountId" => Some(self.place.account.clone()),
            "AWS::Partition" => Some("aws".to_owned()),
            "AWS::Region" => Some(self.place.region.clone()),
            "AWS::StackName" => Some(self.place.stack.clone()),
            _ => None,
        };
        let default = || match &self.template["Parameters"][name]["Default"] {
            Value::Null => None,
            Value::String(default) => Some(default.clone()),
            other => Some(other.to_string()),
        };
        of_aws.or_else(|| self.place.parameters.get(name).cloned()).or_else(default)
    }

    fn text(&self, value: &Value) -> String {
        text(&self.resolve(value).unwrap()).to_owned()
    }

    fn holds(&self, condition: &Value) -> bool {
        let (function, of) = only(condition).unwrap();
        match function {
            "Fn::Not" => !self.holds(&of[0]),
            "Fn::Equals" => self.text(&of[0]) == self.text(&of[1]),
            other => panic!("a condition with {other}"),
        }
    }

    /// A value without functions; nothing for `AWS::NoValue`.
    fn resolve(&self, value: &Value) -> Option<Value> {
        let known = |name: &str| self.parameter(name).or_else(|| self.reference(name));
        let parameter = |name: &str| known(name).unwrap_or_else(|| panic!("what is {name}?"));
        match (value, only(value)) {
            (_, Some(("Ref", of))) if of == "AWS::NoValue" => None,
            (_, Some(("Ref", of))) => Some(json!(parameter(text(of)))),
            (_, Some(("Fn::Sub", of))) => Some(json!(substitute(text(of), parameter))),
            (_, Some(("Fn::GetAtt", of))) => match text(of).split_once('.') {
                Some((name, "Arn" | "Id")) => Some(json!(self.arn_of(name))),
                Some((name, "QueueName")) => self.arn_of(name).rsplit(':').next().map(Value::from),
                _ => panic!("which attribute is {of}?"),
            },
            (_, Some(("Fn::If", of))) => {
                let holds = self.holds(&self.template["Conditions"][text(&of[0])]);
                self.resolve(&of[if holds { 1 } else { 2 }])
            }
            (_, Some(("Fn::Select", of))) => {
                let index = of[0].as_u64().and_then(|index| usize::try_from(index).ok()).unwrap();
                Some(self.resolved(&of[1])[index].take())
            }
            (_, Some(("Fn::Split", of))) => {
                let whole = self.text(&of[1]);
                Some(whole.split(text(&of[0])).map(Value::from).collect())
            }
            (_, Some((function, _))) if function.starts_with("Fn::") => panic!("what does {function} do?"),
            (Value::Object(fields), _) => {
                let fields =
                    fields.iter().filter_map(|(name, field)| Some((name.clone(), self.resolve(field)?)));
                Some(Value::Object(fields.collect()))
            }
            (Value::Array(items), _) => Some(items.iter().filter_map(|item| self.resolve(item)).collect()),
            _ => Some(value.clone()),
        }
    }
}

fn grants(role: &str, statement: &Value) -> Vec<Grant> {
    for element in statement.as_object().unwrap().keys() {
        let known = ["Sid", "Effect", "Action", "Resource"].contains(&element.as_str());
        assert!(known, "{role}: what does {element} mean in {statement}?");
    }
    let allows = match text(&statement["Effect"]) {
        "Allow" => true,
        "Deny" => false,
        other => panic!("{role}: what is the effect {other}?"),
    };
    let resources = texts(&statement["Resource"]);
    let grant = |action: &String| {
        let of = |resource: &String| {
            assert!(!resource.contains("${"), "{role}: a variable in {resource}");
            Grant { allows, action: action.clone(), resource: resource.clone() }
        };
        resources.iter().map(of).collect::<Vec<_>>()
    };
    texts(&statement["Action"]).iter().flat_map(grant).collect()
}

/// The only field.
fn only(value: &Value) -> Option<(&str, &Value)> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    fields.iter().next().map(|(name, field)| (name.as_str(), field))
}

fn substitute(text: &str, value: impl Fn(&str) -> String) -> String {
    let mut parts = text.split("${");
    let start = parts.next().unwrap_or_default().to_owned();
    parts.fold(start, |done, part| {
        let (name, rest) = part.split_once('}').expect("a closed variable");
        match name.strip_prefix('!') {
            // A variable of IAM's own.
            Some(literal) => format!("{done}${{{literal}}}{rest}"),
            None => done + &value(name) + rest,
        }
    })
}
