"""The tables docs/rights.md: function × right × resource, from the transformed template, and of the database from its grants."""

import json
import re

HEADER = """# Rights

What each role may do, from the template as SAM hands it to CloudFormation. Written by `scripts/aws-tools python
scripts/validate_infra.py --write`; `make validate` fails if it is not current.

| role | right | on | if |
| --- | --- | --- | --- |
"""

DATABASE = """
## In the database

What each function's database role may do with the tables, if `PostgresRoles` is set (infra/database/roles.sql). `migrate` owns
them; `docs` has no database.

| role | right | on | columns |
| --- | --- | --- | --- |
"""


def chosen(node, conditions=()):
    """The branches of Fn::If, each with its conditions."""
    if isinstance(node, dict) and "Fn::If" in node:
        condition, yes, no = node["Fn::If"]
        yield from chosen(yes, (*conditions, condition))
        yield from chosen(no, (*conditions, f"not {condition}"))
    elif node != {"Ref": "AWS::NoValue"}:
        yield node, conditions


def text(node):
    """A resource in one word: its parameter, its logical name or its ARN."""
    if isinstance(node, str):
        return node
    if isinstance(node, list):
        return ", ".join(map(text, node))
    (function, value), = node.items()
    if function == "Ref":
        return value
    if function == "Fn::GetAtt":
        return value[0] if isinstance(value, list) else value.split(".")[0]
    if function == "Fn::Sub":
        template, variables = (value, {}) if isinstance(value, str) else value
        for name, part in variables.items():
            template = template.replace(f"${{{name}}}", text(part)) if "Fn::Sub" in part else template
        return re.sub(r"\$\{(?:AWS::)?(\w+)\}", r"<\1>", template)
    if function == "Fn::If":
        return " or ".join(dict.fromkeys(text(branch) for branch in value[1:]))
    if function == "Fn::Split":
        return text(value[1])
    return json.dumps(node, sort_keys=True)


def rows(resources):
    for name, role in sorted(resources.items()):
        if role["Type"] != "AWS::IAM::Role":
            continue
        properties = role["Properties"]
        documents = [(policy["PolicyDocument"], ()) for policy in properties.get("Policies", [])]
        for entry in properties.get("ManagedPolicyArns", []):
            for arn, conditions in chosen(entry):
                if isinstance(arn, dict) and arn.get("Ref") in resources:
                    documents.append((resources[arn["Ref"]]["Properties"]["PolicyDocument"], conditions))
                else:
                    yield name, "managed policy", text(arn), conditions
        for document, outer in documents:
            for entry in document["Statement"]:
                for statement, conditions in chosen(entry, outer):
                    actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
                    deny = "" if statement["Effect"] == "Allow" else "not "
                    condition = statement.get("Condition", {})
                    keys = tuple(f"{key} is {text(value)}" for test in condition.values() for key, value in test.items())
                    for action in actions:
                        yield name, deny + action, text(statement["Resource"]), conditions + keys


def table(resources):
    lines = [f"| {role.removesuffix('Role')} | {right} | {on} | {', '.join(conditions)} |" for role, right, on, conditions in rows(resources)]
    return HEADER + "\n".join(sorted(set(lines))) + "\n"


def database_rows(sql):
    sql = re.sub(r"--.*", "", sql)
    for granted, table, roles in re.findall(r"^GRANT\s+([^;]*?)\s+ON\s+(\w+)\s+TO\s+([^;]+);", sql, re.MULTILINE):
        for right, columns in re.findall(r"(SELECT|INSERT|UPDATE|DELETE)(?:\s*\(([^)]*)\))?", granted):
            for role in roles.split(","):
                yield role.strip().removeprefix("operator_").capitalize(), right, table, " ".join(columns.split()) or "all"


def database_table(sql):
    return DATABASE + "\n".join(f"| {' | '.join(row)} |" for row in sorted(database_rows(sql))) + "\n"
