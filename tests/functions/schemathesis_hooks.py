"""Hooks of schemathesis: what a document cannot say, and how many of the cases that it allows are accepted.

The variable FACTS is JSON: an environment, a signature, and owner and id of two jobs: a finished one, and one to change. COUNTS names the
file for the numbers of cases: {"GET /api/v1/operator/list": [sent, accepted], ...}.
"""

import atexit
import collections
import copy
import itertools
import json
import os
import time

import schemathesis
from schemathesis import GenerationMode

FACTS = json.loads(os.environ["FACTS"])
# Of these, text of fewer than 2 characters counts as absent.
IDS = {"agreementId", "jobId", "owner", "environment"}
counts = collections.defaultdict(lambda: [0, 0])
fresh = itertools.count(time.time_ns())


def is_allowed(case):
    return case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE


def parameters_of(case):
    return case.body if isinstance(case.body, dict) else case.query or {}


@schemathesis.hook
def before_load_schema(context, document):
    """A path whose parameters may be sent in the query or in the body becomes two, under prefixes, which the service ignores."""
    for path, operations in list(document["paths"].items()):
        both = {"parameters", "requestBody"}
        if any(both <= operation.keys() for operation in operations.values()):
            in_body = document["paths"]["/body" + path] = copy.deepcopy(operations)
            for method, operation in in_body.items():
                del operation["operationId"]
                if both <= operation.keys():
                    del operation["parameters"], operations[method]["requestBody"]
                    operation["requestBody"]["required"] = True


@schemathesis.hook
def filter_case(context, case):
    """Leaves out what the service accepts for the sake of old callers, though the document does not allow it."""
    if is_allowed(case):
        return True
    parameters = parameters_of(case)
    is_ignored = parameters is case.query and not parameters.keys() <= {known.name for known in case.operation.query}
    is_absent = any(len(str(parameters[name])) < 2 for name in IDS & parameters.keys()) or parameters.get("chainId") == ""
    is_brizo = "providerAddress" in parameters and "nonce" not in parameters
    return not (is_ignored or is_absent or is_brizo)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Fills in what exists: an environment, a job, a signature that a key has made, and a nonce that was not used."""
    if not is_allowed(case):
        return
    facts = {
        "environment": FACTS["environment"],
        "providerSignature": FACTS["providerSignature"],
        **FACTS["finished" if case.method == "GET" else "to change"],
        "agreementId": f"agreement-{next(fresh)}",
        "nonce": str(next(fresh)),
        "index": "0",
        "validUntil": str(int(time.time()) + 3600),
    }
    parameters = parameters_of(case)
    for name in facts.keys() & parameters.keys():
        if parameters[name] is not None:
            parameters[name] = facts[name]
    if "Range" in (case.headers or {}):
        case.headers["Range"] = "bytes=0-1"


@schemathesis.hook
def after_call(context, case, response):
    if is_allowed(case):
        count = counts[f"{case.method} {case.operation.path}"]
        count[0] += 1
        count[1] += response.status_code < 400


@atexit.register
def write_counts():
    with open(os.environ["COUNTS"], "w") as file:
        json.dump(counts, file)
