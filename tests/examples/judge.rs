//! Draws questions to IAM by chance, and answers them as the scenarios' evaluator does: which role may do what,
//! on which resource. `cargo xtask test` asks the local AWS the same.
//!
//! Takes a place on its input: `template` (the built one's path), `stack`, `account`, `region`, `parameters`,
//! `arns`, `seed` and `number`. Prints a list of `role` (by the name in the template), `action`, `resource`
//! and `may`.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that meets the unexpected ends"
)]

use std::collections::{BTreeMap, BTreeSet};

use scenarios::iam::{self, Deployed, Grant, Place};
use scenarios::rng::Rng;
use serde_json::{Value, json};

fn main() {
    let asked: Value = serde_json::from_reader(std::io::stdin()).unwrap();
    let text = |name: &str| asked[name].as_str().unwrap().to_owned();
    let map = |name: &str| -> BTreeMap<String, String> {
        let fields = asked[name].as_object().unwrap().iter();
        fields.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
    };
    let place = Place {
        stack: text("stack"),
        account: text("account"),
        region: text("region"),
        parameters: map("parameters"),
        arns: map("arns"),
    };
    let template = scenarios::template::parse(&std::fs::read_to_string(text("template")).unwrap());
    let deployed = Deployed::new(short(template), place);
    let all: Vec<&Grant> = deployed.roles.values().flatten().collect();
    let actions: BTreeSet<&str> = all.iter().map(|grant| grant.action.as_str()).collect();
    let actions: Vec<&str> = actions.into_iter().collect();
    let roles: Vec<(&String, &Vec<Grant>)> = deployed.roles.iter().collect();
    let mut rng = Rng(asked["seed"].as_u64().unwrap());
    let mut one = || {
        let (role, grants) = roles[rng.index(roles.len())];
        // Half of what is asked is near what the role may do, or nobody would ever be allowed anything.
        let near =
            if rng.below(2) == 0 { &grants[rng.index(grants.len())] } else { all[rng.index(all.len())] };
        let action = match rng.below(4) {
            0 => actions[rng.index(actions.len())].to_owned(),
            1 => near.action.to_lowercase(),
            _ => near.action.clone(),
        };
        let resource = resource(&mut rng, &near.resource);
        let may = iam::may(grants, &action, &resource);
        json!({ "role": role, "action": action, "resource": resource, "may": may })
    };
    let questions: Vec<Value> = (0..asked["number"].as_u64().unwrap()).map(|_| one()).collect();
    println!("{}", Value::from(questions));
}

/// What a pattern matches, or nearly does.
fn resource(rng: &mut Rng, pattern: &str) -> String {
    const FILLERS: [&str; 7] = ["app", "", "a/b", "x:y", "*", "App.1-2_3", "team/app:log-stream:z"];
    let mut filled = String::new();
    for letter in pattern.chars() {
        match letter {
            '*' | '?' => filled.push_str(FILLERS[rng.index(FILLERS.len())]),
            other => filled.push(other),
        }
    }
    match rng.below(8) {
        0 => filled.push('x'),
        1 => drop(filled.pop()),
        2 => filled = filled.to_uppercase(),
        3 => filled = filled.replacen("us-east-1", "eu-west-1", 1),
        4 => filled = filled.replacen("/stoker", "/stoker-x", 1),
        _ => {}
    }
    // An empty resource is no question, and a bare name is no ARN.
    if filled.starts_with("arn:") { filled } else { "*".to_owned() }
}

/// SAM writes `!GetAtt Queue.Arn` as a list.
fn short(template: Value) -> Value {
    match template {
        Value::Object(fields) => {
            let field = |(name, value): (String, Value)| match (name.as_str(), &value) {
                ("Fn::GetAtt", Value::Array(parts)) => {
                    let parts: Vec<&str> = parts.iter().map(|part| part.as_str().unwrap()).collect();
                    (name, json!(parts.join(".")))
                }
                _ => (name, short(value)),
            };
            Value::Object(fields.into_iter().map(field).collect())
        }
        Value::Array(items) => items.into_iter().map(short).collect(),
        other => other,
    }
}
