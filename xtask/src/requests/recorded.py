"""The local AWS, which writes down what the SDK for Rust asks of it: one JSON a line, in the file that
STOKER_TEST_REQUESTS names.

Functions and the command line use that SDK; what others ask is not Stoker's.
"""

import json
import os

import alarms  # noqa: F401 - what ministack lacks
from ministack.app import app as ministack

FILE = open(os.environ["STOKER_TEST_REQUESTS"], "a", encoding="utf-8")


async def app(scope, receive, send):
    headers = dict(scope.get("headers", []))
    target = headers.get(b"x-amz-target", b"").decode()
    is_form = headers.get(b"content-type", b"").startswith(b"application/x-www-form-urlencoded")
    if not (target or is_form) or b"aws-sdk-rust" not in headers.get(b"user-agent", b""):
        return await ministack(scope, receive, send)
    body = b""

    async def receive_and_keep():
        nonlocal body
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.request" and not message.get("more_body"):
            FILE.write(json.dumps({"target": target or None, "body": body.decode()}) + "\n")
            FILE.flush()
        return message

    return await ministack(scope, receive_and_keep, send)
