"""The Launch screen, driven by keys: what is chosen, what is changed, what is said, what starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import sql
from history import make_run, step, write
from screen_driver import Act, drive, screen_text, until
from textual.pilot import Pilot
from textual.widgets import Input, Static, TextArea

from lorawatch.recipe import edit, loading
from lorawatch.run.directory import Gpu, RunDir, RunState
from lorawatch.run.records import GpuSample
from lorawatch.screens.app import LorawatchApp
from lorawatch.screens.launch.cycle import Cycle
from lorawatch.screens.launch.gpu_list import GpuList, Ticks
from lorawatch.screens.launch.recipe_form import FormLines
from lorawatch.screens.launch.recipe_list import RecipeList
from lorawatch.screens.launch.screen import LaunchScreen
from lorawatch.storage.ingest import finish_run
from lorawatch.storage.queries import list_runs
from lorawatch.system import home
from lorawatch.telemetry.driver import GpuProcess
from lorawatch.telemetry.snapshot import GpuNow, Snapshot

GIB = 2**30


def launch(act: Act, *, size: tuple[int, int] = (120, 40), gpus: Sequence[GpuNow] = ()) -> None:
    """Drive the Launch screen once it says what the first recipe takes, on a machine with these GPUs."""

    async def work(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: app.machine_words != app.host)
        if gpus:
            app.machine = tuple(now.gpu for now in gpus)
            app.watcher._sampler = FakeSampler(gpus)  # type: ignore[assignment]
        await pilot.press("3")
        await until(pilot, lambda: verdict(app).startswith("✓") and "disk free" in verdict(app))
        await act(pilot, app)

    drive(work, size=size)


class FakeSampler:
    """The machine's readings, as given."""

    def __init__(self, gpus: Sequence[GpuNow]) -> None:
        self.gpus = tuple(gpus)

    def latest(self) -> Snapshot:
        return Snapshot(time.time(), self.gpus, None, 0.0)

    def stop(self, timeout_s: float = 0) -> bool:
        return True


def card(index: int, used_gib: float = 0.4, *, lost: bool = False, pids: Sequence[int] = ()) -> GpuNow:
    gpu = Gpu(
        host="h", gpu_index=index, gpu_uuid=f"GPU-{index}", sku="NVIDIA RTX PRO 4500", memory_total_bytes=32 * GIB
    )
    used = int(used_gib * GIB)
    values = GpuSample(sampled_at=time.time(), gpu_uuid=gpu.gpu_uuid, memory_used_bytes=used, utilization_pct=0.0)
    return GpuNow(gpu, values, 0.1, 0.1, lost, tuple(GpuProcess(p, None) for p in pids))


def verdict(app: LorawatchApp) -> str:
    found = app.screen.query("#verdict")
    return str(found.first(Static).render()) if found else ""


def text(app: LorawatchApp) -> str:
    return app.screen.query_one("#text", TextArea).text


def value(app: LorawatchApp, path: str) -> Any:
    return edit.mapping(text(app)).get(path.partition(".")[0], {}).get(path.partition(".")[2])


async def go_to(pilot: Pilot[Any], app: LorawatchApp, path: str) -> None:
    """Walk down the form to this key."""
    lines = app.screen.query_one(FormLines)
    for _ in lines.rows:
        if lines.current.key.path == path and lines.editor.has_focus:
            return
        await pilot.press("down")
    raise AssertionError(f"no way to {path}")


def line(app: LorawatchApp, words: str) -> str:
    return next((one for one in screen_text(app).splitlines() if words in one), "")


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 50)])
def test_a_key_is_checked_as_it_is_typed_beside_it_and_in_the_yaml(size: tuple[int, int]) -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        before = text(app)
        await pilot.press("enter")
        await go_to(pilot, app, "lora.rank")
        await pilot.press("backspace", "backspace", "x")
        await until(pilot, lambda: "a whole number ≥ 1" in line(app, " rank  "))
        assert "✗" in line(app, " rank  ")
        assert value(app, "lora.rank") == "x"
        assert "line 4: lora.rank is 'x'" in verdict(app)
        assert "demo*" in screen_text(app)
        await pilot.press("f5")
        await until(pilot, lambda: any("not valid yet" in n.message for n in app._notifications))
        await pilot.press("backspace", "1", "6")
        await until(pilot, lambda: verdict(app).startswith("✓"))
        assert text(app) == before, "comments, order and style are as they were"
        assert "demo*" not in screen_text(app)
        await go_to(pilot, app, "train.batch_size_per_gpu")
        await pilot.press("backspace", "4")
        await until(pilot, lambda: "batch 4 × 128 tokens = up to 1,024 tokens a step" in verdict(app))
        await go_to(pilot, app, "model.weights")
        await pilot.press("right")
        assert value(app, "model.weights") == "random"
        await pilot.press("left")
        assert value(app, "model.weights") == "pretrained"

    launch(act, size=size)


