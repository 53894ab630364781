"""What Launch needs from the disk, the history and the shell, as plain data and text. Slow: runs off the screen's
thread."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import msgspec

from lorawatch.errors import LorawatchError, RecipeError, UsageError
from lorawatch.launch.choose import launcher_logs
from lorawatch.launch.placement import Placement, place
from lorawatch.recipe import edit, loading, schema, yaml_text
from lorawatch.recipe.devices import parse_gpus
from lorawatch.recipe.fields import problems
from lorawatch.run.directory import Gpu, RunDir
from lorawatch.system import home as paths
from lorawatch.system.interpreter import own_module
from lorawatch.system.permissions import make_private, users_umask
from lorawatch.system.user_files import expanded
from lorawatch.text.numbers import duration, gib, number
from lorawatch.text.sanitize import clean

RECENT = 12
EPOCH_TOKENS = 50_000_000
LITTLE_DISK = 5 << 30
TAKE_OVER_S = 20.0
_LOG_LINES = 24
_CLI = tuple(own_module("lorawatch"))


@dataclass(frozen=True)
class Choice:
    """A recipe to start from.

    Attributes:
        text: Its YAML, without control characters.
        source: Where it comes from: built-in, a run's id, a file.
        identity: Equal for equal recipes, whatever GPUs they ran on.
    """

    name: str
    text: str
    source: str
    identity: bytes


class StartFailed(UsageError):
    """A start failed before a run began.

    Attributes:
        lines: The log's relevant lines, each log under its path.
    """

    def __init__(self, message: str, lines: Sequence[str] = (), *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.lines = tuple(lines)


# --- recipes to start from


def builtin_choices() -> list[Choice]:
    """The built-in recipes, as in their files."""
    folder = resources.files("lorawatch.assets") / "recipes"
    choices = []
    for name in loading.builtin_names():
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        choices.append(Choice(name, text, "built-in", identity(loading.load(name).to_dict())))
    return sorted(choices, key=lambda c: c.name != "demo")


def recent_choices() -> list[Choice]:
    """The recipes of the latest runs whose directories are there, each once."""
    folder = paths.runs_folder()
    roots = sorted(folder.iterdir(), reverse=True)[:200] if folder.is_dir() else []
    choices: dict[bytes, Choice] = {}
    for root in roots:
        try:
            data = RunDir(root).info().recipe
            if not data or (key := identity(data)) in choices:
                continue
            text = loading.read_text(root / "recipe.yaml")
        except (OSError, msgspec.MsgspecError):
            continue
        choices[key] = Choice(str(data.get("name") or "run"), clean(text), root.name, key)
        if len(choices) >= RECENT:
            break
    return list(choices.values())


def history_choices() -> list[Choice]:
    """Every recipe of the history; also of runs whose directory was deleted.

    Raises:
        HistoryError: The history cannot be read now.
    """
    from lorawatch.storage.queries import distinct_recipes

    choices = []
    for row in distinct_recipes(deadline_s=0.3):
        data = row["recipe"]
        runs = f" · {row['runs']} runs" if row["runs"] > 1 else ""
        text = clean(yaml_text.write_yaml({"name": data.get("name", "run"), **data}))
        choices.append(Choice(str(data.get("name") or "run"), text, row["run_id"] + runs, identity(data)))
    return choices


def identity(data: Mapping[str, Any]) -> bytes:
    """A key that is equal for equal recipes: everything but the GPUs."""
    launch = data.get("launch")
    rest = {k: v for k, v in launch.items() if k != "gpus"} if isinstance(launch, dict) else {}
    return msgspec.json.encode({**data, "launch": rest}, order="deterministic", enc_hook=str)


def read_recipe_file(name: str) -> Choice:
    """A recipe file as it is; it is checked once it is in the editor.

    Raises:
        RecipeError: It cannot be read, is not text, or is far too large for a recipe.
    """
    path = expanded(name)
    try:
        text = loading.read_text(path)
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such file") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror or error}") from None
    return Choice(path.stem, clean(text), str(path), str(path.absolute()).encode())


# --- checking a text


@dataclass(frozen=True)
class Checked:
    """A recipe's text with the result of its check.

    Attributes:
        data: The parsed data, valid or not; None where it is not YAML.
        wrong: Error messages by path.
        error: The first mistake, `path` its key and `line` its line where they are known.
        valid: The recipe; None where something is wrong.
        placement: Where it would run; None while the machine is not known.
    """

    data: Mapping[str, Any] | None
    wrong: Mapping[str, str]
    error: LorawatchError | None = None
    path: str = ""
    line: int | None = None
    valid: schema.Recipe | None = None
    placement: Placement | None = None


def check(text: str, gpus: Sequence[Gpu] | None) -> Checked:
    """Check a recipe's text for a machine with these GPUs; None while they are not known."""
    try:
        data = edit.mapping(text)
    except LorawatchError as error:
        match = re.search(r"line (\d+)", error.message)
        return Checked(None, {}, error, line=int(match[1]) if match else None)
    wrong = problems(data)
    path = ""
    try:
        valid = loading.from_dict(data)
        path = "launch.gpus"
        return Checked(
            data,
            wrong,
            None,
            valid=valid,
            placement=None if gpus is None else place(parse_gpus(valid.launch.gpus), gpus),
        )
    except LorawatchError as error:
        blamed = re.match(r"recipe: (?:unknown key )?([\w.]+)", error.message)
        path = path or (blamed[1] if blamed else "")
        wrong.setdefault(path, error.message.removeprefix(f"recipe: {path} "))
        return Checked(data, wrong, error, path, edit.line_of(text, path))


