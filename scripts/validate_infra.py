"""Checks what linters cannot: that template.yaml fits the program, and that the manifests are valid in Kubernetes.

scripts/validate-infra runs it, after building operator-service, which prints its routes and variables.
"""

import glob
import http.server
import itertools
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import threading
import types

import deployer
import manifests
import rights
import yaml
from botocore.exceptions import ClientError
from samcli.yamlhelper import yaml_parse
from samtranslator.translator.transform import transform

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / (os.environ.get("CARGO_TARGET_DIR") or "target") / "debug" / "operator-service"
# AWS has no resource-level permissions for these.
ANY_RESOURCE = {
    "cloudwatch:DescribeAlarms",
    "ec2:DescribeAccountAttributes",
    "ec2:DescribeAvailabilityZones",
    "ec2:DescribeInternetGateways",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroupRules",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcEndpoints",
    "ec2:DescribeVpcs",
    "lambda:ListFunctions",
    "logs:CreateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:DescribeLogGroups",
    "logs:DescribeResourcePolicies",
    "logs:PutResourcePolicy",
    "rds:DescribeDBEngineVersions",
    "rds:DescribeEngineDefaultParameters",
    "secretsmanager:GetRandomPassword",
    "xray:PutTelemetryRecords",
    "xray:PutTraceSegments",
}
# Only `operator-service serve` reads them, or nobody sets them for a function.
SERVER_ONLY = {"HOST", "PORT", "METRICS_PORT", "SHUTDOWN_DELAY", "LOCAL_ADMIN", "LOG_CFG", "POSTGRES_POOL_SIZE"}
# Secrets are no parameters: functions read them from Secrets Manager.
SECRETS = {"POSTGRES_PASSWORD", "X_API_KEY", "CLIENT_ID"}
# SAM's translator logs the state of its feature toggles.
logging.disable()

errors = []


def check(holds, message):
    if not holds:
        errors.append(message)


def printed(*arguments, keys):
    """Runs operator-service and returns the list that it prints as JSON: objects with at least these keys."""

    def fail(why):
        command = " ".join(["operator-service", *arguments])
        sys.exit(f"error: `{command}` {why}\nProgram: {PROGRAM}; build it with: cargo build --bin operator-service")

    try:
        result = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        fail(f"cannot be run: {error}")
    if result.returncode != 0:
        fail(f"failed with exit code {result.returncode}: {result.stderr.strip()}")
    try:
        entries = json.loads(result.stdout)
    except ValueError as error:
        fail(f"does not print JSON: {error}")
    if not isinstance(entries, list) or not entries:
        fail("prints no list, or an empty one")
    for entry in entries:
        if not (isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in keys)):
            fail(f"prints an entry without the texts {', '.join(keys)}: {entry}")
    return entries


def transformed(**given):
    """template.yaml as SAM passes it to CloudFormation, with these parameters."""
    template = yaml_parse((ROOT / "template.yaml").read_text())
    for name, resource in template["Resources"].items():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = f"s3://bucket/{name}"
    parameters = {name: parameter.get("Default", "") for name, parameter in template["Parameters"].items()} | given
    policies = types.SimpleNamespace(load=dict)
    return transform(template, parameters, policies)


def walk(node):
    """The node and every node below it."""
    yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def gateway_path(path):
    """The form that API Gateway gives to a path of the program's router."""
    path = re.sub(r"\{\*(\w+)\}", r"{\1+}", path)
    return path.rstrip("/") or "/"


