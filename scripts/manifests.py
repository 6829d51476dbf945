"""Checks the Kubernetes manifests: their schemas, and that they set variables which somebody reads."""

import glob
import re

import kubernetes_validate
import yaml

# The versions of Kubernetes that the service's client library supports.
KUBERNETES = ["1.32", "1.33", "1.34", "1.35", "1.36"]
# What PostgreSQL's image reads, with the scripts that it runs at its first start.
POSTGRES = {"POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD", "PGDATA", "ENGINE_PASSWORD"}


def documents(root):
    """Every document of every manifest, with the file that it is in."""
    for file in sorted(glob.glob("infra/kubernetes/**/*.yaml", root_dir=root, recursive=True)):
        for document in yaml.safe_load_all((root / file).read_text()):
            yield file, document


def check_schemas(root, check):
    """Every version of Kubernetes accepts every manifest, and every kustomization finds what it names."""
    for file, document in documents(root):
        if document["kind"] in ("Kustomization", "Component"):
            for entry in document.get("resources", []) + document.get("components", []):
                check((root / file).parent.joinpath(entry).exists(), f"{file}: {entry} does not exist")
            continue
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                check(False, f"{file}, Kubernetes {version}: {error}")


def check_variables(root, check, variables):
    """`variables` are those of the service; the engine's are in a table of docs/contract/engine.md."""
    page = (root / "docs/contract/engine.md").read_text()
    engine = set(re.findall(r"`(\w+)`", page.split("## The engine's configuration")[1].split("\n## ")[0]))
    readers = {
        "operator-service": variables,
        "operator-service-database": variables | POSTGRES,
        "operator-engine": engine,
        "postgres": POSTGRES,
    }
    checked = set()

    def known(file, reader, names):
        unknown = set(names) - readers[reader]
        check(not unknown, f"{file}: {reader} does not read {', '.join(sorted(unknown))}")
        checked.add(reader)

    for file, document in documents(root):
        for generator in ("configMapGenerator", "secretGenerator"):
            for made in document.get(generator, []):
                if made["name"] in readers:
                    known(file, made["name"], [literal.split("=")[0] for literal in made["literals"]])
        for container in containers(document):
            reader = container["image"].split("/")[-1].split(":")[0]
            if container.get("env"):
                known(file, reader, [one["name"] for one in container["env"]])
    check(checked == set(readers), f"no manifest configures {', '.join(set(readers) - checked)}")


def containers(node):
    """The containers of a workload of any kind."""
    if isinstance(node, dict):
        yield from node.get("containers") or []
        for value in node.values():
            yield from containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from containers(value)


def check_manifests(root, check, variables):
    check_schemas(root, check)
    check_variables(root, check, variables)
    check(list(documents(root)), "no manifest was checked")