# --- what a run needs, as lines


def plan_line(wanted: schema.Recipe, placement: Placement) -> str:
    """`2 GPUs × batch 2 × 512 tokens = 2,048 tokens a step, 60 steps`."""
    ranks, train, length = placement.world_size, wanted.train, wanted.data.sequence_length
    what = ("GPU" if placement.device == "cuda" else "CPU rank") + ("s" if ranks != 1 else "")
    words = f"{ranks} {what} × batch {train.batch_size_per_gpu} × {length} tokens"
    if train.gradient_accumulation > 1:
        words += f" × {train.gradient_accumulation} accumulated"
    words += f" = up to {step_tokens(wanted, ranks):,} tokens a step"
    return words + (f", {train.steps} steps" if train.steps else f", {train.epochs:g} epochs")


def step_tokens(wanted: schema.Recipe, ranks: int) -> int:
    """Positions that a step computes on all ranks if every example fills the sequence length."""
    train = wanted.train
    return ranks * train.batch_size_per_gpu * train.gradient_accumulation * wanted.data.sequence_length


def fit_lines(wanted: schema.Recipe, placement: Placement, gpus: Sequence[Gpu]) -> list[str]:
    """Whether the run fits the memory of these GPUs, and what would make it fit; nothing where that is not known."""
    totals = [g.memory_total_bytes for g in gpus if g.memory_total_bytes]
    if placement.device != "cuda" or not totals:
        return []
    from lorawatch.analysis.memory import estimate, what_would_fit
    from lorawatch.comparing.estimating import memory_words
    from lorawatch.models import memory

    together = 1 if wanted.launch.strategy == "separate" else placement.world_size
    try:
        workload = memory.workload(wanted, together)
    except LorawatchError as error:
        return [f"VRAM: not estimated: {error.message}"]
    least = min(totals)
    return [
        f"VRAM: {memory_words(estimate(workload), least, wanted.train.engine)}",
        *(f"  {line}" for line in what_would_fit(workload, least)[:2]),
    ]


def measured(wanted: schema.Recipe, sku: str | None) -> list[dict[str, Any]]:
    """The history's measurements of this workload on this SKU, a row for each number of ranks.

    Raises:
        HistoryError: The history cannot be read now.
    """
    from lorawatch.storage.queries import measured as ask

    return ask(wanted.to_dict(), sku, deadline_s=0.3)


def history_line(rows: Sequence[Mapping[str, Any]], sku: str | None, wanted: schema.Recipe, ranks: int) -> str:
    """The measured rate of this configuration, and the times computed from it."""
    short = clean(sku).removeprefix("NVIDIA ") if sku else "CPU"
    row = next((r for r in rows if r["ranks"] == ranks), None)
    if row is None:
        others = ", ".join(f"{number(r['tok_s'])} tok/s on {r['ranks']}×{short}" for r in rows)
        return f"history: not measured on {ranks}×{short}" + (f"; {others}" if others else " yet")
    spread = f" ± {number(row['tok_s_ci95'], 0 if row['tok_s_ci95'] >= 10 else 1)}" if row["tok_s_ci95"] else ""
    tok_s, runs = row["tok_s"], row["runs"]
    words = f"history: {number(tok_s)}{spread} tok/s on {ranks}×{short}" + (
        f", mean of {runs} runs" if runs > 1 else ""
    )
    if row["peak_vram_bytes"]:
        words += f", peak VRAM {gib(row['peak_vram_bytes'])}"
    if wanted.train.steps:
        words += (
            f"; {wanted.train.steps} steps take {duration(wanted.train.steps * step_tokens(wanted, ranks) / tok_s)}"
        )
    return f"{words}; an epoch of 50M tokens {duration(EPOCH_TOKENS / tok_s)}"


