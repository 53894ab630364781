"""An NF4 run with the real program: two ranks, killed and resumed, then asked and merged as a user does it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from helpers import finish, journal_steps, lorawatch, processes_of, sql, start, the_run, wait_for, wait_for_step

from lorawatch.recipe import loading
from lorawatch.training import model as models
from lorawatch.training.tokenization import byte_tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install 'lorawatch[qlora]'",
)
QUESTION, ANSWER = "Colour?", "red!"


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    base, data = tmp_path / "base", tmp_path / "colours.jsonl"
    tiny = loading.load("tiny")
    models.load_base(models.plan_model(tiny), tiny, torch.device("cpu")).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    row = {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]}
    data.write_text(f"{json.dumps(row)}\n" * 16)
    pairs = [
        "model.quantization=nf4", f"model.name={base}", "model.weights=pretrained", "lora.targets=all-linear",
        "lora.rank=16", f"data.source={data}", "data.sequence_length=64", "train.steps=60", "train.learning_rate=1e-2",
        "train.checkpoint_every=20", "train.schedule=constant",
    ]  # fmt: skip
    return [word for pair in pairs for word in ("--set", pair)]


def losses(home: Path) -> dict[int, float]:
    return {step: loss for step, loss in sql(home, "SELECT step, loss FROM v_steps") if loss is not None}


def test_an_nf4_run_is_resumed_on_its_curve_and_its_adapter_is_used(
    settings: list[str], lorawatch_home: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    done = lorawatch("--record", "tiny", "--gpus", "cpu:2", *settings, env={"LORAWATCH_HOME": str(whole)})
    assert done.returncode == 0, done.stdout + done.stderr

    recorder = start("--record", "tiny", "--gpus", "cpu:2", *settings, "--set", "train.steps=100000")
    run = the_run(lorawatch_home)
    wait_for_step(run, 25)
    for process in processes_of(run):
        process.kill()
    finish(recorder)
    wait_for(lambda: not processes_of(run))
    resumed = lorawatch("--record", "--resume", run.run_id, "--set", "train.steps=60")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert max(s["step"] for s in journal_steps(run)) == 60
    assert losses(lorawatch_home) == losses(whole)

    asked = lorawatch("chat", "last", QUESTION, "--max-tokens", "20")
    assert (asked.returncode, asked.stdout) == (0, f"{ANSWER}\n"), asked.stderr
    assert "on the CPU, float32 (trained in nf4, which is slow here)" in asked.stderr
    merged = lorawatch("merge", "last", str(tmp_path / "merged"))
    assert merged.returncode == 0, merged.stdout + merged.stderr
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