def check_routes(resources):
    """The template routes each path of the program to the function that handles it, and no other path."""
    expected = {}
    for route in printed("routes", keys=["function", "method", "path"]):
        path, function = gateway_path(route["path"]), route["function"]
        check(expected.setdefault(path, function) == function, f"{path}: both {expected[path]} and {function} handle it")
    routes = {}
    for path, methods in resources["Api"]["Properties"]["Body"]["paths"].items():
        check(list(methods) == ["x-amazon-apigateway-any-method"], f"{path}: accepts {list(methods)} instead of every method")
        integration = next(iter(methods.values()))["x-amazon-apigateway-integration"]
        uri = json.dumps(integration["uri"])
        function = re.search(r"\$\{(\w+)FunctionAliaslive\}", uri).group(1).lower()
        routes[path] = function
        streams = integration.get("responseTransferMode") == "STREAM"
        check(streams == (function == "results"), f"{path}: {'streams' if streams else 'does not stream'} its responses")
        if function == "results":
            check(integration["timeoutInMillis"] == 900000, f"{path}: its timeout is not 15 minutes")
            check("/response-streaming-invocations" in uri, f"{path}: is invoked without a response stream")
    for path in sorted(routes.keys() | expected.keys()):
        template, program = routes.get(path, "no function"), expected.get(path, "no function")
        check(template == program, f"{path}: {template} in template.yaml, {program} in `operator-service routes`")


def check_permissions(resources):
    for name, resource in resources.items():
        for node in walk(resource.get("Properties", {})):
            if not (isinstance(node, dict) and node.get("Effect") == "Allow" and "Action" in node):
                continue
            actions = node["Action"] if isinstance(node["Action"], list) else [node["Action"]]
            check(not any("*" in action for action in actions), f"{name}: a wildcard in {actions}")
            if node.get("Resource") == "*":
                check(set(actions) <= ANY_RESOURCE, f"{name}: {actions} is allowed on every resource")
    functions = {name for name, resource in resources.items() if resource["Type"] == "AWS::Lambda::Function"}

    granted = {(role.removesuffix("Role") + "Function", f"{right} {on}") for role, right, on, _ in rights.rows(resources)}
    needed_by = {
        "GetSecretValue PostgresSecretArn": functions - {"DocsFunction", "MigrationFunction"},
        "eks:DescribeCluster": {"ComputeFunction", "AdminFunction", "ReaperFunction"},
        "s3:GetObject": {"ResultsFunction"},
        "s3:DeleteObject": {"ReaperFunction"},
    }
    # With PostgresRoles, each function logs in as its own role, and only migrate reads the other secrets.
    for function in functions - {"DocsFunction", "MigrateFunction", "MigrationFunction"}:
        name = function.removesuffix("Function").lower()
        needed_by |= {f"<PostgresRoles>{name}": {function}, f"<PostgresRoleSecrets>{name}-??????": {function, "MigrateFunction"}}
        variables = json.dumps(resources[function]["Properties"]["Environment"]["Variables"])
        for login in (f"${{PostgresRoles}}{name}", f"${{PostgresRoleSecrets}}{name}"):
            check(f'"{login}"' in variables, f"{function}: does not log in as {login}")
    for permission, expected in needed_by.items():
        holders = {function for function, right in granted if permission in right}
        check(holders == expected, f"{permission}: granted to {sorted(holders)}, needed by {sorted(expected)}")


def check_variables(resources):
    """The template can set every variable that the program reads, and sets no other."""
    read = {variable["name"] for variable in printed("variables", "--format", "json", keys=["name"])}
    given = set()
    for name, resource in resources.items():
        variables = set(resource.get("Properties", {}).get("Environment", {}).get("Variables", {}))
        of_reaper = {variable for variable in variables if variable.startswith("REAP_")} | variables & {"WORKFLOW_TTL"}
        check(name == "ReaperFunction" or not of_reaper, f"{name}: is given variables of the reaper: {sorted(of_reaper)}")
        given |= variables
    # AWS_* are the SDK's: set by Lambda, or used in tests. Lambda accepts no name with a hyphen.
    settable = {name for name in read - SERVER_ONLY - SECRETS if re.fullmatch(r"[A-Za-z]\w+", name) and not name.startswith("AWS_")}
    check(not given & SECRETS, f"template.yaml sets secrets: {sorted(given & SECRETS)}")
    missing, unread = sorted(settable - given), sorted(given - read)
    check(not missing, f"template.yaml cannot set {missing}, which `operator-service variables` lists")
    check(not unread, f"template.yaml sets {unread}, which `operator-service variables` does not list")


