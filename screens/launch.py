"""Launch: choose a recipe, edit it, see what it will take, and start it as a shell would."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from lorawatch import paths, recipe
from lorawatch.devices import parse_gpus
from lorawatch.errors import LorawatchError, RecipeError, UsageError
from lorawatch.rundir import Gpu
from lorawatch.sanitize import clean
from lorawatch.screens.background import Answered
from lorawatch.screens.base import HouseScreen
from lorawatch.text import duration, number

RECENT = 12
EPOCH_TOKENS = 50_000_000


@dataclass(frozen=True)
class Choice:
    """A recipe to begin with."""

    name: str
    text: str
    source: str


def load_choices() -> list[Choice]:
    """Built-in recipes, then those of the latest runs, each text once."""
    found = [Choice(name, recipe.load(name).to_yaml(), "built-in") for name in recipe.builtin_names()]
    seen = {c.text for c in found}
    folder = paths.runs_folder()
    roots = sorted(folder.iterdir(), reverse=True)[:200] if folder.is_dir() else []
    recent = []
    for root in roots:
        try:
            text = (root / "recipe.yaml").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text not in seen:
            seen.add(text)
            recent.append(Choice(text.partition("\n")[0].removeprefix("name:").strip()[:32], text, root.name))
        if len(recent) >= RECENT:
            break
    return found + recent


def measured(name: str, sku: str | None, ranks: int) -> tuple[float, float | None] | None:
    """What history measured for a recipe of this name on this SKU and count: tok/s and its 95% half-width."""
    from lorawatch.storage.queries import list_runs

    for row in list_runs(limit=50, name=name, state="completed", deadline_s=0.3):
        if row["tok_s"] and row["sku"] == sku and (row["world_size"] or 1) == ranks:
            return row["tok_s"], row["tok_s_ci95"]
    return None


def start(text: str, gpus: str) -> str:
    """Start a recorder on this recipe, as a shell would. Returns the run's id.

    Raises:
        UsageError: It did not start; the message is what the command said.
    """
    folder = paths.home() / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.time_ns()}.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lorawatch", "--record", str(path), "--gpus", gpus, "--detach", "--json"],
            capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"the recorder did not start: {error}") from None
    finally:
        path.unlink(missing_ok=True)
    try:
        answer = msgspec.json.decode(done.stdout)
        return str(answer["run_ids"][0])
    except (msgspec.MsgspecError, KeyError, IndexError, TypeError):
        raise UsageError((done.stderr or done.stdout).strip().removeprefix("lorawatch: ")[-800:]) from None


class LaunchScreen(HouseScreen):
    """A list of recipes, an editor that checks as you type, and what the run would take."""

    MODE = "launch"
    HELP = """\
Choose a recipe on the left (built-in ones first, then those of the latest runs), or open a file with ctrl+o. Change it
in the editor: every mistake is named below it as you type. GPUs takes all, indices such as 0,2, or cpu:2.

