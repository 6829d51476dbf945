"""Deploys, describes and deletes an installation: make configure|deploy|status|destroy ENV=name.

environments/NAME.toml describes one installation. SAM's own samconfig.toml has one set of parameters for each environment, but
an installation is up to three stacks, and the parameters of the last are outputs of the first.
"""

import argparse
import hashlib
import json
import pathlib
import re
import subprocess
import sys

import boto3
import tomlkit
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tomlkit.exceptions import ParseError

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / ".local/aws-sam/build"
# The stacks before the application's: section and template.
BEFORE = {"network": ROOT / "infra/network.yaml", "data": ROOT / "infra/data.yaml"}
ACCOUNT = ROOT / "infra/account.yaml"
ACCOUNT_STACK = "api-gateway-log-role"
LIMITS = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 4})


class Problem(Exception):
    """What the user has to change."""


class Installation:
    """What environments/NAME.toml says."""

    def __init__(self, name):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,39}", name or ""):
            raise Problem("name the installation: make … ENV=name, with letters, digits and hyphens")
        self.name = name
        self.file = ROOT / "environments" / f"{name}.toml"

    def read(self):
        if not self.file.exists():
            raise Problem(
                f"environments/{self.name}.toml does not exist. Copy environments/example.toml, or let AWS be asked for what "
                f"it knows: make configure ENV={self.name} CLUSTER=name-of-the-EKS-cluster"
            )
        try:
            content = tomlkit.parse(self.file.read_text()).unwrap()
        except ParseError as error:
            raise Problem(f"{self.file.name} is not TOML: {error}") from error
        unknown = content.keys() - {"region", "stack", "bucket", "role", "tags", "application", *BEFORE}
        if unknown:
            raise Problem(f"{self.file.name} has unknown entries: {', '.join(sorted(unknown))}")
        for key in ("region", "stack", "application"):
            if key not in content:
                raise Problem(f"{self.file.name} lacks {key}")
        if "…" in self.file.read_text():
            raise Problem(f"{self.file.name} still has a … to be replaced by a value")
        self.region, self.stack, self.content = content["region"], content["stack"], content
        # Functions are named after it, at most 64 characters.
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,49}", self.stack):
            raise Problem(f"{self.file.name}: stack must have at most 50 letters, digits and hyphens")
        return self

    def client(self, service):
        return boto3.client(service, region_name=self.region, config=LIMITS)

    def stack_of(self, section):
        return self.stack if section == "application" else f"{self.stack}-{section}"

    def parameters(self, section):
        return {name: as_text(value) for name, value in self.content.get(section, {}).items()}

    def tags(self):
        return {"installation": self.stack} | self.content.get("tags", {})


def as_text(value):
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def stack(client, name):
    """A stack that exists, or None."""
    try:
        return client.describe_stacks(StackName=name)["Stacks"][0]
    except ClientError as error:
        if "does not exist" in error.response["Error"]["Message"]:
            return None
        raise


def outputs(found):
    return {output["OutputKey"]: output["OutputValue"] for output in (found or {}).get("Outputs", [])}


def sam(*arguments):
    subprocess.run(["sam", *arguments], check=True, cwd=ROOT)


def deploy_stack(installation, name, template, parameters):
    """Creates or updates one stack, and waits for it. A failure is rolled back by CloudFormation."""
    print(f"== {name}", flush=True)
    arguments = ["--template-file", str(template), "--stack-name", name, "--region", installation.region]
    # Without a bucket of one's own, SAM makes one for the account and region.
    bucket = installation.content.get("bucket")
    arguments += ["--s3-bucket", bucket, "--s3-prefix", name] if bucket else ["--resolve-s3"]
    if role := installation.content.get("role"):
        arguments += ["--role-arn", role]
    arguments += ["--capabilities", "CAPABILITY_IAM", "--no-fail-on-empty-changeset", "--no-confirm-changeset"]
    arguments += ["--tags", *[f"{key}={value}" for key, value in installation.tags().items()]]
    if parameters:
        # In quotes, because a value may contain spaces: "rate(5 minutes)".
        arguments += ["--parameter-overrides", *[f'{key}="{value}"' for key, value in parameters.items() if value != ""]]
    try:
        sam("deploy", *arguments)
    except subprocess.CalledProcessError as error:
        raise Problem(f"stack {name} was not deployed; its events are above") from error