def disk_line() -> str:
    """The free disk space of the runs' folder.

    Raises:
        UsageError: The file system does not report it.
    """
    home = there = paths.home()
    while not there.exists():
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        raise UsageError(f"free disk: {error.strerror or error}") from None
    return f"{'! only ' if free < LITTLE_DISK else ''}{gib(free)} of disk free at {clean(str(home))}"


# --- starting


def start(text: str, tags: Sequence[str], closing: threading.Event) -> str:
    """Start a recorder on this recipe, exactly as a shell would, and wait until it has taken the run. Returns the run's id.

    Args:
        closing: Set when the user leaves the program; a started command continues.

    Raises:
        StartFailed: Nothing runs; has the command's message, and the log's lines where a run directory was made.
    """
    folder = paths.home() / "launch"
    file = folder / f"{time.time_ns()}.yaml"
    tagged = [word for tag in tags for word in ("--tag", tag)]
    words = [*_CLI, "--record", str(file), "--detach", "--json", *tagged]
    try:
        make_private(folder)
        file.write_text(text, encoding="utf-8")
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", start_new_session=True, umask=users_umask(),
        )  # fmt: skip
    except OSError as error:
        raise StartFailed(f"the recorder did not start: {error.strerror or error}: {error.filename}") from None
    while True:
        try:
            out, errors = process.communicate(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            if closing.is_set():  # the command continues and needs its file
                raise StartFailed("lorawatch was left before the run began") from None
    file.unlink(missing_ok=True)
    try:
        run_id = str(msgspec.json.decode(out)["run_ids"][0])
    except (msgspec.MsgspecError, KeyError, IndexError, TypeError):
        reason = clean((errors or out).strip().removeprefix("lorawatch: ").replace(str(file), "recipe"))
        raise StartFailed(
            reason[-4000:] or f"the command ended with status {process.returncode}, without a message"
        ) from None
    _wait_for_recorder(RunDir(paths.runs_folder() / run_id), closing)
    return run_id


def _wait_for_recorder(run: RunDir, closing: threading.Event) -> None:
    """Wait for the recorder's first heartbeat; its start is recorded before.

    Raises:
        StartFailed: Its process ended before that.
    """
    deadline = time.monotonic() + TAKE_OVER_S
    while not closing.wait(0.1):
        alive = _recorder_lives(run.run_id)
        try:
            if (
                run.state().heartbeat_at is not None
            ):  # read after the check of the process: it may have ended in between
                return
        except (OSError, msgspec.MsgspecError):
            pass
        if not alive:
            raise StartFailed(f"the recorder of run {run.run_id} ended before it began", log_lines(run))
        if time.monotonic() > deadline:
            raise StartFailed(
                f"the recorder of run {run.run_id} did not begin within {TAKE_OVER_S:.0f} s",
                log_lines(run), hint="the machine may be very busy: 1 shows the run if it begins later",
            )  # fmt: skip


def _recorder_lives(run_id: str) -> bool:
    import psutil

    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "supervise" in words and run_id in words:
                return True
        except psutil.Error:
            continue
    return False


def log_lines(run: RunDir) -> list[str]:
    """The relevant end of each log of a run that did not reach its first step, under the log's path."""
    from lorawatch.recorder.logs import tail

    lines = []
    attempts = sorted(run.logs.glob("attempt_*/rank-*.log"))
    for path in (run.logs / "recorder.log", *launcher_logs(run), *attempts):
        last_lines = [clean(line.rsplit("\r", 1)[-1])[:400] for line in tail(path).splitlines() if line.strip()]
        if last_lines:
            lines += [f"{path}:", *(f"  {line}" for line in relevant(last_lines))]
    return lines


def relevant(lines: Sequence[str]) -> Sequence[str]:
    """The last traceback to its end, or else the last lines."""
    begin = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("Traceback ")), None)
    shown = lines[-_LOG_LINES:] if begin is None else lines[begin:]
    return shown if len(shown) <= 2 * _LOG_LINES else [shown[0], "  …", *shown[-_LOG_LINES:]]


def error_text(error: LorawatchError) -> str:
    """A failed start as text: the error, its hint and the log."""
    lines = error.lines if isinstance(error, StartFailed) else ()
    return "\n".join([clean(str(error)), *(["", *lines] if lines else [])])
