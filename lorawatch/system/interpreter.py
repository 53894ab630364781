"""How lorawatch starts Python processes of its own: the user's working folder lends them no module.

Python puts the working folder first on `sys.path` for `-m` and `-c`, so that a `random.py` beside a recipe would take the
standard library's place. A user's own command is started as it is.
"""

from __future__ import annotations

import sys

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""For torchrun's environment, whose ranks are started without `-P`. Never for a user's own command."""


def own_module(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module, ours or a library's, in a Python process of its own."""
    return [sys.executable, "-P", "-m", module, *arguments]