def cluster_of(installation, name):
    """The cluster, with the VPC of its subnets."""
    cluster = installation.client("eks").describe_cluster(name=name)["cluster"]
    network = cluster["resourcesVpcConfig"]
    subnets = installation.client("ec2").describe_subnets(SubnetIds=network["subnetIds"])["Subnets"]
    return cluster, network | {"vpcId": subnets[0]["VpcId"]}


def check_cluster(installation):
    """Asks EKS whether the functions will reach the cluster, before anything is created."""
    parameters = installation.parameters("application")
    name = parameters.get("EksClusterName")
    if not name or parameters.get("EksRoleArn"):
        return
    cluster, network = cluster_of(installation, name)
    mode = cluster.get("accessConfig", {}).get("authenticationMode")
    if mode == "CONFIG_MAP" and parameters.get("CreateEksAccess") != "false":
        raise Problem(
            f"cluster {name} has no access entries: aws eks update-cluster-config --name {name} "
            "--access-config authenticationMode=API_AND_CONFIG_MAP"
        )
    for problem in reachability(network, parameters):
        raise Problem(f"the functions would not reach the cluster {name}: {problem}")


def reachability(network, parameters):
    """Why functions with these parameters would not reach the cluster's endpoint."""
    public, private = network.get("endpointPublicAccess", True), network.get("endpointPrivateAccess", False)
    vpc = parameters.get("VpcId", "")
    anyone = "0.0.0.0/0" in network.get("publicAccessCidrs", ["0.0.0.0/0"])
    if private and vpc and vpc == network["vpcId"]:
        return
    if not public:
        yield f"its endpoint is private (endpointPrivateAccess), in {network['vpcId']}; set VpcId and SubnetIds to that VPC"
    elif not anyone and not vpc:
        yield "publicAccessCidrs admits some addresses only, and functions outside a VPC have no fixed address; set VpcId"
    elif not anyone:
        print(
            f"note: the functions use the cluster's public endpoint, so publicAccessCidrs {network['publicAccessCidrs']} must "
            "contain the address of their NAT gateway; or enable endpointPrivateAccess"
        )


def check_account(installation):
    """API Gateway writes access logs with a role of the account, which a fresh account lacks."""
    if installation.parameters("application").get("AccessLog") == "false":
        return
    if not installation.client("apigateway").get_account().get("cloudwatchRoleArn"):
        print("API Gateway has no role for its logs in this account and region")
        deploy_stack(installation, ACCOUNT_STACK, ACCOUNT, {})


def limit_database_log(installation, instance):
    """Like the functions' logs. In infra/data.yaml it cannot be: RDS makes the log's group once the instance, whose name
    CloudFormation makes up, writes to it."""
    logs, group = installation.client("logs"), f"/aws/rds/instance/{instance}/postgresql"
    try:
        logs.create_log_group(logGroupName=group)
    except logs.exceptions.ResourceAlreadyExistsException:
        pass
    logs.put_retention_policy(logGroupName=group, retentionInDays=int(installation.parameters("application").get("LogRetentionDays", 30)))