def test_an_emptied_key_leaves_the_recipe_and_its_default_is_shown() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("enter")
        await go_to(pilot, app, "train.warmup_steps")
        await pilot.press("backspace")
        await until(pilot, lambda: "not in the recipe: 0 is used" in screen_text(app))
        assert "warmup_steps" not in text(app)
        await pilot.press("7")
        await until(pilot, lambda: value(app, "train.warmup_steps") == 7)

    launch(act)


def test_yaml_and_form_are_kept_in_step_and_broken_yaml_says_where() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("ctrl+e")
        editor = app.screen.query_one("#text", TextArea)
        assert editor.has_focus
        editor.text = text(app).replace("rank: 16", "rank: 8")
        await until(pilot, lambda: app.screen.query_one(FormLines).rows["lora.rank"].value == 8)
        editor.text = text(app).replace("rank: 8", "rnak: 8")
        await until(pilot, lambda: "line 4: unknown key lora.rnak" in verdict(app))
        assert "did you mean lora.rank?" in verdict(app)
        good = text(app).replace("rnak: 8", "rank: 8")
        editor.text = good.replace("{rank: 8", "{rank: [8")
        await until(pilot, lambda: "recipe, line " in verdict(app))
        await pilot.press("ctrl+e")
        await until(pilot, lambda: any("must be fixed" in n.message for n in app._notifications))
        assert editor.has_focus
        editor.text = good.replace("gpus: all", "gpus: 5")
        await until(pilot, lambda: "GPU 5 is not in this machine" in verdict(app) or "✓ 1 GPU" in verdict(app))

    launch(act)


def test_changes_stay_with_their_recipe_until_they_are_taken_back() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        first = text(app)
        await pilot.press("enter", "x", "escape")
        assert app.screen.query_one(RecipeList).has_focus
        await until(pilot, lambda: "name: demox" in text(app))
        await pilot.press("down")
        await until(pilot, lambda: "name: exxact-8b" in text(app) and "512 tokens" in verdict(app))
        await pilot.press("up")
        await until(pilot, lambda: "name: demox" in text(app))
        await pilot.press("r")
        await until(pilot, lambda: text(app) == first)
        assert "demo*" not in screen_text(app)

    launch(act)


def test_the_gpus_show_what_is_free_and_are_chosen_by_ticks() -> None:
    cards = [card(0), card(1, 12.3, pids=[10**9]), card(2), card(3, lost=True)]

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: "31.6 of  32.0 GiB free" in line(app, " 0 RTX PRO 4500"))
        assert "! busy: 12.3 GiB used by 1 process" in line(app, " 1 RTX PRO 4500")
        assert "✗ lost" in line(app, " 3 RTX PRO 4500")
        assert "4 GPUs × batch 2" in verdict(app)
        app.screen.query_one(Ticks).focus()
        await pilot.press("down", "space", "down", "down", "space")
        await until(pilot, lambda: "2 GPUs × batch 2" in verdict(app))
        assert value(app, "launch.gpus") == [0, 2]
        assert "▐ ▌" in line(app, " 1 RTX PRO 4500")
        assert "▐✓▌" in line(app, " 2 RTX PRO 4500")
        await pilot.press("a")
        await until(pilot, lambda: value(app, "launch.gpus") == "all")
        for _ in range(4):
            await pilot.press("space", "up")
        await until(pilot, lambda: verdict(app).startswith("✗") and "launch.gpus" in verdict(app))
        editor = app.screen.query_one("#text", TextArea)
        editor.text = text(app).replace("gpus: []", "gpus: 2")
        await until(pilot, lambda: app.screen.query_one(Ticks).selected == [2])
        editor.text = text(app).replace("gpus: 2", "gpus: 7")
        await until(pilot, lambda: "GPU 7 is not in this machine" in verdict(app))
        editor.text = text(app).replace("gpus: 7", "gpus: cpu:3")
        await until(pilot, lambda: "3 CPU ranks" in verdict(app))
        assert app.screen.query_one(Ticks).selected == []

    launch(act, gpus=cards, size=(120, 50))