F5 (or ctrl+s) starts the run: a recorder of its own, exactly as lorawatch --record would; leaving this program does
not stop it."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f5,ctrl+s", "start", "Start", key_display="F5", priority=True),
        Binding("ctrl+o", "open", "Open file", priority=True),
        Binding("escape", "to_list", "List", show=False, priority=True),
    ]
    CSS = """
    LaunchScreen #recipes { width: 30; height: 1fr; border: round $foreground 40%; border-title-color: $primary; }
    LaunchScreen.-narrow #recipes { width: 18; }
    LaunchScreen #text { height: 1fr; border: round $foreground 40%; border-title-color: $primary; padding: 0; }
    LaunchScreen #text:focus, LaunchScreen #recipes:focus { border: round $primary; }
    LaunchScreen #where { height: 1; }
    LaunchScreen #gpus { height: 1; border: none; width: 16; background: $surface; padding: 0 1; }
    LaunchScreen #where Static { width: auto; padding: 0 1; }
    LaunchScreen #free { width: 1fr; color: $text-muted; }
    LaunchScreen #verdict { height: auto; max-height: 6; min-height: 3; padding: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._choices: list[Choice] = []
        self._starting = False
        self._valid: recipe.Recipe | None = None
        self._history: str = ""

    def compose_body(self) -> ComposeResult:
        with Horizontal():
            choices = OptionList(id="recipes")
            choices.border_title = "recipe"
            yield choices
            with Vertical():
                editor = TextArea(id="text", show_line_numbers=False, tab_behavior="focus")
                editor.border_title = "recipe.yaml"
                yield editor
                with Horizontal(id="where"):
                    yield Static("GPUs")
                    yield Input("all", id="gpus")
                    yield Static(id="free")
                yield Static(id="verdict")

    def on_mount(self) -> None:
        self.query_one("#recipes").focus()

    def on_screen_resume(self) -> None:
        self.house.background.ask(self, "choices", load_choices)
        self._show_free()

    def on_answered(self, message: Answered) -> None:
        match message.key:
            case "choices" if message.error is None:
                self._fill(message.value)
            case "measured":
                self._history = self._measured_words(message.value) if message.error is None else ""
                self._show_verdict()
            case "start":
                self._starting = False
                if message.error is not None:
                    self._say(f"not started: {message.error}", "error")
                else:
                    self.house.open_live(message.value)
            case _ if message.error is not None:
                self._say(str(message.error), "error")

    def _fill(self, choices: list[Choice]) -> None:
        if [c.text for c in choices] == [c.text for c in self._choices]:
            return
        self._choices = choices
        listing = self.query_one("#recipes", OptionList)
        listing.clear_options()
        for choice in choices:
            listing.add_option(Option(Text(f"{clean(choice.name)}  ", end="").append(clean(choice.source), "dim")))
        if not self.query_one("#text", TextArea).text:
            first = next((i for i, c in enumerate(choices) if c.name == "demo"), 0)
            listing.highlighted = first

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        choice = self._choices[event.option_index]
        self.query_one("#text", TextArea).text = clean(choice.text)
        gpus = self.query_one("#gpus", Input)
        try:
            wanted = recipe.from_dict(recipe.parse_yaml(choice.text, choice.name)).launch.gpus
            gpus.value = ",".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)
        except LorawatchError:
            gpus.value = "all"
        self._check()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.query_one("#text").focus()

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        self._check()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._check()

    # --- what it would take

    def _check(self) -> None:
        text = self.query_one("#text", TextArea).text
        self._valid, self._history = None, ""
        try:
            data = recipe.parse_yaml(text, "recipe")
            if not isinstance(data, dict):
                raise RecipeError("a recipe is a mapping", hint="it starts with `name:` and `model:`")
            valid = recipe.from_dict(data)
            self._places()
        except LorawatchError as error:
            self._say(str(error), "error")
            return
        except ValueError as error:
            self._say(f"GPUs: {error}", "error")
            return
        self._valid = valid
        sku, ranks = self._sku(), self._places()
        self._show_verdict()
        self.house.background.ask(self, "measured", lambda: measured(valid.name, sku, ranks))

    def _used(self) -> list[Gpu]:
        request = parse_gpus(self.query_one("#gpus", Input).value)
        if request.cpu_ranks is not None:
            return []
        machine = self.house.machine
        return [g for g in machine if request.indices is None or g.gpu_index in request.indices]

    def _places(self) -> int:
        request = parse_gpus(self.query_one("#gpus", Input).value)
        if request.cpu_ranks is not None:
            return request.cpu_ranks
        if request.indices is not None:
            missing = set(request.indices) - {g.gpu_index for g in self.house.machine}
            if missing and self.house.machine:
                raise ValueError(f"there is no GPU {min(missing)} here")
            return len(request.indices)
        return len(self.house.machine) or 2

    def _sku(self) -> str | None:
        return next((g.sku for g in self._used()), None)

    def _show_verdict(self) -> None:
        valid = self._valid
        if valid is None:
            return
        ranks = self._places()
        batch, length = valid.train.batch_size_per_gpu, valid.data.sequence_length
        tokens = ranks * batch * length * valid.train.gradient_accumulation
        device = "GPU" if self._used() else "CPU rank"
        words = Text(f"✓ {ranks} {device}{'s' if ranks != 1 else ''} × batch {batch} × {length} tokens")
        if valid.train.gradient_accumulation > 1:
            words.append(f" × {valid.train.gradient_accumulation} accumulated")
        words.append(f" = up to {tokens:,} tokens a step")
        if valid.train.steps:
            words.append(f", {valid.train.steps} steps")
        if self._history:
            words.append(f"\n{self._history}")
        words.append(f"\ndisk free: {_free_words()}", "dim")
        self.query_one("#verdict", Static).update(words)

    def _measured_words(self, found: tuple[float, float | None] | None) -> str:
        if found is None or self._valid is None:
            return "history has no completed run of this recipe here"
        tok_s, interval = found
        spread = f" ± {number(interval)}" if interval else ""
        return f"history: {number(tok_s)}{spread} tok/s here; an epoch of 50M tokens takes {duration(EPOCH_TOKENS / tok_s)}"

    def _show_free(self) -> None:
        gpus = self.house.machine
        frame = self.house.last_frame
        parts = []
        for gpu in gpus:
            pane = next((p for p in frame.panes if p.key == gpu.gpu_uuid), None) if frame else None
            used = pane.values.get("memory_bytes") if pane else None
            free = f" {(gpu.memory_total_bytes - used) / 2**30:.0f} GiB free" if used and gpu.memory_total_bytes else ""
            parts.append(f"{gpu.gpu_index} {clean(gpu.sku).removeprefix('NVIDIA ')}{free}")
        words = " · ".join(parts) if parts else "no GPU here: all means 2 ranks on the CPU"
        self.query_one("#free", Static).update(Text(words))

    def _say(self, text: str, severity: str) -> None:
        style = "bold " + self.app.theme_variables.get(severity, "")
        self.query_one("#verdict", Static).update(Text(("✗ " if severity == "error" else "") + clean(text), style))

    # --- keys

    def action_start(self) -> None:
        if self._starting:
            return
        if self._valid is None:
            self.notify("the recipe is not valid yet: see below the editor", severity="warning")
            return
        self._starting = True
        text, gpus = self.query_one("#text", TextArea).text, self.query_one("#gpus", Input).value
        self._say("starting …", "primary")
        self.house.background.ask(self, "start", lambda: start(text, gpus))

    def action_to_list(self) -> None:
        self.query_one("#recipes").focus()

    def action_open(self) -> None:
        from lorawatch.screens.confirm import Ask

        def answered(name: Any) -> None:
            if not name:
                return
            try:
                self.query_one("#text", TextArea).text = Path(name).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                self._say(f"{name}: {error}", "error")

        self.app.push_screen(Ask("Recipe file to open"), answered)


def _free_words() -> str:
    import shutil

    home = paths.home()
    while not home.exists():
        home = home.parent
    return f"{shutil.disk_usage(home).free / 2**30:.0f} GiB at {paths.home()}"
