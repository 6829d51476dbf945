"""Compares what checkov finds in template.yaml and infra/ with infra/accepted-findings.txt: scripts/findings.py CHECKOV

scripts/validate-infra runs it.
"""

import json
import pathlib
import subprocess
import sys

import validate_infra

ROOT = validate_infra.ROOT


def accepted():
    """The pairs of check and resource that have a reason."""
    for line in (ROOT / "infra/accepted-findings.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            names, reason = line.split(": ", 1)
            check, *resources = names.split()
            assert reason and resources, line
            yield from ((check, resource) for resource in resources)


def found(checkov):
    """The pairs that checkov finds. It cannot read what SAM transforms."""
    template = ROOT / ".local/template.json"
    template.write_text(json.dumps(validate_infra.transformed(), default=str))
    files = [str(template), *map(str, sorted((ROOT / "infra").glob("*.yaml")))]
    command = [checkov, "--framework", "cloudformation", "--skip-download", "--output", "json", "-f", *files]
    run = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(run.stdout)
    except json.JSONDecodeError:
        sys.exit(f"error: checkov failed:\n{run.stderr}")
    if report["summary"]["passed"] < 100 or report["summary"]["parsing_errors"]:
        sys.exit(f"error: checkov could not read everything: {report['summary']}")
    return {(one["check_id"], one["resource"].split(".")[-1]) for one in report["results"]["failed_checks"]}


known, findings = set(accepted()), found(sys.argv[1])
for check, resource in sorted(findings - known):
    print(f"error: {check} {resource}: mend it, or give a reason in infra/accepted-findings.txt", file=sys.stderr)
for check, resource in sorted(known - findings):
    print(f"error: infra/accepted-findings.txt: checkov does not find {check} {resource}", file=sys.stderr)
if findings != known:
    sys.exit(1)
print(f"{len(findings)} findings, each with its reason")