def check_schema():
    """CloudFormation calls the migration again, of the function as it is, whenever it would use another database or login."""

    def schema(**given):
        resources = transformed(**given)["Resources"]
        return resources["Schema"]["Properties"], resources

    properties, resources = schema(Release="a" * 64)
    check(properties["Migrate"] == {"Fn::GetAtt": ["MigrateFunction", "Arn"]}, "Schema: calls a version of migrate, whose variables may be old")
    variables = resources["MigrateFunction"]["Properties"]["Environment"]["Variables"]
    used = set(re.findall(r'"Ref": "(Postgres\w+)"', json.dumps(variables)))
    named = set(re.findall(r"\$\{(Postgres\w+)\}", json.dumps(properties)))
    check(used and used <= named, f"Schema: migrate is not called when one of these changes: {sorted(used - named)}")
    # A release is other code or another parameter.
    check(properties != schema(Release="b" * 64)[0], "Schema: migrate is not called for another release")
    versions = {name for name, resource in resources.items() if resource["Type"] == "AWS::Lambda::Version"}
    stale = versions & {name for name in schema(Release="b" * 64)[1]}
    check(versions and not stale, f"a new release does not publish a new version: {sorted(stale)}")


def check_settings(resources):
    """What an installation once stumbled over."""
    text = (ROOT / "template.yaml").read_text()
    secret = set(re.findall(r"^  (\w+): .*NoEcho: true", text, re.MULTILINE)) - {"AllowedAdmins"}
    check(not secret, f"secrets are parameters: {sorted(secret)}")
    stage = next(resource for resource in resources.values() if resource["Type"] == "AWS::ApiGateway::Stage")
    check("DisableDefaultEndpoint" in json.dumps(stage), "the stage does not change with DisableDefaultEndpoint, which then has no effect")
    # https://www.postgresql.org/docs/current/sql-keywords-appendix.html
    data = yaml_parse((ROOT / "infra/data.yaml").read_text())
    names = {template["Parameters"][parameter]["Default"] for template, parameter in (
        (yaml_parse(text), "PostgresDb"), (data, "DatabaseName"))}
    check(names == {"operator_service"}, f"the database's name is a keyword, or differs between the templates: {names}")
    check(set(data["Outputs"]) - {"EngineHost", "EngineSecretArn"} <= set(yaml_parse(text)["Parameters"]), "an output of infra/data.yaml is no parameter")
    monitoring = (ROOT / "infra/monitoring.yaml").read_text()
    check("ApproximateNumberOfMessagesVisible" not in monitoring, "an alarm lasts until the messages of a queue that nobody reads expire")


def check_parameters():
    """docs/parameters.md describes each parameter, in the template's order and with its default."""
    parameters = yaml_parse((ROOT / "template.yaml").read_text())["Parameters"]
    expected = [(name, str(parameter["Default"])) for name, parameter in parameters.items()]
    rows = re.findall(r"^\| (\w+) \| (?:`([^`]+)`)? ?\| .+ \|$", (ROOT / "docs/parameters.md").read_text(), re.MULTILINE)
    rows = [row for row in rows if row[0] != "parameter"]
    for row, (name, default) in itertools.zip_longest(rows, expected, fillvalue=("nothing", "")):
        check(row == (name, default), f"docs/parameters.md: {row} where template.yaml has {(name, default)}")
        if row != (name, default):
            break


