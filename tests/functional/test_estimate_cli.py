"""`lorawatch estimate` as a user runs it: whether it fits, how long an epoch takes, in every format."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from history import a_whole_run

from lorawatch.storage.ingest import finish_run

ROOT = Path(__file__).parents[2]


def lorawatch(*args: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "lorawatch", *args], capture_output=True, text=True, timeout=120, env={**os.environ},
        check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_it_says_what_fits_and_how_long_published_systems_take() -> None:
    printed = lorawatch("estimate", "exxact-8b").stdout
    assert "exxact-8b needs about 2" in printed
    fits = next(line for line in printed.splitlines() if "RTX PRO 4500" in line and "GiB to spare" in line)
    assert "fits" in fits
    short = next(line for line in printed.splitlines() if "RTX A4500" in line and "short" in line)
    assert "does not fit" in short
    assert "train.gradient_checkpointing true" in short
    assert "4 × RTX PRO 4500" in printed
    assert "77.8 min" in printed


def test_a_larger_batch_fits_on_fewer() -> None:
    def fitting(*more: str) -> set[str]:
        rows = json.loads(lorawatch("estimate", "exxact-8b", *more, "--format", "json").stdout)["rows"]
        return {r["sku"] for r in rows if r["kind"] == "memory" and r["verdict"] == "fits"}

    small, large = fitting(), fitting("--set", "train.batch_size_per_gpu=8")
    assert "RTX PRO 4500" in small - large
    assert "H100 SXM" in large
    assert large < small


def test_70_billion_weights_in_four_bits_fit_on_a_card_of_48_gb_and_in_sixteen_on_none_but_the_largest() -> None:
    def printed(*more: str) -> dict[str, dict[str, str]]:
        rows = json.loads(lorawatch("estimate", "llama-70b-qlora", *more, "--format", "json").stdout)["rows"]
        return {r["sku"]: r for r in rows if r["kind"] == "memory"}

    found = printed()
    assert found["RTX 6000 Ada"]["verdict"] == found["A100 SXM 80GB"]["verdict"] == "fits"
    assert found["RTX 4090"]["verdict"] == "does not fit"
    assert "weights alone are 36.8 GiB" in found["RTX 4090"]["advice"]
    plain = printed("--set", "model.quantization=none")
    assert [sku for sku, row in plain.items() if row["verdict"] == "fits"] == ["B200"]
    assert "model.quantization nf4: 4" in plain["H100 SXM"]["advice"]


def test_a_card_without_fp8_is_told_so_and_the_fast_engine_needs_no_more() -> None:
    printed = lorawatch("estimate", "exxact-8b", "--set", "model.quantization=fp8", "--set", "train.engine=fast").stdout
    assert "exxact-8b needs at most about 2" in printed
    assert "the memory is the reference engine's, and the fast engine needs no more" in printed
    lacking, having = (
        next(line for line in printed.splitlines() if sku in line) for sku in ("A100 SXM 80GB", "H100 SXM")
    )
    assert "it has no FP8" in lacking
    assert "it has no FP8" not in having


def test_every_format_says_the_same_and_a_file_is_written(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(lorawatch("estimate", "exxact-8b", "--format", "csv").stdout)))
    epoch = next(r for r in rows if r["kind"] == "epoch" and r["sku"] == "RTX PRO 4500" and r["count"] == "4")
    assert float(epoch["epoch_s"]) == pytest.approx(50_000_000 / 10717)
    assert "| 4 × RTX PRO 4500 |" in lorawatch("estimate", "exxact-8b", "--format", "markdown").stdout
    page = tmp_path / "fit.html"
    said = lorawatch("estimate", "exxact-8b", "-o", str(page))
    assert said.stdout == ""
    assert str(page) in said.stderr
    assert "77.8 min" in page.read_text()
    assert "http" not in page.read_text().replace("http://www.w3.org/2000/svg", "")


def test_own_runs_of_the_same_work_tell_the_time() -> None:
    recipe = ROOT / "assets" / "recipes" / "tiny.yaml"
    run = a_whole_run("tiny", gpus=1)
    info = run.info()
    from lorawatch.recipe import loading

    info.recipe = loading.load(str(recipe)).to_dict()
    run.write_info(info)
    finish_run(run)
    rows = json.loads(lorawatch("estimate", "tiny", "--tokens", "2M", "--format", "json").stdout)["rows"]
    (own,) = [r for r in rows if r["kind"] == "epoch"]
    assert own["provenance"] == "measured"
    assert own["epoch_s"] == pytest.approx(2_000_000 / own["tok_s"])


def test_a_data_file_is_counted_by_the_models_own_tokenizer(tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text((json.dumps({"text": "word " * 100}) + "\n") * 3, encoding="utf-8")
    said = lorawatch("estimate", "demo", "--dataset", str(data))
    assert "tokens in 3 rows" in said.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["exxact-8b", "--tokens", "0"], "above 0"),
        (["exxact-8b", "--tokens", "many"], "no number of tokens"),
        (["exxact-8b", "--dataset", "nowhere.jsonl"], "no such file"),
        (["nowhere"], "no built-in recipe"),
    ],
)
def test_bad_input_is_told(args: list[str], words: str) -> None:
    done = lorawatch("estimate", *args, status=2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_shape_that_is_not_known_still_tells_the_rest() -> None:
    printed = lorawatch("estimate", "exxact-8b", "--set", "model.name=somebody/unknown").stdout
    assert "memory is not estimated" in printed
    assert "the nearest" in printed
