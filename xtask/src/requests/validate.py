"""What AWS would refuse of requests that stand-ins took.

    python validate.py FILE...     of those that tests wrote down, one JSON a line
    python validate.py --breaches  of those in breaches.py: whether each is found

AWS's own models, which botocore brings, tell what there is, what is required, of which type, how long, in which
form and out of which list. REFUSED holds what only the documentation tells. Exit code 1: something would be refused.
"""

import json
import re
import sys
from urllib.parse import parse_qsl

import botocore.session

from breaches import BREACHES

PREFIXES = {
    "AmazonEC2ContainerRegistry_V20150921": "ecr",
    "CodeBuild_20161006": "codebuild",
    "AWSEvents": "events",
    "AmazonSQS": "sqs",
    "Logs_20140328": "logs",
    "secretsmanager": "secretsmanager",
}
# The versions of the services that are asked in forms.
VERSIONS = {"2010-05-08": "iam", "2010-05-15": "cloudformation"}
TYPES = {
    "string": str,
    "blob": str,
    "list": list,
    "map": dict,
    "structure": dict,
    "boolean": bool,
    "integer": int,
    "long": int,
    "float": (int, float),
    "double": (int, float),
    "timestamp": (int, float),
}
SESSION = botocore.session.get_session()
MODELS = {}


def both(first, second):
    return lambda asked: first in asked and second in asked


def outside(name, least, most):
    return lambda asked: not least <= asked.get(name, least) <= most


def is_fifo(asked):
    return asked.get("QueueUrl", "").endswith(".fifo")


def is_grouped(asked):
    return "MessageGroupId" in asked


def log_groups(asked):
    return sum(name in asked for name in ("logGroupName", "logGroupNames", "logGroupIdentifiers"))


# Operations, why AWS refuses a request, and whether it does. The member whose documentation says so is in brackets.
REFUSED = [
    ("codebuild:ListBuildsForProject", "sortOrder beside nextToken (sortOrder)", both("sortOrder", "nextToken")),
    ("ecr:DescribeImages", "nextToken beside imageIds (nextToken)", both("nextToken", "imageIds")),
    ("ecr:DescribeImages", "maxResults beside imageIds (maxResults)", both("maxResults", "imageIds")),
    ("ecr:DescribeRepositories", "nextToken beside names (nextToken)", both("nextToken", "repositoryNames")),
    ("ecr:DescribeRepositories", "maxResults beside names (maxResults)", both("maxResults", "repositoryNames")),
    ("logs:StartQuery", "not exactly one kind of log groups (logGroupName)", lambda asked: log_groups(asked) != 1),
    ("logs:StartQuery", "it ends before it starts (endTime)", lambda asked: asked["endTime"] < asked["startTime"]),
    ("sqs:ReceiveMessage", "not 1 to 10 messages (MaxNumberOfMessages)", outside("MaxNumberOfMessages", 1, 10)),
    ("sqs:ReceiveMessage", "a wait of more than 20 s (WaitTimeSeconds)", outside("WaitTimeSeconds", 0, 20)),
    ("sqs:ReceiveMessage", "a timeout of more than 12 h (VisibilityTimeout)", outside("VisibilityTimeout", 0, 43200)),
    ("sqs:ChangeMessageVisibilityBatch", "not 1 to 10 entries", lambda asked: not 1 <= len(asked["Entries"]) <= 10),
    ("sqs:SendMessage", "no MessageGroupId for a FIFO queue", lambda asked: is_fifo(asked) and not is_grouped(asked)),
    ("sqs:SendMessage", "DelaySeconds for a FIFO queue", lambda asked: is_fifo(asked) and "DelaySeconds" in asked),
]


def model(service):
    if service not in MODELS:
        MODELS[service] = SESSION.get_service_model(service)
    return MODELS[service]


def outside_limits(shape, number):
    limits = shape.metadata
    return number < limits.get("min", number) or number > limits.get("max", number)


