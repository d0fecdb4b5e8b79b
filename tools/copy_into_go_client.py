"""Copy into the Go client what it needs of the rest: Go publishes a module's own folder and nothing outside it.

python tools/copy_into_go_client.py           write the copies
python tools/copy_into_go_client.py --check   write nothing; fail if a copy is not up to date
"""

import argparse
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
MODULE: Final = "clients/go"
PACKAGE: Final = f"{MODULE}/billing"
VECTORS: Final = ("apply", "closed", "plan", "resolution", "secrets")
COPIES: Final = {
    f"{MODULE}/LICENSE": "LICENSE",
    f"{PACKAGE}/blocked_keys.json": "conformance/blocked_keys.json",
    f"{PACKAGE}/service_config.json": "proto/molecule/billing/v1/service_config.json",
    **{f"{PACKAGE}/testdata/{each}.json": f"conformance/{each}.json" for each in VECTORS},
}


def main() -> int:
    """Write the copies, or say which are not up to date; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    wanted = {ROOT / copy: (ROOT / original).read_bytes() for copy, original in COPIES.items()}
    stale = [path for path, content in wanted.items() if not path.exists() or path.read_bytes() != content]
    if check and stale:
        named = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"not a copy of its original: {named}; run: make generate")
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