def release(parameters):
    """Changes with the code of a function and with each parameter: whatever changes, new versions are published."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for file in sorted([*BUILD.glob("*/bootstrap"), BUILD / "template.yaml"]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def deploy(arguments):
    installation = Installation(arguments.env).read()
    if not (BUILD / "template.yaml").exists():
        raise Problem("nothing is built: run make build")
    check_cluster(installation)
    check_account(installation)
    cloudformation = installation.client("cloudformation")
    given = {}
    for section, template in BEFORE.items():
        if section not in installation.content:
            continue
        name, parameters = installation.stack_of(section), installation.parameters(section)
        if section == "data" and not outputs(stack(cloudformation, name)):
            # Protected only once it is complete: CloudFormation could not remove a protected instance if creating what
            # follows fails.
            deploy_stack(installation, name, template, parameters | {"DeletionProtection": "false"})
        deploy_stack(installation, name, template, parameters)
        if section == "data":
            cloudformation.update_termination_protection(StackName=name, EnableTerminationProtection=True)
            found = outputs(stack(cloudformation, name))
            limit_database_log(installation, found["DatabaseInstance"])
            given = {key: value for key, value in found.items() if not key.startswith("Engine")}
            given["PostgresRoleLimits"] = "1"
    parameters = given | installation.parameters("application")
    parameters["Release"] = release(parameters)
    deploy_stack(installation, installation.stack, BUILD / "template.yaml", parameters)
    cloudformation.update_termination_protection(StackName=installation.stack, EnableTerminationProtection=True)
    for key, value in outputs(stack(cloudformation, installation.stack)).items():
        print(f"{key}: {value}")


def destroy(arguments):
    installation = Installation(arguments.env).read()
    cloudformation = installation.client("cloudformation")
    if arguments.confirm != installation.stack:
        raise Problem(f"this deletes the stack {installation.stack}; say so: make destroy ENV={arguments.env} CONFIRM={installation.stack}")
    sections = ["application", "network"] + (["data"] if arguments.data == "delete" else [])
    for section in sections:
        name = installation.stack_of(section)
        if stack(cloudformation, name) is None:
            continue
        cloudformation.update_termination_protection(StackName=name, EnableTerminationProtection=False)
        if section == "data":
            # Of the instance a snapshot stays.
            deploy_stack(installation, name, BEFORE["data"], installation.parameters("data") | {"DeletionProtection": "false"})
        print(f"deleting {name}", flush=True)
        cloudformation.delete_stack(StackName=name)
        cloudformation.get_waiter("stack_delete_complete").wait(StackName=name)
    kept = installation.stack_of("data")
    if stack(cloudformation, kept) is not None:
        print(f"kept: {kept}, with the database; DATA=delete deletes it and leaves a snapshot")


def status(arguments):
    installation = Installation(arguments.env).read()
    cloudformation = installation.client("cloudformation")
    for section in ["application", *BEFORE]:
        found = stack(cloudformation, installation.stack_of(section))
        if found:
            print(f"stack {found['StackName']}: {found['StackStatus']}")
    functions = installation.client("lambda")
    for page in functions.get_paginator("list_functions").paginate():
        for function in page["Functions"]:
            if not function["FunctionName"].startswith(installation.stack + "-"):
                continue
            try:
                version = functions.get_alias(FunctionName=function["FunctionName"], Name="live")["FunctionVersion"]
            except ClientError as error:
                if error.response["Error"]["Code"] != "ResourceNotFoundException":
                    raise
                version = "$LATEST"
            print(f"function {function['FunctionName']}: version {version}, of {function['LastModified']}")
    alarms = installation.client("cloudwatch")
    for page in alarms.get_paginator("describe_alarms").paginate(AlarmNamePrefix=installation.stack + "-"):
        for alarm in page["MetricAlarms"]:
            print(f"alarm {alarm['AlarmName']}: {alarm['StateValue']}")
    for function, pattern, label in (("reaper", '"sweep"', "last sweep"), ("migration", '"reason"', "schema")):
        print(f"{label}: {last_event(installation.client('logs'), f'/aws/lambda/{installation.stack}-{function}', pattern)}")


def last_event(logs, group, pattern):
    """The last line of a function's log that has the pattern, of the newest stream."""
    try:
        streams = logs.describe_log_streams(logGroupName=group, orderBy="LastEventTime", descending=True, limit=1)["logStreams"]
        if not streams:
            return "none yet"
        events = logs.get_log_events(logGroupName=group, logStreamName=streams[0]["logStreamName"], limit=100)["events"]
    except ClientError as error:
        return error.response["Error"]["Message"]
    return next((event["message"].strip() for event in reversed(events) if pattern in event["message"]), "none in the newest log")


