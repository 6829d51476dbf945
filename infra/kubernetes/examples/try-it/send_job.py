"""Sends a job to the installation of this directory as Provider would, waits for its end, and prints its results.

    python3 -m venv venv && venv/bin/pip install eth-account
    venv/bin/python infra/kubernetes/examples/try-it/send_job.py

Needs kubectl. URL=http://host:port uses a server that is reachable already.
"""

import json
import os
import secrets
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils import keccak

NAMESPACE = "ocean-compute"
OWNER = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA"
PROVIDER = Account.create()
ALGORITHM = "seq 1 10 | awk '{ sum += $1 } END { print \"the sum of 1 to 10 is\", sum }' | tee $OUTPUTS/result.txt"
# How long the engine may take to be announced: its images are pulled; and the job, for the same reason.
LIMIT = 900


def call(base, method, operation, body=None, **query):
    """Returns the status and the body of a response."""
    url = f"{base}/api/v1/operator/{operation}?{urllib.parse.urlencode(query)}"
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (urllib.error.URLError, ConnectionError) as error:
        return 0, str(error)


def signed(job=""):
    """The parameters that sign a request of this owner about this job (docs/contract/callers.md)."""
    nonce = str(time.time_ns())
    message = encode_defunct(keccak(text=OWNER + job + nonce))
    signature = Account.sign_message(message, PROVIDER.key).signature.hex()
    signature = {"providerSignature": "0x" + signature.removeprefix("0x"), "nonce": nonce}
    return {"owner": OWNER, "providerAddress": PROVIDER.address, **signature}


def until(what, attempt):
    deadline = time.monotonic() + LIMIT
    while not (result := attempt()):
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {what} took longer than {LIMIT} s; look at: kubectl -n {NAMESPACE} get pods")
        time.sleep(2)
    return result


def expect(answer):
    status, body = answer
    if status != 200:
        raise SystemExit(f"error: {status} {body}")
    return json.loads(body)


def run(base):
    print("waiting for the engine's announcement", flush=True)
    until("the announcement", lambda: f'"id":"{NAMESPACE}"' in call(base, "GET", "environments")[1])
    outputs = os.environ.get("OUTPUTS", "/data/outputs")
    stage = {
        "index": 0,
        "input": [],
        "compute": {"Instances": 1, "namespace": NAMESPACE, "maxtime": 3600},
        "algorithm": {
            "id": "did:op:" + secrets.token_hex(32),
            "rawcode": ALGORITHM.replace("$OUTPUTS", outputs),
            "container": {"image": "busybox", "tag": "1.36", "entrypoint": "sh $ALGO"},
        },
        "output": {},
    }
    start = {"workflow": {"stages": [stage]}, "agreementId": "0x" + secrets.token_hex(32), "environment": NAMESPACE}
    job = expect(call(base, "POST", "compute", {**start, **signed()}))[0]["jobId"]
    print("job", job, flush=True)
    shown = None

    def finished():
        nonlocal shown
        status = expect(call(base, "GET", "compute", jobId=job, **signed(job)))[0]
        if status["statusText"] != shown:
            shown = status["statusText"]
            print(" ", shown, flush=True)
        return status if status["dateFinished"] else None

    for index, result in enumerate(until("the job", finished)["results"]):
        status, body = call(base, "GET", "getResult", jobId=job, index=index, **signed(job))
        print(f"{result['filename']}: {status}\n{body}")


if "URL" in os.environ:
    run(os.environ["URL"])
else:
    kubectl = ["kubectl", "-n", NAMESPACE]
    subprocess.run([*kubectl, "rollout", "status", "deployment/operator-service", f"--timeout={LIMIT}s"], check=True)
    forward = subprocess.Popen([*kubectl, "port-forward", "service/operator-service", "18050:8050"])
    try:
        run("http://127.0.0.1:18050")
    finally:
        forward.terminate()
