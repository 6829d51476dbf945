"""The function `migration`: invokes `migrate` for CloudFormation, and responds in every case.

template.yaml, "The schema", says why it is a function of its own.
"""

import json
import time
import urllib.request

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

# One attempt: a retry would run concurrently with the first invocation.
CONFIG = Config(connect_timeout=5, read_timeout=800, retries={"total_max_attempts": 1}, tcp_keepalive=True)


def handler(event, context):
    status, reason = "SUCCESS", "The schema is up to date"
    try:
        # The database is kept when the stack is deleted.
        if event["RequestType"] != "Delete":
            migrate(event["ResourceProperties"]["Migrate"])
    except Exception as error:
        status, reason = "FAILED", f"The schema was not updated: {error}"[:1000]
    print(json.dumps({"status": status, "reason": reason}))
    respond(event, status, reason)


def migrate(function):
    client = boto3.client("lambda", config=CONFIG)
    # Neither a function in a VPC nor this function's role, seconds old, may be ready yet. Both errors come before
    # an invocation.
    for attempt in range(12):
        try:
            response = client.invoke(FunctionName=function, Payload=b'{"source": "operator-service.deployment"}')
            break
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if attempt == 11 or code not in ("ResourceConflictException", "ResourceNotReadyException", "AccessDeniedException"):
                raise
            time.sleep(5)
    payload = response["Payload"].read().decode()
    if "FunctionError" in response:
        try:
            payload = json.loads(payload)["errorMessage"]
        except (ValueError, KeyError, TypeError):
            pass
        raise RuntimeError(payload)


def respond(event, status, reason):
    body = {key: event[key] for key in ("StackId", "RequestId", "LogicalResourceId")}
    body |= {"Status": status, "Reason": reason, "PhysicalResourceId": "schema"}
    request = urllib.request.Request(event["ResponseURL"], json.dumps(body).encode(), {"content-type": ""}, method="PUT")
    for attempt in range(3):
        try:
            return urllib.request.urlopen(request, timeout=5).close()
        except OSError as error:
            print(json.dumps({"error": f"cannot reach CloudFormation: {error}"}))
            time.sleep(2)
