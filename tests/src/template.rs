//! `template.yaml` as JSON, and its resources.

use std::collections::BTreeMap;

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::{Map, Value, json};

const TEMPLATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../template.yaml");

/// `AWS::CloudWatch::Alarm`
pub const ALARM: &str = "AWS::CloudWatch::Alarm";
/// `AWS::Serverless::Function`
pub const FUNCTION: &str = "AWS::Serverless::Function";
/// `AWS::SQS::Queue`
pub const QUEUE: &str = "AWS::SQS::Queue";
/// `AWS::Events::Rule`
pub const RULE: &str = "AWS::Events::Rule";
/// The event of a function that SAM makes a rule of the default bus of.
pub const RULE_OF_FUNCTION: &str = "EventBridgeRule";
/// `AWS::Scheduler::Schedule`
pub const SCHEDULE: &str = "AWS::Scheduler::Schedule";

/// The repository's template.
#[must_use]
pub fn text() -> String {
    std::fs::read_to_string(TEMPLATE).unwrap()
}

/// The repository's template as JSON.
#[must_use]
pub fn read() -> Value {
    parse(&text())
}

/// A template with its functions in `CloudFormation`'s long form, so that `!Ref Bus` is `{"Ref": "Bus"}`, and
/// with merged maps merged.
#[must_use]
pub fn parse(text: &str) -> Value {
    value(&Yaml::load_from_str(text).unwrap()[0])
}

fn value(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Representation(text, _, Some(tag)) => called(&tag.suffix, &json!(text)),
        Yaml::Tagged(tag, inner) => called(&tag.suffix, &value(inner)),
        Yaml::Value(Scalar::String(text)) => json!(text),
        Yaml::Value(Scalar::Integer(number)) => json!(number),
        Yaml::Value(Scalar::FloatingPoint(number)) => json!(number.into_inner()),
        Yaml::Value(Scalar::Boolean(is)) => json!(is),
        Yaml::Sequence(items) => items.iter().map(value).collect(),
        Yaml::Mapping(entries) => {
            let mut map = Map::new();
            for (key, entry) in entries {
                let (key, entry) = (key.as_str().unwrap().to_owned(), value(entry));
                match (key.as_str(), entry) {
                    // What is written beside it goes first, wherever it stands.
                    ("<<", Value::Object(merged)) => {
                        for (key, entry) in merged {
                            map.entry(key).or_insert(entry);
                        }
                    }
                    (_, entry) => drop(map.insert(key, entry)),
                }
            }
            Value::Object(map)
        }
        other => panic!("the template has {other:?}"),
    }
}

fn called(function: &str, argument: &Value) -> Value {
    match function {
        "Ref" => json!({ "Ref": argument }),
        _ => json!({ format!("Fn::{function}"): argument }),
    }
}

/// The resource that a value is or belongs to: of `!Ref X`, `!GetAtt X.Arn` and whatever is made of one of
/// them.
#[must_use]
pub fn resource_of(value: &Value) -> Option<String> {
    match value {
        Value::Object(map) => map.iter().find_map(|(key, inner)| match (key.as_str(), inner) {
            ("Ref", Value::String(name)) => Some(name.clone()),
            ("Fn::GetAtt", Value::String(path)) => path.split('.').next().map(str::to_owned),
            (_, inner) => resource_of(inner),
        }),
        Value::Array(items) => items.iter().find_map(resource_of),
        _ => None,
    }
}

/// The properties of the resources of a type, by their names.
#[must_use]
pub fn of_type<'t>(template: &'t Value, kind: &str) -> BTreeMap<&'t str, &'t Value> {
    let resources = template["Resources"].as_object().unwrap();
    let found = resources.iter().filter(|(_, resource)| resource["Type"] == kind);
    let found: BTreeMap<_, _> =
        found.map(|(name, resource)| (name.as_str(), &resource["Properties"])).collect();
    assert!(!found.is_empty(), "the template has no {kind}");
    found
}

/// The events of the functions that are of a type, by the names of the resources that SAM makes of them, each
/// with the function's name.
#[must_use]
pub fn events<'t>(template: &'t Value, kind: &str) -> BTreeMap<String, (&'t str, &'t Value)> {
    let mut found = BTreeMap::new();
    for (function, properties) in of_type(template, FUNCTION) {
        for (name, event) in properties["Events"].as_object().into_iter().flatten() {
            if event["Type"] == kind {
                found.insert(format!("{function}{name}"), (function, &event["Properties"]));
            }
        }
    }
    found
}