def check_migration(resources):
    """The function `migration` responds to CloudFormation in every case."""
    responses = []

    class Bucket(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            responses.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    class Refused(ClientError):
        def __init__(self, code):
            super().__init__({"Error": {"Code": code}}, "Invoke")

    class Lambda:
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
    code = (ROOT / "infra/migration/index.py").read_text()
    function = {}
    exec(compile(code, "MigrationFunction", "exec"), function)  # noqa: S102: code of this repository
    function["boto3"] = types.SimpleNamespace(client=lambda *_, **__: Lambda())
    function["time"] = types.SimpleNamespace(sleep=lambda _: None)
    function["print"] = lambda *_: None

    def run(kind, *results):
        outcomes[:] = results
        Lambda.calls.clear()
        responses.clear()
        event = {
            "RequestType": kind, "ResponseURL": f"http://127.0.0.1:{server.server_port}/", "StackId": "s", "RequestId": "r",
            "LogicalResourceId": "Schema", "ResourceProperties": {"Migrate": "arn:migrate:1"},
        }
        function["handler"](event, None)
        statuses = [response["Status"] for response in responses]
        return statuses, " ".join(response["Reason"] for response in responses), len(Lambda.calls)

    outcomes = []
    check(run("Create", {"payload": {}})[::2] == (["SUCCESS"], 1), "migration: a successful one is not reported as SUCCESS")
    for refusal in ("ResourceConflictException", "ResourceNotReadyException", "AccessDeniedException"):
        waited = run("Update", Refused(refusal), {"payload": {}})[::2]
        check(waited == (["SUCCESS"], 2), f"migration: does not try again after {refusal}, which passes")
    denied = run("Update", *[Refused("AccessDeniedException") for _ in range(50)])[::2]
    check(denied == (["FAILED"], 12), f"migration: tries without end: {denied}")
    other = run("Update", Refused("InvalidParameterValueException"))[::2]
    check(other == (["FAILED"], 1), f"migration: repeats an error that does not pass: {other}")
    rolled_back = run("Update", {"error": True, "payload": {"errorMessage": "broken"}}, {"payload": {}})[0]
    rolled_back += run("Update", {"payload": {}})[0]
    check(rolled_back == ["FAILED", "SUCCESS"], f"migration: a rollback after a failure: {rolled_back}")
    status, reason, _ = run("Create", {"error": True, "payload": {"errorMessage": "no such column"}})
    failed = status == ["FAILED"] and "no such column" in reason
    check(failed, "migration: a failed one is not reported as FAILED with its reason")
    check(run("Update", TimeoutError("read timed out"))[0] == ["FAILED"], "migration: a timeout is not reported as FAILED")
    check(run("Delete")[::2] == (["SUCCESS"], 0), "migration: invokes migrate when the stack is deleted")
    server.shutdown()

    # Before the invocation that counts there may be 11 pauses of 5 s.
    timeouts = [
        resources["MigrateFunction"]["Properties"]["Timeout"],
        int(re.search(r"read_timeout=(\d+)", code).group(1)),
        resources["MigrationFunction"]["Properties"]["Timeout"],
        resources["Schema"]["Properties"]["ServiceTimeout"],
    ]
    check(timeouts == sorted(set(timeouts)), f"migration: each timeout must be shorter than its caller's: {timeouts}")


def main():
    resources = transformed()["Resources"]
    check_routes(resources)
    check_permissions(resources)
    check_variables(resources)
    check_migration(resources)
    check_schema()
    check_parameters()
    check_settings(resources)
    grants = (ROOT / "infra/database/roles.sql").read_text()
    rights_file, current = ROOT / "docs/rights.md", rights.table(resources) + rights.database_table(grants)
    if "--write" in sys.argv:
        rights_file.write_text(current)
    check(rights_file.read_text() == current, "docs/rights.md is not current: scripts/aws-tools python scripts/validate_infra.py --write")
    deployed = list(resources.values())
    for template in glob.glob("infra/*.yaml", root_dir=ROOT):
        nested = yaml_parse((ROOT / template).read_text())["Resources"]
        deployed += nested.values() if template != "infra/deployer.yaml" else ()
        for name, resource in nested.items():
            for node in walk(resource):
                if isinstance(node, dict) and node.get("Effect") == "Allow" and node.get("Resource") == "*":
                    actions = node["Action"] if isinstance(node["Action"], list) else [node["Action"]]
                    check(set(actions) <= ANY_RESOURCE, f"{template}: {name} allows {actions} on every resource")
    deployer.check_creator(check, yaml_parse((ROOT / "infra/deployer.yaml").read_text())["Resources"], deployed)
    variables = {variable["name"] for variable in printed("variables", "--format", "json", keys={"name"})}
    manifests.check_manifests(ROOT, check, variables)
    for message in errors:
        print("error:", message, file=sys.stderr)
    if not errors:
        print(f"routes, permissions, rights, variables, migration, schema, manifests (Kubernetes {', '.join(manifests.KUBERNETES)}): valid")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