def configure(arguments):
    """Writes environments/NAME.toml from what AWS knows, after showing it."""
    installation = Installation(arguments.env)
    if installation.file.exists():
        raise Problem(f"environments/{arguments.env}.toml exists; edit it, or delete it first")
    session = boto3.session.Session()
    region = arguments.region or session.region_name
    if not region:
        raise Problem("name the region: REGION=eu-central-1")
    installation.region = region
    eks, ec2 = installation.client("eks"), installation.client("ec2")
    name = arguments.cluster
    if not name:
        found = eks.list_clusters()["clusters"]
        if len(found) != 1:
            raise Problem(f"name the cluster: CLUSTER=…, one of {', '.join(found) or 'none: this region has no EKS cluster'}")
        name = found[0]
    cluster, network = cluster_of(installation, name)
    vpc = network["vpcId"]
    private = private_subnets(ec2, vpc, network["subnetIds"])
    document = tomlkit.document()
    document.add(tomlkit.comment("Written by make configure. docs/parameters.md describes what can be added."))
    document["region"], document["stack"] = region, f"operator-service-{arguments.env}"
    group = network.get("clusterSecurityGroupId", "")
    application = {
        "VpcId": vpc,
        "SubnetIds": private,
        "EksClusterName": name,
        "EksClusterEndpoint": cluster["endpoint"].rstrip("/"),
        "EksClusterCa": cluster["certificateAuthority"]["data"],
        "ClusterSecurityGroupId": group,
        "AllowedProviders": "0x…",
        "AllowedAdmins": "0x…",
        "AlarmEmail": "",
    }
    document["application"] = application
    if arguments.database == "new":
        document["data"] = {"VpcId": vpc, "SubnetIds": private, "NodeSecurityGroupId": group}
    else:
        application |= {"PostgresHost": "", "PostgresSecretArn": "", "DatabaseSecurityGroupId": ""}
        document["application"] = application
    filters = [{"Name": "vpc-id", "Values": [vpc]}]
    services = {endpoint["ServiceName"].rsplit(".", 1)[1] for endpoint in ec2.describe_vpc_endpoints(Filters=filters)["VpcEndpoints"]}
    if not ec2.describe_nat_gateways(Filters=[*filters, {"Name": "state", "Values": ["available"]}])["NatGateways"]:
        if "secretsmanager" not in services:
            ranges = [entry["CidrBlock"] for entry in ec2.describe_vpcs(VpcIds=[vpc])["Vpcs"][0]["CidrBlockAssociationSet"]]
            document["network"] = {"VpcId": vpc, "VpcCidrs": ranges[:2], "SubnetIds": private, "Services": "secretsmanager"}
        print("note: the VPC has no NAT gateway, so only results in S3 can be fetched")
    for problem in reachability(network, {"VpcId": vpc}):
        print(f"note: {problem}")
    text = tomlkit.dumps(document)
    print(text)
    if not arguments.yes and not confirmed(f"write this to environments/{arguments.env}.toml?"):
        raise Problem("nothing was written")
    installation.file.parent.mkdir(exist_ok=True)
    installation.file.write_text(text)
    print(f"written; replace 0x… by the addresses of your callers and administrators, then: make deploy ENV={arguments.env}")


def confirmed(question):
    """Whether the user answers y. No input, as in a pipeline, is a no."""
    try:
        return input(f"{question} [y/N] ").strip().lower() == "y"
    except EOFError:
        print()
        return False


def private_subnets(ec2, vpc, candidates):
    """The cluster's subnets without a route to an internet gateway; all of them if there are none."""
    tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]

    def is_public(table):
        return any((route.get("GatewayId") or "").startswith("igw-") for route in table["Routes"])

    own = {link.get("SubnetId"): is_public(table) for table in tables for link in table["Associations"]}
    main = next((is_public(table) for table in tables for link in table["Associations"] if link.get("Main")), False)
    private = [subnet for subnet in candidates if not own.get(subnet, main)]
    if not private:
        print("note: none of the cluster's subnets is private; Lambda functions in public subnets have no way out")
    return private or candidates


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for command, options in (
        (configure, ("cluster", "region", "database")), (deploy, ()), (status, ()), (destroy, ("confirm", "data")),
    ):
        sub = commands.add_parser(command.__name__)
        sub.add_argument("env")
        sub.add_argument("--yes", action="store_true")
        for option in options:
            sub.add_argument(f"--{option}", default="")
        sub.set_defaults(command=command)
    arguments = parser.parse_args()
    try:
        arguments.command(arguments)
    except (Problem, BotoCoreError, ClientError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
