"""A measurement in a process of its own, which says what it found in one line of its standard output."""

from __future__ import annotations

import json
import subprocess
import threading
from typing import Any

_MARK = "RESULT "
_SAID = 3000


def tell(result: dict[str, Any]) -> None:
    """In the child: say what was found."""
    print(_MARK + json.dumps(result), flush=True)


def result_of(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """What a child found, with the end of its `stderr`; or its `error`. It is ended when its time is over.

    Args:
        process: With pipes for both its outputs.
    """
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    out, err = process.communicate()
    timer.cancel()
    said = err.decode(errors="replace")[-_SAID:]
    lines = [line for line in out.decode(errors="replace").splitlines() if line.startswith(_MARK)]
    if not lines:
        return {"error": f"status {process.returncode}: {said}"}
    return {**json.loads(lines[-1].removeprefix(_MARK)), "stderr": said}
