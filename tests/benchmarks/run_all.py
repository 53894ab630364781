"""`make bench`: every benchmark that needs no GPU, one after the other; fails where one missed its bound."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("cli.py", "sampling.py", "recorder.py", "ingest.py", "compare.py", "tui.py")


def main() -> None:
    missed = [
        s for s in SCRIPTS if subprocess.run([sys.executable, str(Path(__file__).with_name(s))], check=False).returncode
    ]
    print(f"\n{'all bounds hold' if not missed else 'bounds missed in: ' + ', '.join(missed)}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
