"""Signs messages as the callers of the service do, with eth-account instead of the service's own code.

Reads one JSON object per line and prints one for each:
    {"key": "0x…"}                                              -> {"address": "0x…"}
    {"key": "0x…", "message": "…", "hashing": "hashed"}         -> {"signature": "0x…"}

hashing is one of the forms of docs/contract/callers.md, "What is signed": "hashed", Ocean Node's variant of it ("trimmed"),
or "personal".
"""

import json
import sys

from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils import keccak


def signable(message: str, hashing: str):
    if hashing == "personal":
        return encode_defunct(text=message)
    digest = keccak(text=message)
    if hashing == "trimmed":
        digest = digest.lstrip(b"\0")
    return encode_defunct(primitive=digest)


for line in sys.stdin:
    request = json.loads(line)
    if "message" in request:
        signed = Account.sign_message(signable(request["message"], request["hashing"]), request["key"])
        response = {"signature": "0x" + bytes(signed.signature).hex()}
    else:
        response = {"address": Account.from_key(request["key"]).address}
    print(json.dumps(response), flush=True)
