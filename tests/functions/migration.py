"""Runs the code of the function `migration` (template.yaml) as Lambda does, with the URL of an invocation in place of AWS.

Reads {"code", "event", "invoke"} from standard input.
"""

import json
import sys
import types
import urllib.request

given = json.load(sys.stdin)


class ClientError(Exception):
    """botocore's."""


class Lambda:
    def invoke(self, FunctionName, Payload):  # noqa: N803: boto3's names
        assert FunctionName == given["event"]["ResourceProperties"]["Migrate"]
        response = urllib.request.urlopen(urllib.request.Request(given["invoke"], Payload))
        error = response.headers.get("x-amz-function-error")
        return {"Payload": response} | ({"FunctionError": error} if error else {})


def module(name, **content):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(content)


module("boto3", client=lambda *_, **__: Lambda())
module("botocore")
module("botocore.config", Config=dict)
module("botocore.exceptions", ClientError=ClientError)
function = {}
exec(given["code"], function)  # noqa: S102: code of this repository
function["handler"](given["event"], None)