def findings(shape, value, place):
    """What is wrong with a value where its shape is known."""
    kind = TYPES[shape.type_name]
    # To Python, true is a number, too.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        yield f"{place} is of the wrong type, not a {shape.type_name}"
        return
    if shape.type_name == "structure":
        for name in shape.required_members:
            if name not in value:
                yield f"{place} has no {name}, which is required"
        for name, inner in value.items():
            if name in shape.members:
                yield from findings(shape.members[name], inner, f"{place}.{name}")
            else:
                yield f"{place}.{name} is not known"
    elif shape.type_name == "list":
        if outside_limits(shape, len(value)):
            yield f"{place} has a length of {len(value)}, outside of its limits"
        for number, inner in enumerate(value):
            yield from findings(shape.member, inner, f"{place}[{number}]")
    elif shape.type_name == "map":
        for name, inner in value.items():
            yield from findings(shape.key, name, f"{place}'s key")
            yield from findings(shape.value, inner, f"{place}.{name}")
    elif shape.type_name == "string":
        if outside_limits(shape, len(value)):
            yield f"{place} has a length of {len(value)}, outside of its limits"
        pattern = shape.metadata.get("pattern")
        if pattern and not matches(pattern, value):
            yield f"{place} is not of the form {pattern}: {value!r}"
        if shape.enum and value not in shape.enum:
            yield f"{place} is {value!r}, none of {', '.join(shape.enum)}"
    elif shape.type_name in ("integer", "long", "float", "double") and outside_limits(shape, value):
        yield f"{place} is {value}, outside of its limits"


def matches(pattern, value):
    """Whether AWS takes it: the whole text has to match."""
    try:
        return re.fullmatch(pattern, value) is not None
    except re.error:
        # Java has classes of characters that Python does not know. Where Stoker asks for such a thing we want to know.
        return False


def from_form(shape, fields, prefix=""):
    """The parameters that a form of the query protocol holds: names with dots, lists as `.member.1`."""
    if shape.type_name == "structure":
        inner = {}
        for name, member in shape.members.items():
            start = prefix + name
            of_member = [field for field in fields if field == start or field.startswith(start + ".")]
            if of_member:
                inner[name] = from_form(member, {field: fields.pop(field) for field in of_member}, start + ".")
        inner.update(fields)
        return inner
    if shape.type_name == "list":
        inner = []
        while True:
            start = f"{prefix}member.{len(inner) + 1}"
            of_member = [field for field in fields if field == start or field.startswith(start + ".")]
            if not of_member:
                return inner
            inner.append(from_form(shape.member, {field: fields.pop(field) for field in of_member}, start + "."))
    text = next(iter(fields.values()))
    if shape.type_name in ("integer", "long"):
        return int(text)
    return {"true": True, "false": False}.get(text, text) if shape.type_name == "boolean" else text


def judge(request):
    """What a request asks for, and what AWS would refuse it for."""
    target, body = request["target"], request["body"]
    if target:
        prefix, operation = target.rsplit(".", 1)
        service = PREFIXES.get(prefix)
    else:
        fields = dict(parse_qsl(body, keep_blank_values=True))
        operation, service = fields.pop("Action"), VERSIONS.get(fields.pop("Version"))
    name = f"{service}:{operation}"
    if service is None or operation not in model(service).operation_names:
        return name, ["no such operation is known"]
    shape = model(service).operation_model(operation).input_shape
    if shape is None:
        return name, []
    asked = json.loads(body or "{}") if target else from_form(shape, fields)
    found = list(findings(shape, asked, operation))
    # What the documentation adds is asked of what is well formed.
    if not found:
        found = [why for of, why, refuses in REFUSED if of == name and refuses(asked)]
    return name, found


def breaches():
    """Whether every breach is found, and every rule of REFUSED has one."""
    good, reasons = True, set()
    for target, body, word in BREACHES:
        _, found = judge({"target": target, "body": body if target is None else json.dumps(body)})
        reasons.update(found)
        if bool(found) != bool(word) or (word and not any(word in finding for finding in found)):
            good = False
            print(f"{target} with {body} is to be found for {word!r}; found: {found}")
    for operation, why, _ in REFUSED:
        if why not in reasons:
            good = False
            print(f"breaches.py has none of {operation}: {why}")
    return good


def main():
    if sys.argv[1] == "--breaches":
        return breaches()
    counts, told, good = {}, set(), True
    for file in sys.argv[1:]:
        for line in set(open(file, encoding="utf-8")):
            name, found = judge(json.loads(line))
            counts[name] = counts.get(name, 0) + 1
            for finding in found:
                good = False
                # One of a kind is enough.
                if (kind := (name, re.sub(r"\d+|'.*'", "", finding))) not in told:
                    told.add(kind)
                    print(f"{name}: {finding}")
    print(f"{sum(counts.values())} different requests of {len(counts)} operations: {', '.join(sorted(counts))}")
    return good


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
