"""The lines above the panes: the run, its progress and its figures."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text
from textual.widgets import Static

from lorawatch.run.directory import ENDED
from lorawatch.screens.shared.braille import braille
from lorawatch.text.numbers import duration, number
from lorawatch.text.run_summary import evaluation_words
from lorawatch.watching.frame import Frame, Head, Replaying
from lorawatch.watching.words import energy_words, joules, power_words, tok_s_words

_GLYPH = {"running": "▶", "starting": "◌", "queued": "◌", "stopping": "■", "completed": "✓", "stopped": "■", "failed": "✗",
          "lost": "✗"}  # fmt: skip
_COLOUR = {"failed": "error", "lost": "error", "stopping": "warning", "stopped": "warning", "starting": "primary"}
_NAME_LETTERS = 32
_WIDE = 100  # columns from which the loss curve and a whole evaluation have room side by side
_BESIDE_BAR = 46  # columns left free for the words before and behind the progress bar
_LONGEST_BAR, _SHORTEST_BAR = 60, 8
_LOSS_COLUMNS = 24


class RunHead(Static):
    """State, progress and the run's figures; without a run, a line about this machine."""

    DEFAULT_CSS = """
    RunHead { height: auto; max-height: 6; padding: 0 1; }
    """

    def show(self, frame: Frame) -> None:
        """Draw this frame."""
        colours = {name: self.app.theme_variables.get(name, "") for name in ("success", "warning", "error", "primary")}
        width = max(self.size.width - 2, 20)
        text = Text(no_wrap=True, overflow="ellipsis")
        if frame.head is None:
            _machine(text, frame)
        else:
            _run(text, frame, frame.head, width, colours)
        for alert in frame.alerts[:1] if self.screen.has_class("-low") else frame.alerts[:3]:
            colour = colours["error" if alert.severity == "error" else "warning"]
            text.append(f"\n{alert.glyph} {alert.word}: {alert.text}", _style(colour, bold=True))
        if frame.notice:
            text.append(f"\n! {frame.notice}", _style(colours["warning"]))
        self.update(text)


def _style(colour: str, *, bold: bool = False) -> str:
    usable = colour if colour.startswith("#") else ""
    return f"bold {usable}".strip() if bold else usable


def _machine(text: Text, frame: Frame) -> None:
    text.append("this machine", "bold")
    text.append(
        "   no run is shown; 3 launches one, 2 looks back" if not frame.others else "   ] shows the live run", "dim"
    )
    if frame.host:
        text.append(f"\n{frame.host}", "dim")


def _run(text: Text, frame: Frame, head: Head, width: int, colours: dict[str, str]) -> None:
    """The run in three lines: its name and state, its progress, its figures."""
    _title_line(text, frame, head, colours)
    text.append("\n")
    _progress_line(text, head, width, colours)
    text.append("\n")
    if head.message and head.state in ENDED:
        colour = colours["warning" if head.state == "stopped" else "error"]
        text.append(head.message.splitlines()[0] + "\n", _style(colour))
    text.append("   ".join(figures(head, width)), "bold")


def _title_line(text: Text, frame: Frame, head: Head, colours: dict[str, str]) -> None:
    state = head.state.upper() + (f" {head.failure}" if head.failure else "")
    text.append(f"{_GLYPH.get(head.state, '·')} {head.run_id} ", "bold")
    text.append(f"{head.name[:_NAME_LETTERS]}  ", "bold")
    text.append(state, _style(colours[_COLOUR.get(head.state, "success")], bold=True))
    if frame.replay is not None:
        text.append("  ")
        text.append(_replay_words(frame.replay), "reverse")
    if head.attempt:
        text.append(f"  attempt {head.attempt}", _style(colours["warning"]))
    if len(frame.others) > 1:
        position = frame.others.index(head.run_id) + 1 if head.run_id in frame.others else "–"
        text.append(f"  run {position} of {len(frame.others)} live", "dim")


def _replay_words(replay: Replaying) -> str:
    speed = "paused" if replay.paused else f"{replay.speed:g}×"
    return f" REPLAY {duration(replay.position_s)}/{duration(replay.length_s)} {speed} "


def _progress_line(text: Text, head: Head, width: int, colours: dict[str, str]) -> None:
    """The step, with a bar where the number of steps is known; then the estimated and the elapsed time."""
    if head.steps_total:
        share = min(head.step / head.steps_total, 1.0)
        bar = max(min(width - _BESIDE_BAR, _LONGEST_BAR), _SHORTEST_BAR)
        full = int(share * bar)
        text.append(f"step {head.step}/{head.steps_total} ")
        text.append("━" * full, _style(colours["primary"]))
        text.append("━" * (bar - full), "dim")
        text.append(f" {100 * share:.0f}%")
    elif head.step:
        text.append(f"step {head.step}")
    else:
        text.append(head.phase, "dim")
    if head.state not in ENDED and head.eta_s:
        text.append(f"  ETA {duration(head.eta_s)}")
    text.append(f"  {duration(head.elapsed_s)}", "dim")
    if head.state == "starting" and head.steps_total:
        text.append(f"  {head.phase}", "dim")


def figures(head: Head, width: int) -> list[str]:
    """The run's figures: of its recent steps while it is running, after its end the same as in `lorawatch show`."""
    return [*_rates(head, wide=width >= _WIDE or head.eval_step is None), *_energies(head)]


def _rates(head: Head, wide: bool) -> Iterator[str]:
    """Rates and losses of the steps; before the first step only the power.

    Args:
        wide: Whether there is room for the loss curve and the whole evaluation.
    """
    if head.step:
        yield tok_s_words(head)
        if head.tok_per_j is not None:
            yield f"{head.tok_per_j:.1f} tok/J"
    if head.power_w is not None:
        yield power_words(head)
    if not head.step:
        return
    yield f"loss {number(head.loss, 4)}" + (_loss_curve(head) if wide else "")
    if head.eval_step is not None:
        yield f"eval {_evaluation(head, head.eval_step, wide)}"
    if head.mfu is not None:
        yield f"MFU {100 * head.mfu:.0f}%"


def _energies(head: Head) -> Iterator[str]:
    """The energy of the run's GPUs, and of all GPUs where it differs."""
    if head.energy_j is not None:
        yield energy_words(head)
    if head.energy_all_j is not None and head.energy_all_j != head.energy_j:
        yield f"all GPUs {number(head.power_all_w)} W {joules(head.energy_all_j)}"


def _evaluation(head: Head, step: int, wide: bool) -> str:
    """The last evaluation's loss, and where the lowest was."""
    if wide or head.best_eval_step is None:
        return evaluation_words(head.eval_loss, step, head.best_eval_loss, head.best_eval_step)
    lowest = "the lowest" if step == head.best_eval_step else f"lowest at step {head.best_eval_step}"
    return f"{number(head.eval_loss, 4)} ({lowest})"


def _loss_curve(head: Head) -> str:
    curve = head.loss_curve
    if curve is None or len(curve.low) < 2:
        return ""
    columns = curve.columns(curve.start, curve.end, _LOSS_COLUMNS)
    known = [c for c in columns if c is not None]
    if not known:
        return ""
    return " " + braille(columns, 1, min(c[0] for c in known), max(c[1] for c in known), fill=False)[0]
