"""Signs as the callers of the service do, with eth-account instead of the service's own code.

One JSON object per line in, one out:
    {"key": "0x…"}                                              -> {"address": "0x…"}
    {"key": "0x…", "message": "…", "hashing": "hashed"}         -> {"signature": "0x…"}

hashing is what clients.md calls hashed, the Ocean Node's variety of it ("trimmed"), or "personal".
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
        answer = {"signature": "0x" + bytes(signed.signature).hex()}
    else:
        answer = {"address": Account.from_key(request["key"]).address}
    print(json.dumps(answer), flush=True)
