"""The program's entry: `lorawatch` and `python -m lorawatch`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status; every error of ours is one clean message."""
    from lorawatch.system import permissions, terminal

    terminal.guard()
    permissions.keep_private()
    from lorawatch.cli.main import run

    sys.exit(terminal.finish(run(sys.argv[1:])))


if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path:
        # `-m` puts the working folder first: a random.py of the user's would take the library's place.
        del sys.path[0]
    main()
