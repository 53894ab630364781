"""Words and questions about a run that the list of runs and a run's own page share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorawatch.text.sanitize import clean

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from lorawatch.screens.shared.base import BaseScreen

GLYPHS = {"running": "▶", "starting": "◌", "queued": "◌", "stopping": "■", "completed": "✓", "stopped": "■", "failed": "✗",
          "lost": "✗"}  # fmt: skip


def one_line(text: object) -> str:
    """Text from outside as one harmless line."""
    return " ".join(clean(str(text)).split())


def where_words(row: Mapping[str, Any]) -> str:
    """`4×RTX PRO 4500`, `2×cpu`, `2×H100 80GB HBM3 separate`."""
    sku = one_line(row["sku"] or "").removeprefix("NVIDIA ")
    separate = " separate" if row.get("coupling") == "separate" else ""
    if sku:
        return f"{row['gpu_count']}×{sku}{separate}"
    return f"{row['world_size'] or 1}×{row['device'] or 'process'}{separate}"


def state_words(row: Mapping[str, Any]) -> str:
    """`✓ completed`, `✗ failed cuda_oom`, `? no word from n1 for 3:20`."""
    if row.get("note"):
        return f"? {one_line(row['note'])}"
    state = one_line(row["state"] or "")
    return f"{GLYPHS.get(state, '·')} {state}" + (f" {one_line(row['failure'])}" if row["failure"] else "")


def ask_tags(screen: BaseScreen, run_id: str, tags: Sequence[str]) -> None:
    """Let the user type a run's tags; the screen gets the answer `changed`."""
    from textual.widgets import Input

    from lorawatch.screens.shared.confirm import Ask

    def answered(text: str | None) -> None:
        if text is not None:
            from lorawatch.storage.edit import set_tags

            words = list(dict.fromkeys(w for w in clean(text).replace(",", " ").split()))
            screen.services.background.ask(screen, "changed", lambda: set_tags(run_id, words))

    class AskTags(Ask):
        def compose(self) -> ComposeResult:
            for widget in super().compose():
                if isinstance(widget, Input):
                    widget.select_on_focus = False  # what is typed is added to what is there
                yield widget

    now = "".join(one_line(t) + " " for t in tags)
    screen.app.push_screen(AskTags(f"Tags of {run_id}, separated by spaces", now), answered)


def ask_delete(screen: BaseScreen, run_id: str, before: Callable[[], None] | None = None) -> None:
    """Ask whether to delete the run, and delete it; the screen gets the answer `deleted`.

    Args:
        before: Called when the user has confirmed.
    """
    from lorawatch.screens.shared.confirm import Confirm

    def answered(yes: bool | None) -> None:
        if yes:
            from lorawatch.storage.edit import delete_run

            if before is not None:
                before()
            screen.services.background.ask(screen, "deleted", lambda: delete_run(run_id))

    screen.app.push_screen(
        Confirm(f"Delete run {run_id} from the history, with its journals, checkpoints and adapter?"), answered
    )
