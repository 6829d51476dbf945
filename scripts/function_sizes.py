"""Prints the sizes of the functions that `make build` built, zipped as `make deploy` uploads them, and fails above a limit."""

import io
import pathlib
import sys
import zipfile

# Bytes, zipped. Lambda downloads and unpacks a function on a cold start, so its size is part of a request's latency.
LIMIT = 6_000_000

binaries = sorted(pathlib.Path(".local/aws-sam/build").glob("*/bootstrap"))
if not binaries:
    sys.exit("error: no function is built: run make build")
too_large = []
for binary in binaries:
    name = binary.parent.name
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(binary, binary.name)
    size = zipped.tell()
    print(f"{name}\t{size / 1e6:.1f} MB zipped, {binary.stat().st_size / 1e6:.1f} MB unpacked")
    if size > LIMIT:
        too_large.append(name)
if too_large:
    sys.exit(f"error: larger than {LIMIT / 1e6:.0f} MB zipped: {', '.join(too_large)}")