def test_a_gpu_of_a_live_run_says_which() -> None:
    from lorawatch.system.processes import ProcessId

    gpu = card(0).gpu
    gpu.used = True
    run = make_run("busy", gpus=[gpu], ranks=1)
    run.write_state(RunState(state="running", started_at=time.time(), recorder=ProcessId.of(1)))

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: f"! busy: 20.0 GiB used by run {run.run_id}" in line(app, " 0 RTX PRO 4500"))

    launch(act, gpus=[card(0, 20.0)])


def test_without_a_gpu_the_number_of_cpu_ranks_is_chosen() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        app.screen.query_one(GpuList).query_one(Cycle).focus()
        await pilot.press("left")
        await until(pilot, lambda: "1 CPU rank × batch 2" in verdict(app))
        assert value(app, "launch.gpus") == "cpu:1"

    launch(act)


def test_recipes_of_the_history_are_offered_with_what_they_reached(lorawatch_home: Path) -> None:
    tiny = loading.load("tiny", ["name=old-one"])
    run = make_run(tiny.name, ranks=2, recipe=tiny.to_dict())
    for rank in (0, 1):
        write(run.rank_journal(rank), *(step(n, rank) for n in range(1, 41)))
    run.write_state(RunState(state="completed", started_at=1.79e9, ended_at=1.79e9 + 60))
    finish_run(run)
    shutil.rmtree(lorawatch_home / "runs")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: run.run_id in line(app, "old-one"))
        await pilot.press("end")
        await until(pilot, lambda: "history: 4,000" in verdict(app) and "tok/s on 2×CPU" in verdict(app))
        assert "an epoch of 50M tokens 3:28:20" in verdict(app)
        assert "name: old-one" in text(app)
        await pilot.press("enter")
        await go_to(pilot, app, "train.batch_size_per_gpu")
        await pilot.press("backspace", "3")
        await until(pilot, lambda: "history: not measured on 2×CPU yet" in verdict(app))

    launch(act)


def test_a_history_that_is_held_is_only_said(lorawatch_home: Path) -> None:
    finish_run(make_run("x", recipe=loading.load("tiny").to_dict()))
    code = (
        f"import duckdb,time; c=duckdb.connect({str(home.history_file())!r}); print('held',flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: "history: busy" in screen_text(app))
        await until(pilot, lambda: "holds the history" in verdict(app))
        assert verdict(app).startswith("✓ 2 CPU ranks"), "what the run takes is said all the same"
        holder.kill()
        holder.wait()
        await pilot.press("1", "3")
        await until(pilot, lambda: "history: busy" not in screen_text(app))

    try:
        launch(act)
    finally:
        holder.kill()
        holder.wait()


def test_a_file_is_opened_with_its_path_completed(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "mine.yaml").write_text("name: mine\nmodel: {name: m}\nlora: {rank: 0}\n")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("ctrl+o")
        await until(pilot, lambda: "Recipe file to open" in screen_text(app))
        box = app.screen.query_one(Input)
        box.value = f"{tmp_path}/rec"
        await until(pilot, lambda: "recipes/" in screen_text(app))
        await pilot.press("tab")
        assert box.value == f"{folder}/"
        await until(pilot, lambda: "mine.yaml" in screen_text(app))
        await pilot.press("n", "enter")
        await until(pilot, lambda: "there is no such file" in screen_text(app))
        await pilot.press("backspace", "tab")
        await until(pilot, lambda: box.value == f"{folder}/mine.yaml")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen) and "line 3: lora.rank is 0" in verdict(app))
        assert app.screen.query_one(FormLines).current.key.path == "lora.rank", "the cursor is where the mistake is"
        await pilot.press("backspace", "4")
        await until(pilot, lambda: verdict(app).startswith("✓"))
        assert "mine*" in screen_text(app)
        (folder / "mine.yaml").write_text("name: mine\nmodel: {name: m}\nlora: [\n")
        await pilot.press("ctrl+o", *f"{folder}/mine.yaml", "enter")
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen) and "line 4: expected" in verdict(app))
        editor = app.screen.query_one("#text", TextArea)
        assert editor.has_focus
        assert editor.cursor_location[0] == 3, "broken YAML is fixed as YAML, where it broke"
        await pilot.press("ctrl+o", "escape")
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen))
        assert "name: mine" in text(app)

    launch(act)


