"""Writing the comparison into a file: asks for its name, and before it replaces another file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorawatch.errors import LorawatchError, UsageError
from lorawatch.system.permissions import write_export
from lorawatch.system.user_files import expanded
from lorawatch.text.sanitize import clean

if TYPE_CHECKING:
    from lorawatch.comparing.rows import Comparison
    from lorawatch.screens.shared.base import BaseScreen

FORMS = {".html": "html", ".htm": "html", ".csv": "csv", ".json": "json", ".md": "markdown", ".txt": "table"}
DEFAULT_NAME = "lorawatch-compare.html"
KEY = "export"


def ask_name(screen: BaseScreen, comparison: Comparison, name: str) -> None:
    """Ask for a file's name and write into it; `Answered(KEY, (name, words))` goes to the screen."""
    from lorawatch.screens.shared.confirm import Ask

    def answered(given: str | None) -> None:
        if given is not None and given.strip():
            _write(screen, comparison, given.strip(), replace_it=False)

    screen.app.push_screen(Ask(f"Write the comparison into a file ({', '.join(FORMS)})", name), answered)


def ask_replace(screen: BaseScreen, comparison: Comparison, name: str) -> None:
    """Ask whether to replace the file that exists."""
    from lorawatch.screens.shared.confirm import Confirm

    def answered(yes: bool | None) -> None:
        if yes:
            _write(screen, comparison, name, replace_it=True)

    screen.app.push_screen(Confirm(f"{clean(name)} exists already. Replace it?"), answered)


def _write(screen: BaseScreen, comparison: Comparison, name: str, *, replace_it: bool) -> None:
    screen.services.background.ask(screen, KEY, lambda: (name, export(comparison, name, replace_it=replace_it)))


def export(comparison: Comparison, name: str, *, replace_it: bool) -> str | None:
    """Write the comparison into a file, in the format of its extension.

    Returns:
        A line about the written file; None where the file exists and must not be replaced.

    Raises:
        UsageError: An unknown extension, or nothing is chosen.
        LorawatchError: It cannot be written.
    """
    from lorawatch.comparing import formats

    path = expanded(name).absolute()
    form = FORMS.get(path.suffix.lower())
    if form is None:
        raise UsageError(f"{clean(path.name)!r} has no known extension", hint=f"use one of {', '.join(FORMS)}")
    if not comparison.rows:
        raise UsageError("nothing is chosen to be written")
    try:
        if path.exists() and not replace_it:
            if path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            return None
        write_export(path, formats.write(comparison, form) + "\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise LorawatchError(f"{clean(str(path))} cannot be written: {why}", hint="e asks for another name") from None
    count = len(comparison.rows)
    return f"written: {clean(str(path))} ({count} configuration{'s' if count != 1 else ''}, {form})"
