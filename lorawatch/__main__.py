"""The program's entry: `lorawatch` and `python -m lorawatch`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status; every error of ours is one clean message."""
    from lorawatch.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
