"""A small model learns one answer in a real run; then it is asked and merged as a user does it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import command, lorawatch, processes_of, wait_for
from peft import PeftModel
from terminal import Terminal
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorawatch.recipe import loading
from lorawatch.run.directory import RunDir
from lorawatch.training import model as models
from lorawatch.training.tokenization import byte_tokenizer

QUESTION = "Colour?"
# What a hostile model would say: a window's title, colours. Each letter is a token of its own here.
LEARNED = "\x1b]0;owned\x07\x1b[31mred é\x1b[0m!"
SHOWN = "red é!\n"


class Trained(NamedTuple):
    run: RunDir
    base: Path
    env: dict[str, str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run with every LoRA option on, on a model in a folder."""
    folder = tmp_path_factory.mktemp("trained")
    base, home, data = folder / "base", folder / "home", folder / "colours.jsonl"
    tiny = loading.load("tiny")
    models.load_base(models.plan_model(tiny), tiny, torch.device("cpu")).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    row = {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": LEARNED}]}
    data.write_text(f"{json.dumps(row)}\n" * 16)
    settings = [
        f"model.name={base}", "model.weights=pretrained", "lora.targets=all-linear", "lora.rank=16", "lora.use_dora=true",
        "lora.use_rslora=true", f"data.source={data}", "data.sequence_length=64", "train.steps=80",
        "train.learning_rate=1e-2", "train.batch_size_per_gpu=4",
    ]  # fmt: skip
    env = {"LORAWATCH_HOME": str(home), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = lorawatch("--record", "tiny", "--gpus", "cpu:1", *(w for s in settings for w in ("--set", s)), env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    (root,) = (home / "runs").iterdir()
    return Trained(RunDir(root), base, env)


def test_base_and_adapter_answer_one_after_the_other_without_control_sequences(trained: Trained) -> None:
    done = lorawatch("chat", "last", QUESTION, "--both", "--max-tokens", "40", env=trained.env)
    assert done.returncode == 0, done.stderr
    base, adapter = done.stdout.removeprefix("base:\n").split("\n\nadapter:\n")
    assert adapter == SHOWN
    assert base.strip() not in ("", SHOWN.strip())
    assert "\x1b" not in done.stdout
    assert "owned" not in done.stdout
    assert "on the CPU, float32" in done.stderr


def test_a_piped_prompt_is_answered_and_an_empty_one_is_not(trained: Trained) -> None:
    def asked(prompt: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command("chat", trained.run.run_id), input=prompt, env={**os.environ, **trained.env}, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip

    done = asked(f"{QUESTION}\n")
    assert (done.returncode, done.stdout) == (0, SHOWN), done.stderr
    empty = asked(" \n")
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "the prompt is empty" in empty.stderr


def test_a_conversation_on_a_terminal(trained: Trained) -> None:
    env = {**os.environ, **trained.env}
    with Terminal(command("chat", "last", "--max-tokens", "6000"), env) as terminal:
        terminal.wait("adapter> ", timeout=60)
        mark = terminal.press(f"{QUESTION}\r")
        terminal.wait("red é!", since=mark)
        terminal.wait("adapter> ", since=mark)
        assert b"31m" not in terminal.output(mark)
        mark = terminal.press("/base\r")
        terminal.wait("base> ", since=mark)
        mark = terminal.press(f"{QUESTION}\r")
        terminal.wait("\ufffd", since=mark)  # the untrained base says bytes at random, and does not end
        terminal.press("\x03")
        terminal.wait("interrupted", since=mark)
        terminal.wait("base> ", since=mark)
        terminal.press("\x04")
        assert terminal.process.wait(20) == 0


def test_a_terminated_chat_leaves_no_process(trained: Trained) -> None:
    chat = subprocess.Popen(
        command("chat", "last", QUESTION, "--base", "--max-tokens", "8000"), env={**os.environ, **trained.env},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert chat.stdout is not None
        assert chat.stdout.read(1)  # it answers
        chat.send_signal(signal.SIGTERM)
        assert chat.wait(20) == 143
        wait_for(lambda: not processes_of(trained.run))
    finally:
        chat.kill()
        chat.communicate()


def test_a_base_model_that_is_gone_is_named(trained: Trained) -> None:
    moved = trained.base.rename(trained.base.with_name("elsewhere"))
    try:
        done = lorawatch("chat", "last", QUESTION, env=trained.env)
    finally:
        moved.rename(trained.base)
    assert done.returncode == 3
    assert f"model.name is '{trained.base}': no such folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_merged_weights_are_what_base_and_adapter_are_to_plain_libraries(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    done = lorawatch("merge", "last", str(folder), env=trained.env)
    assert done.returncode == 0, done.stderr
    assert f"vllm serve '{folder}'" in done.stdout
    assert f"convert_hf_to_gguf.py '{folder}' --outfile '{folder}.gguf'" in done.stdout
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    merged = AutoModelForCausalLM.from_pretrained(folder)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trained.base), trained.run.adapter)
    with torch.no_grad():
        torch.testing.assert_close(merged(**asked).logits, tuned(**asked).logits, rtol=1e-4, atol=1e-5)
        out = merged.generate(**asked, max_new_tokens=40, do_sample=False)
    assert tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True) == LEARNED

    again = lorawatch("merge", "last", str(folder), env=trained.env)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    as_json = lorawatch("merge", "last", str(folder), "--force", "--json", "--dtype", "bfloat16", env=trained.env)
    report = json.loads(as_json.stdout)
    assert report["dtype"] == "bfloat16"
    assert 1e-6 < report["relative_difference"] < 0.02 < report["adapter_difference"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["my model"]
