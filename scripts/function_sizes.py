"""Says how large the functions that `make build` built are as `make deploy` uploads them, and fails if one is too large."""

import io
import pathlib
import sys
import zipfile

# A cold start fetches and unpacks it all.
LIMIT = 6_000_000

large = False
for binary in sorted(pathlib.Path(".local/aws-sam/build").glob("*/bootstrap")):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(binary, binary.name)
    size = packed.tell()
    large |= size > LIMIT
    print(f"{binary.parent.name}\t{size / 1e6:.1f} MB zipped, {binary.stat().st_size / 1e6:.1f} MB unpacked")
if large:
    sys.exit(f"error: a function may have {LIMIT / 1e6:.0f} MB")
