"""Checks what linters do not know: that template.yaml keeps its promises, and that the cluster's manifests fit Kubernetes.

Run by scripts/validate-infra.
"""

import glob
import http.server
import json
import logging
import pathlib
import re
import sys
import threading
import types

import kubernetes_validate
import yaml
from samcli.yamlhelper import yaml_parse
from samtranslator.translator.transform import transform

ROOT = pathlib.Path(__file__).parent.parent
# The versions of Kubernetes that the service's client library covers.
KUBERNETES = ["1.32", "1.33", "1.34", "1.35", "1.36"]
# For these AWS knows no narrower resource.
ANY_RESOURCE = {
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "xray:PutTraceSegments",
    "xray:PutTelemetryRecords",
}
# Read by `operator-service serve` alone.
SERVER_ONLY = {"HOST", "PORT"}
# Lambda sets the one itself; the other is for trying things without AWS.
SET_BY_LAMBDA = {"AWS_ENDPOINT_URL", "AWS_REGION"}
# The translator talks about feature switches of its own.
logging.disable()

wrong = []


def check(holds, message):
    if not holds:
        wrong.append(message)


def transformed():
    """template.yaml as SAM hands it to CloudFormation."""
    template = yaml_parse((ROOT / "template.yaml").read_text())
    for resource in template["Resources"].values():
        if "CodeUri" in resource.get("Properties", {}):
            resource["Properties"]["CodeUri"] = "s3://bucket/" + resource["Metadata"]["BuildProperties"]["Binary"]
    parameters = {name: parameter.get("Default", "") for name, parameter in template["Parameters"].items()}
    policies = types.SimpleNamespace(load=dict)
    return transform(template, parameters, policies)


def walk(node, path=()):
    yield path, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from walk(value, (*path, key))


def check_routes(resources):
    paths = resources["Api"]["Properties"]["Body"]["paths"]
    routes = {}
    for path, methods in paths.items():
        integration = methods["x-amazon-apigateway-any-method"]["x-amazon-apigateway-integration"]
        function = re.search(r"\$\{(\w+)Function\.Arn\}", json.dumps(integration["uri"])).group(1)
        routes[path] = function
        streams = integration.get("responseTransferMode") == "STREAM"
        check(streams == (function == "Results"), f"{path}: streams is {streams}")
        if function == "Results":
            check(integration["timeoutInMillis"] == 900000, f"{path}: does not have 15 minutes")
            check("/response-streaming-invocations" in json.dumps(integration["uri"]), f"{path}: is invoked without a stream")
    operator = "/api/v1/operator/"
    expected = {
        **{operator + name: "Compute" for name in ["compute", "runningjobs"]},
        operator + "getResult": "Results",
        operator + "environments": "Environments",
        **{operator + name: "Admin" for name in ["pgsqlinit", "info", "list", "logs"]},
        **{name: "Docs" for name in ["/", "/spec", "/api/v1/docs", "/api/v1/docs/{file+}"]},
    }
    check(routes == expected, f"the routes are {routes}, not {expected}")


def check_rights(resources):
    for name, resource in resources.items():
        for path, node in walk(resource.get("Properties", {})):
            if not (isinstance(node, dict) and node.get("Effect") == "Allow" and "Action" in node):
                continue
            actions = node["Action"] if isinstance(node["Action"], list) else [node["Action"]]
            check(not any("*" in action for action in actions), f"{name}: {actions} has a wildcard")
            if node.get("Resource") == "*":
                check(set(actions) <= ANY_RESOURCE, f"{name}: {actions} on every resource")
    functions = [name for name, resource in resources.items() if resource["Type"] == "AWS::Lambda::Function"]

    def rights(function):
        """The policies of a function's role, as one text."""
        role = resources[function.removesuffix("Function") + "Role"]["Properties"]
        return json.dumps(role["Policies"]) + json.dumps(role["ManagedPolicyArns"])

    for function in functions:
        text = rights(function)
        check(("DatabasePolicy" in text) == (function not in ("DocsFunction", "MigrationFunction")), f"{function}: database")
        check(("ClusterPolicy" in text) == (function in ("ComputeFunction", "AdminFunction", "ReaperFunction")), f"{function}: cluster")
        check(("s3:GetObject" in text) == (function == "ResultsFunction"), f"{function}: reads results")
        check(("s3:DeleteObject" in text) == (function == "ReaperFunction"), f"{function}: deletes results")