def test_a_start_is_what_the_shell_starts_with_tags(lorawatch_home: Path) -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("end")
        await until(pilot, lambda: "name: tiny" in text(app) and "32 tokens" in verdict(app))
        app.screen.query_one("#tags", Input).focus()
        await pilot.press(*"lab night")
        await pilot.press("f5")
        await until(pilot, lambda: not isinstance(app.screen, LaunchScreen), 60)
        (root,) = (lorawatch_home / "runs").iterdir()
        await until(pilot, lambda: "COMPLETED" in screen_text(app), 90)
        assert RunDir(root).info().tags == ["lab", "night"]
        assert list((lorawatch_home / "launch").iterdir()) == []
        await until(pilot, lambda: any(row["tok_s"] for row in list_runs()), 30)
        await pilot.press("3")
        await until(pilot, lambda: "tok/s on 2×CPU; 10 steps take" in verdict(app))

    launch(act)
    assert sql(lorawatch_home, "SELECT name, state FROM runs") == [("tiny", "completed")]


def test_a_start_that_fails_says_why_until_it_is_left(lorawatch_home: Path) -> None:
    lorawatch_home.mkdir()
    (lorawatch_home / "runs").write_text("in the way")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("f5")
        await until(pilot, lambda: "not started: a run directory cannot be made" in verdict(app), 60)
        await until(pilot, lambda: "point LORAWATCH_HOME at a folder" in screen_text(app))
        assert app.focused is not None
        assert app.focused.id == "failure", "the arrow keys scroll it"
        await pilot.press("escape")
        await until(pilot, lambda: verdict(app).startswith("✓") and not app.screen.query("#failure"))
        assert app.screen.query_one(FormLines).editor.has_focus

    launch(act)


def test_a_recorder_that_dies_at_once_shows_its_log(
    lorawatch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'supervise' in sys.orig_argv:\n"
        "    os.write(2, b'Traceback (most recent call last):\\n  [/foo]\\x1b[31m here\\nOSError: no room\\n')\n"
        "    os._exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("f5")
        await until(pilot, lambda: "not started: the recorder of run" in verdict(app), 60)
        await until(pilot, lambda: "OSError: no room" in screen_text(app))
        assert "recorder.log:" in screen_text(app)
        assert "[/foo] here" in screen_text(app)
        await pilot.press("down", "escape", "escape")
        assert app.screen.query_one(RecipeList).has_focus

    launch(act, size=(160, 50))


@pytest.mark.parametrize("size", [(40, 12), (80, 24), (160, 50)])
def test_list_form_gpus_and_verdict_are_all_there(size: tuple[int, int]) -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        said = screen_text(app)
        assert "demo  built-in" in said
        await until(pilot, lambda: " 1 RTX PRO 4500" in screen_text(app))
        assert "✓ 8 GPUs × batch 2" in screen_text(app)
        assert "tags" in said
        if size[0] >= 80:
            assert "F5 Start" in said
            assert "^e Form/YAML" in said
        await pilot.press("enter")
        await until(pilot, lambda: " name " in screen_text(app))
        for _ in range(40):
            await pilot.press("down")
        lines = app.screen.query_one(FormLines)
        assert lines.editor.region in app.screen.query_one("#form").region, "the line under the cursor is in view"
        await pilot.press("ctrl+e")
        await until(pilot, lambda: "# Two minutes" in screen_text(app))

    launch(act, size=size, gpus=[card(n) for n in range(8)])


def test_the_mouse_chooses_a_key_and_cycles_a_choice() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        lines = app.screen.query_one(FormLines)
        await pilot.click(FormLines, offset=(3, lines.rows["lora.alpha"].y))
        assert lines.current.key.path == "lora.alpha"
        assert lines.editor.has_focus
        await pilot.click(FormLines, offset=(3, lines.rows["model.dtype"].y))
        assert value(app, "model.dtype") == "float32", "the first click only goes there"
        await pilot.click(lines.editor, offset=(4, 0))
        await until(pilot, lambda: value(app, "model.dtype") == "bfloat16")

    launch(act)
