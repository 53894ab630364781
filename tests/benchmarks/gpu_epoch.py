"""Whether sixty steps tell how long an epoch takes: the estimate from short runs against a really run long stretch.

    python tests/benchmarks/gpu_epoch.py [--repeat 3] [--steps 2000] [--batch 4] [--engine fast]

Needs one GPU; no network. Trains a Llama of eight layers (0.8 billion weights) on random tokens, 60 steps so many times, then
the long stretch, all through `lorawatch --record`. Prints a JSON line a run and the verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Llama 3.2 1B's shape with half its layers: its step keeps the GPU busy, and two thousand of them take two minutes.
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 8, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}  # fmt: skip


def record(tag: str, steps: int, repeat: int, batch: int, gpus: str, model: str, engine: str) -> None:
    subprocess.run(
        [
            sys.executable, "-m", "lorawatch", "--record", "exxact-8b", "--gpus", gpus, "--tag", tag,
            "--repeat", str(repeat), "--set", f"model.name={model}",
            "--set", "model.weights=random", "--set", f"train.batch_size_per_gpu={batch}", "--set", f"train.steps={steps}",
            "--set", f"train.engine={engine}",
            "--json",
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--gpus", default="0")
    parser.add_argument("--engine", default="fast", help="the reference engine's rate follows its host's CPU")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("LORAWATCH_HOME", home)
        model = Path(home) / "llama-8-layers"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(SHAPE))
        record("short", 60, given.repeat, given.batch, given.gpus, str(model), given.engine)
        record("long", given.steps, 1, given.batch, given.gpus, str(model), given.engine)
        from lorawatch.analysis.epoch import epoch_time_s
        from lorawatch.analysis.interval import Figure
        from lorawatch.comparing.configuration import measured
        from lorawatch.storage.configurations import run_summaries

        runs, recipes = run_summaries()
        for run in runs:
            print(
                json.dumps({"tags": run.tags, "tok_s": run.tok_s, "ci95": run.tok_s_ci95, "steps": run.measured_steps})
            )
        long = next(r for r in runs if "long" in r.tags)
        assert long.tok_s is not None
        tokens = 1e9
        really = tokens / long.tok_s
        held = []
        short = [r for r in runs if "short" in r.tags]
        pooled = measured(short, recipes)[0][0].tok_s
        for words, rate in [
            *((f"one run of 60 steps ({r.run_id})", Figure(r.tok_s or 0.0, r.tok_s_ci95)) for r in short),
            (f"{len(short)} runs of 60 steps", pooled),
        ]:
            time = epoch_time_s(tokens, rate)
            off = 100 * (time.value / really - 1)
            inside = time.low is not None and time.high is not None and time.low <= really <= time.high
            held.append(abs(off) <= 2 and inside)
            print(f"{words}: {off:+.2f}% off the {given.steps}-step stretch (bound 2%), {'inside' if inside else 'OUTSIDE'} "
                  f"its interval of ± {100 * (rate.relative or 0):.2f}%")  # fmt: skip
    return 0 if held[-1] else 1


if __name__ == "__main__":
    sys.exit(main())