def check_variables(resources):
    """Every variable of README's table can be set, and no function is given one that is not described."""
    table = (ROOT / "README.md").read_text().split("## Configure it")[1]
    described = set()
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        described |= set(re.findall(r"`([A-Za-z0-9_]+)`", row))
    given = set()
    for name, resource in resources.items():
        variables = set(resource.get("Properties", {}).get("Environment", {}).get("Variables", {}))
        of_reaper = {variable for variable in variables if variable.startswith("REAP_")} | variables & {"WORKFLOW_TTL"}
        check(name == "ReaperFunction" or not of_reaper, f"{name} is given what the reaper alone reads: {sorted(of_reaper)}")
        given |= variables
    missing = sorted(described - given - SERVER_ONLY - SET_BY_LAMBDA)
    check(not missing, f"cannot be set by the template: {missing}")
    check(not given - described, f"not in README's table: {sorted(given - described)}")


def check_migration(resources):
    """The function in front of `migrate` answers CloudFormation, whatever happens."""
    answers = []

    class Bucket(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            answers.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    class Conflict(Exception):
        pass

    class Lambda:
        exceptions = types.SimpleNamespace(ResourceConflictException=Conflict, ResourceNotReadyException=Conflict)
        calls = []

        def invoke(self, **call):
            self.calls.append(call)
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            payload = types.SimpleNamespace(read=lambda: json.dumps(outcome.get("payload")).encode())
            return {"Payload": payload} | ({"FunctionError": "Unhandled"} if outcome.get("error") else {})

    server = http.server.HTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = resources["MigrationFunction"]["Properties"]["Code"]["ZipFile"]
    function = {}
    exec(compile(code, "MigrationFunction", "exec"), function)  # noqa: S102: it is ours
    function["boto3"] = types.SimpleNamespace(client=lambda *_, **__: Lambda())
    function["time"] = types.SimpleNamespace(sleep=lambda _: None)
    function["print"] = lambda *_: None

    def run(kind, *results):
        outcomes[:] = results
        Lambda.calls.clear()
        answers.clear()
        event = {
            "RequestType": kind, "ResponseURL": f"http://127.0.0.1:{server.server_port}/", "StackId": "s", "RequestId": "r",
            "LogicalResourceId": "Schema", "ResourceProperties": {"Migrate": "arn:migrate:1"},
        }
        function["handler"](event, None)
        return [answer["Status"] for answer in answers], " ".join(answer["Reason"] for answer in answers), len(Lambda.calls)

    outcomes = []
    check(run("Create", {"payload": {}})[::2] == (["SUCCESS"], 1), "migration: a good one is not a success")
    check(run("Update", Conflict(), {"payload": {}})[::2] == (["SUCCESS"], 2), "migration: does not wait for the version")
    status, reason, _ = run("Create", {"error": True, "payload": {"errorMessage": "no such column"}})
    check(status == ["FAILED"] and "no such column" in reason, "migration: a bad one is not a failure with its reason")
    check(run("Update", TimeoutError("read timed out"))[0] == ["FAILED"], "migration: no answer is not a failure")
    check(run("Delete")[::2] == (["SUCCESS"], 0), "migration: deleting the stack touches the database")
    server.shutdown()

    timeouts = [
        resources["MigrateFunction"]["Properties"]["Timeout"],
        int(re.search(r"read_timeout=(\d+)", code).group(1)),
        resources["MigrationFunction"]["Properties"]["Timeout"],
        resources["Schema"]["Properties"]["ServiceTimeout"],
    ]
    check(timeouts == sorted(set(timeouts)), f"migration: {timeouts} do not grow")


def check_manifests():
    versions = []
    for file in sorted(glob.glob("infra/kubernetes/**/*.yaml", root_dir=ROOT, recursive=True)):
        for document in yaml.safe_load_all((ROOT / file).read_text()):
            if document["kind"] in ("Kustomization", "Component"):
                for entry in document.get("resources", []) + document.get("components", []):
                    check((ROOT / file).parent.joinpath(entry).exists(), f"{file}: there is no {entry}")
                continue
            for version in KUBERNETES:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                    versions.append(version)
                except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                    wrong.append(f"{file}, Kubernetes {version}: {error}")
    check(versions, "no manifest was checked")
    return sorted(set(versions))


def main():
    resources = transformed()["Resources"]
    check_routes(resources)
    check_rights(resources)
    check_variables(resources)
    check_migration(resources)
    for template in glob.glob("infra/*.yaml", root_dir=ROOT):
        nested = yaml_parse((ROOT / template).read_text())["Resources"]
        for name, resource in nested.items():
            for path, node in walk(resource):
                if isinstance(node, dict) and node.get("Effect") == "Allow":
                    check(node.get("Resource", "") != "*", f"{template}: {name} allows every resource")
    versions = check_manifests()
    for message in wrong:
        print("error:", message, file=sys.stderr)
    if not wrong:
        print(f"routes, rights, variables, migration, manifests (Kubernetes {', '.join(versions)}): good")
    sys.exit(bool(wrong))


main()
