"""The program: `billing-grpc`, and `python -m billing_grpc`."""

import signal
import sys
from typing import NoReturn

from billing_grpc.extras import Extra


def main() -> NoReturn:
    """Run the command line; exit with a code of `billing-grpc --help`."""
    if "serve" in sys.argv[1:]:
        # SIGHUP means "read the files again"; until the server handles it, its default would end the process. Before
        # anything is loaded, because loading takes most of the start.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        from billing_grpc.cli.main import main as run  # noqa: PLC0415 - only once SIGHUP is ignored
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        # The exit code is that of a failed start.
        sys.exit(f"billing-grpc: the command line {Extra.CLI.needed}; a server {Extra.SERVER.needed}")
    run()


if __name__ == "__main__":
    main()
