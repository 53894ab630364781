"""`python -m lorawatch.training.counting FILE MODEL LENGTH`: counts a data file's tokens as training would see them.

Prints one JSON object: tokens, rows, and rows cut and dropped at the sequence length; or the error to show to the user.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

from lorawatch.errors import LorawatchError
from lorawatch.system import terminal
from lorawatch.text.sanitize import json_text


def main() -> int:
    """Count, and print.

    Returns:
        The process's exit status.
    """
    terminal.guard()
    source, model, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
    try:
        from lorawatch.models import hub
        from lorawatch.training.data import tokenize
        from lorawatch.training.model import load_tokenizer, read_config
        from lorawatch.training.sources import read_rows

        rows = list(read_rows(source))  # first, so that a broken file is reported even without a tokenizer
        files = hub.find(model)
        plan = SimpleNamespace(folder=files.folder, files=files, config=read_config(files))
        data = tokenize(rows, load_tokenizer(plan), length)  # type: ignore[arg-type]
    except LorawatchError as error:
        _print_json({"error": error.message, "hint": error.hint, "kind": type(error).__name__})
        return error.exit_code
    _print_json({"tokens": data.tokens, "rows": len(data), "cut": data.cut, "dropped": data.dropped})
    return 0


def _print_json(answer: dict[str, object]) -> None:
    sys.stdout.write(json_text(answer) + "\n")


if __name__ == "__main__":
    sys.exit(main())
