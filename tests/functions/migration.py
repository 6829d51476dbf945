"""Runs the code of the function `migration` (infra/migration) as Lambda does, with the URL of an invocation in place of AWS.

Reads {"event", "invoke"} from standard input.
"""

import importlib
import json
import pathlib
import sys
import types
import urllib.request

# So that nothing is left beside the code, which is packed as it is.
sys.dont_write_bytecode = True
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
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "infra/migration"))
importlib.import_module("index").handler(given["event"], None)
