"""Prints template.yaml as the JSON that stoker.guard is about. Runs in SAM's virtual environment.

cfn-guard reads no YAML aliases, so SAM's own reader does. What roles and managed policies allow is added as
`Rights`, one for each action on each resource: a right in one branch of an `!If` counts like any other, and what
is written in a way that is not known here is a right that no rule lets pass.
"""

import json
import sys

from samtranslator.yaml_helper import yaml_parse


def branches(value):
    """What there is if every condition holds, and if none does."""
    if isinstance(value, list):
        return [branch for item in value for branch in branches(item)]
    if isinstance(value, dict) and set(value) == {"Fn::If"}:
        return branches(value["Fn::If"][1:])
    return [] if value == {"Ref": "AWS::NoValue"} else [value]


def as_text(resource):
    """`Bus.Arn` for `!GetAtt Bus.Arn`, and the text of a `!Sub`."""
    if isinstance(resource, dict) and set(resource) == {"Fn::GetAtt"}:
        return ".".join(resource["Fn::GetAtt"])
    if isinstance(resource, dict) and set(resource) == {"Fn::Sub"}:
        resource = resource["Fn::Sub"]
    return resource if isinstance(resource, str) else f"unknown: {json.dumps(resource)}"


def rights(owner, kind, document):
    for statement in branches(document["Statement"]):
        known = set(statement) == {"Effect", "Action", "Resource"} and statement["Effect"] == "Allow"
        actions = branches(statement.get("Action", [])) if known else [f"unknown: {json.dumps(statement)}"]
        for action in actions:
            for resource in branches(statement.get("Resource", ["none"])):
                yield {"Of": owner, "Kind": kind, "Action": action, "Resource": as_text(resource)}


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        template = yaml_parse(file.read())
    template["Rights"] = []
    for name, resource in template["Resources"].items():
        properties = resource.get("Properties", {})
        if resource["Type"] == "AWS::IAM::Role":
            for policy in properties["Policies"]:
                template["Rights"] += rights(name, "Role", policy["PolicyDocument"])
        if resource["Type"] == "AWS::IAM::ManagedPolicy":
            template["Rights"] += rights(name, "ManagedPolicy", properties["PolicyDocument"])
    json.dump(template, sys.stdout, indent=1, default=str)


main()
