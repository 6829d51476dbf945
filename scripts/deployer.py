"""Checks that the role Creator (infra/deployer.yaml) may do what the stacks' resources need, and nothing else.

What a type of resource needs, CloudFormation's schemas say, which cfn-lint ships. They name more than these stacks use.
"""

import re

from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER

# Of services and features that nothing here uses.
UNUSED = re.compile(
    r"(amplify|apprunner|appsync|bedrock-agentcore|cognito-idp|elasticfilesystem|elasticloadbalancing|firehose|payments|s3files|vpc-lattice|vpce):"
    r"|iam:(\w+GroupPolicy|\w+UserPolicy|DescribeOrganization|ListRoles)"
    r"|codedeploy:RegisterOnPremisesInstance|ec2:(\w*VerifiedAccess\w*|DescribeInstances)|s3:(REST|GetBucket|PutBucket)"
    r"|lambda:((Put|Delete)(FunctionCodeSigning|FunctionRecursion|FunctionScaling|ProvisionedConcurrency|RuntimeManagement)Config"
    r"|AssociateRuntimeAlias|GetCodeSigningConfig|PassCapacityProvider)"
    r"|logs:((Put|Delete)(DataProtection|Index)Policy|DeleteResourcePolicy|PutBearerTokenAuthentication|PutLogGroupDeletionProtection)"
    r"|rds:(\w*ReadReplica|\w*RoleToDBInstance|\w*RoleFromDBInstance|\w*BackupsReplication|RestoreDBInstanceToPointInTime|DescribeDBCluster\w*)"
    r"|route53:ListHostedZones|secretsmanager:\w*Replic\w*|sns:PutDataProtectionPolicy|wafv2:\w+PermissionPolicy"
)
# Not in the schemas: the custom resource's call, certificates for clients, private names of VPC endpoints.
ADDED = {
    "lambda:InvokeFunction",
    "apigateway:AddCertificateToDomain",
    "apigateway:RemoveCertificateFromDomain",
    "route53:AssociateVPCWithHostedZone",
}


def needed(kind):
    """What CloudFormation does to create, read, update and delete a resource of this type."""
    handlers = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", kind).schema.get("handlers", {})
    return {action for name, handler in handlers.items() if name != "list" for action in handler["permissions"]}


def check_creator(check, deployer, resources):
    """`deployer` are the resources of infra/deployer.yaml, `resources` those of all stacks that it deploys."""
    policies = [*deployer["Creator"]["Properties"]["Policies"], deployer["CreatorOfData"]["Properties"]]
    granted = set()
    for statement in (statement for policy in policies for statement in policy["PolicyDocument"]["Statement"]):
        granted |= {statement["Action"]} if isinstance(statement["Action"], str) else set(statement["Action"])
    kinds = {resource["Type"] for resource in resources if not resource["Type"].startswith("Custom::")}
    wanted = {action: kind for kind in sorted(kinds) for action in needed(kind) if not UNUSED.match(action)}
    for action in sorted(wanted.keys() - granted):
        check(False, f"infra/deployer.yaml: Creator lacks {action}, for {wanted[action]}")
    for action in sorted(granted - wanted.keys() - ADDED):
        check(False, f"infra/deployer.yaml: Creator is allowed {action}, which no resource needs")
