"""`lorawatch compare` as a user runs it, on a history of known runs beside the published tables."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import lorawatch, sql
from history import T0, end, make_run, step, write

from lorawatch.recipe import loading
from lorawatch.run.directory import Gpu, RunDir
from lorawatch.run.records import GpuSample, RankStarted
from lorawatch.storage.ingest import finish_run

PRO_4500 = "NVIDIA RTX PRO 4500 Blackwell"
SERVER = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
EXXACT = loading.load("exxact-8b").to_dict()
HOSTILE = "\x1b[31mbad|`<script>alert(1)</script>\n=cmd()"
DEMO_DATA = Path(__file__).parents[2] / "assets" / "data" / "demo_chat.jsonl"


def a_run(
    gpus: int, tok_s: float, *, sku: str = PRO_4500, watts: float = 190.0, separate: bool = False, steps: int = 40,
    state: str = "completed", name: str = "exxact-8b", driver: str = "580.65", train: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None, **more: Any,
) -> RunDir:  # fmt: skip
    """A run of the published benchmark's work, whose ranks together do so many tokens a second, within a percent."""
    cards = [
        Gpu(host="h", gpu_index=i, gpu_uuid=f"GPU-{i}", sku=sku, power_limit_w=200.0, used=True) for i in range(gpus)
    ]
    asked = {
        **EXXACT,
        "name": name,
        "model": model or EXXACT["model"],
        "train": {**EXXACT["train"], **(train or {})},
        "launch": {**EXXACT["launch"], "strategy": "separate" if separate else "ddp"},
    }
    run = make_run(
        name, ranks=gpus, gpus=cards, recipe=asked, torch_version="2.13.0", driver_version=driver, **more
    )  # fmt: skip
    mean = 1024 * gpus / tok_s
    at, lines = T0, []
    for number in range(1, steps + 1):
        seconds = mean * (1 + 0.01 * math.sin(number))
        at += seconds
        lines.append((number, at, seconds))
    for rank in range(gpus):
        write(
            run.rank_journal(rank),
            RankStarted(
                at=T0, attempt=0, rank=rank, local_rank=rank, world_size=gpus, host="h", pid=1, device="cuda",
                gpu_uuid=f"GPU-{rank}", dtype="bfloat16",
            ),
            *(step(n, rank, ended_at=ended, duration_s=took, tokens=1024) for n, ended, took in lines),
        )  # fmt: skip
    samples = [
        GpuSample(
            sampled_at=T0 - 1 + 0.5 * tick, gpu_uuid=card.gpu_uuid, power_w=watts, memory_used_bytes=25 * 2**30,
            energy_j=1e6 + watts * 0.5 * tick, event_reasons=0,
        )
        for tick in range(int(2 * (at - T0)) + 6)
        for card in cards
    ]  # fmt: skip
    write(run.host_journal("h"), *samples)
    end(run, state, failure="cuda_oom" if state == "failed" else None)
    finish_run(run)
    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Repeats, coupled and separate runs, a failed one, other work, a simulated machine; made once, read by all."""
    folder = tmp_path_factory.mktemp("compare") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAWATCH_HOME", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        a_run(1, 2000, name="bigger", train={"batch_size_per_gpu": 8})
        a_run(1, 4900, sku=SERVER, watts=400, tags=["simulated"])
        a_run(2, 9500, sku=SERVER, watts=330, tags=["simulated"])
        for tok_s in (2750, 2760, 2770):
            a_run(1, tok_s, tags=["lab"])
        a_run(2, 5300, tags=["lab"])
        a_run(2, 5400, separate=True, tags=["lab"])
        a_run(4, 10_400, tags=["lab"], driver="580.95")
        a_run(4, 10_800, separate=True, tags=["lab"])
        a_run(4, 9000, state="failed", steps=7, tags=["lab"])
        yield folder


Compare = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def compare(home: Path) -> Compare:
    """`lorawatch compare …` on the history, or in another home."""

    def run(*args: str | Path, at: Path = home) -> subprocess.CompletedProcess[str]:
        return lorawatch("compare", *map(str, args), env={"LORAWATCH_HOME": str(at), "COLUMNS": "400"})

    return run


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def by_label(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str, str, str], dict[str, str]]:
    """Rows by SKU, count, coupling and origin."""
    found = {(r["sku"], r["count"], r["coupling"], r["provenance"]): r for r in rows(done)}
    assert len(found) == len(rows(done))
    return found


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """What a refused command says: one clean message on stderr, nothing on stdout, status 2."""
    assert (done.returncode, done.stdout) == (2, ""), done
    assert "Traceback" not in done.stderr
    return done.stderr


def test_own_runs_stand_beside_the_published_tables_with_scaling_and_where_the_loss_went(compare: Compare) -> None:
    done = compare("--format", "csv")
    found = by_label(done)
    assert done.stderr == ""
    assert [(r["provenance"], r["count"], r["coupling"]) for r in rows(done)] == [
        *[
            ("measured", c, k)
            for c, k in (("1", "ddp"), ("2", "ddp"), ("2", "separate"), ("4", "ddp"), ("4", "separate"))
        ],
        ("simulated", "1", "ddp"),
        ("simulated", "2", "ddp"),
        *[("published", c, "ddp") for c in "12341212"],
    ]
    one = found[PRO_4500, "1", "ddp", "measured"]
    assert (one["runs"], float(one["tok_s"])) == ("3", pytest.approx(2760, rel=2e-3))
    assert float(one["tok_s_ci95"]) == pytest.approx(4.303 * 10 / 3**0.5, rel=0.02)
    four = found[PRO_4500, "4", "ddp", "measured"]
    assert float(four["scaling"]) == pytest.approx(10_400 / 2760, rel=2e-3)
    assert float(four["efficiency_pct"]) == pytest.approx(100 * 10_400 / 4 / 2760, rel=2e-3)
    assert float(four["coupling_efficiency_pct"]) == pytest.approx(100 * 10_400 / 10_800, rel=2e-3)
    assert float(four["shared_machine_pct"]) == pytest.approx(100 * (1 - 10_800 / 4 / 2760), abs=0.2)
    assert float(four["communication_pct"]) == pytest.approx(100 * 400 / 4 / 2760, abs=0.2)
    assert float(four["tok_per_j"]) == pytest.approx(10_400 / 760, rel=5e-3)
    assert all(
        float(four[f"{name}_ci95"]) > 0 for name in ("tok_s", "scaling", "efficiency_pct", "coupling_efficiency_pct")
    )


def test_the_history_itself_says_the_same(compare: Compare, home: Path) -> None:
    four = by_label(compare("--format", "csv"))[PRO_4500, "4", "ddp", "measured"]
    ((tok_s, scaling, efficiency, coupling, machine, communication),) = sql(
        home,
        "SELECT tok_s, scaling, efficiency_pct, coupling_efficiency_pct, shared_machine_loss_pct, communication_loss_pct "
        f"FROM v_scaling WHERE sku = '{PRO_4500}' AND ranks = 4 AND coupling = 'ddp'",
    )
    said = [
        float(four[name])
        for name in (
            "tok_s", "scaling", "efficiency_pct", "coupling_efficiency_pct", "shared_machine_pct", "communication_pct"
        )
    ]  # fmt: skip
    assert said == pytest.approx([tok_s, scaling, efficiency, coupling, machine, communication])


def test_the_table_says_what_was_left_out_and_why(compare: Compare) -> None:
    done = compare("--extrapolate", "8")
    text = done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert text.startswith(
        "4 × RTX PRO 4500 (published) is the fastest: 77.8 min for 50M tokens, 3.86 times as fast as one, "
        "96.5% scaling efficiency.\n"
    )
    assert "· left out, other work: bigger (1 × RTX PRO 4500): batch per GPU 8, not 2\n" in text
    assert "exxact-8b: failed (cuda_oom) after step 10" in text
    assert "· 4 × RTX PRO 4500: driver 580.95\n" in text
    assert "1 × RTX PRO 6000 Server Edition  simulated" in text
    assert "8 × RTX PRO 4500 (extrapolated): fitted by a step-time model to 1, 2, 4 GPUs, not measured" in text
    assert (
        "8 × RTX PRO 6000 Server Edition (extrapolated): fitted by a step-time model to simulated figures of 1, 2 GPUs"
        in text
    )


def test_forced_and_unfinished_rows_are_shown_marked(compare: Compare) -> None:
    text = compare("--force", "--unfinished", "--no-published").stdout
    assert "1 × RTX PRO 4500 (other work): other work: batch per GPU 8, not 2" in text
    assert "measured, OTHER WORK" in text
    assert "4 × RTX PRO 4500: with a run that failed (cuda_oom): its steps until then" in text
    assert "published" not in text


def test_runs_are_chosen_by_recipe_and_tag_and_a_choice_without_a_run_is_refused(compare: Compare) -> None:
    assert {r["provenance"] for r in rows(compare("--tag", "lab", "--no-published", "--format", "csv"))} == {"measured"}
    only = rows(compare("--name", "bigger", "--format", "csv"))
    assert [(r["name"], r["provenance"]) for r in only] == [("bigger", "measured")]
    assert refused(compare("--name", "nope", "--tag", "lab")) == (
        "lorawatch: no recorded run has recipe 'nope' and tag 'lab'\n"
        "  known recipes: exxact-8b, bigger; lorawatch runs lists the runs\n"
    )


def test_a_baseline_by_its_label(compare: Compare) -> None:
    found = by_label(compare("--baseline", "4 x RTX PRO 4500", "--format", "csv"))
    assert found[PRO_4500, "4", "ddp", "measured"]["against_baseline"] == "1.0"
    assert float(found["RTX PRO 4500", "4", "ddp", "published"]["against_baseline"]) == pytest.approx(1.0305, abs=2e-3)
    assert "there are: 1 × RTX PRO 4500" in refused(compare("--baseline", "H900"))


def test_prices_and_tokens_reach_time_and_cost(compare: Compare) -> None:
    done = compare(
        "--tokens", "1.2B", "--price-kwh", "0.30", "--gpu-price", "RTX PRO 4500=2600", "--host-price", "3000",
        "--format", "csv",
    )  # fmt: skip
    four = by_label(done)["RTX PRO 4500", "4", "ddp", "published"]
    seconds = 1.2e9 / 10_717
    assert float(four["epoch_s"]) == pytest.approx(seconds)
    assert float(four["epoch_energy_cost"]) == pytest.approx(0.30 * seconds * 771.7 / 3.6e6)
    assert float(four["epoch_hardware_cost"]) == pytest.approx(13_400 * seconds / 3600 / (4 * 8766 * 0.7))


@pytest.mark.parametrize(
    ("ending", "begin"),
    [
        ("html", "<!doctype html>"),
        ("md", "4 × RTX PRO 4500"),
        ("csv", "provenance,"),
        ("json", "{"),
        ("txt", "4 × RTX"),
    ],
)
def test_a_file_gets_the_format_of_its_ending(compare: Compare, tmp_path: Path, ending: str, begin: str) -> None:
    file = tmp_path / f"out.{ending}"
    done = compare("-o", file)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"{file} (15 configurations)\n"
    assert file.read_text(encoding="utf-8").startswith(begin)
    assert "\x1b" not in file.read_text(encoding="utf-8")


def test_json_and_csv_are_alone_on_stdout(compare: Compare) -> None:
    document = json.loads(compare("--format", "json").stdout)
    assert len(document["rows"]) == 15
    assert [e["why"] for e in document["excluded"]] == ["failed (cuda_oom) after step 10"]
    assert [o["differs"] for o in document["other_work"]] == [["batch per GPU 8, not 2"]]


def test_a_data_file_is_counted_by_its_size_where_the_tokenizer_is_not_here(compare: Compare) -> None:
    done = compare("--dataset", DEMO_DATA, "--format", "json")
    document = json.loads(done.stdout)
    tokens = DEMO_DATA.stat().st_size // 4
    words = (
        f"about {tokens:,} tokens, from its size: the tokenizer of NousResearch/Meta-Llama-3.1-8B-Instruct is not here"
    )
    assert done.stderr == f"{DEMO_DATA}: {words}\n"
    assert (document["tokens"], document["tokens_from"]) == (tokens, f"{DEMO_DATA}: {words}")
    assert document["rows"][0]["epoch_s"] == pytest.approx(tokens / document["rows"][0]["tok_s"])


def test_a_data_file_is_counted_by_the_models_tokenizer_where_it_is_here(compare: Compare, tmp_path: Path) -> None:
    from lorawatch.training.tokenization import byte_tokenizer

    model = tmp_path / "model"
    byte_tokenizer().save_pretrained(model)
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").touch()
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "abcdefgh"}\n{"text": "abcd"}\n')
    home = tmp_path / "other"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAWATCH_HOME", str(home))
        a_run(1, 1000, model={"name": str(model), "dtype": "bfloat16"})
    done = compare("--dataset", data, "--no-published", "--format", "json", at=home)
    assert done.stderr.startswith(f"{data}: ")
    assert " tokens in 2 rows" in done.stderr
    tokens = json.loads(done.stdout)["tokens"]
    assert 12 <= tokens <= 16  # a token a letter, and what ends a row


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("gone.jsonl", None, "no such file"),
        ("data.bin", b"x", "unknown kind of file '.bin'"),
        ("empty.jsonl", b"\n", "the data set is empty"),
        ("latin.csv", "a\nb\xe4".encode("latin-1"), "line 2: not UTF-8 text"),
        ("data.parquet", b"no", "not a Parquet file"),
    ],
)
def test_a_data_file_that_cannot_be_read_is_refused(
    compare: Compare, tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = refused(compare("--dataset", tmp_path / name))
    assert said.startswith(f"lorawatch: {tmp_path / name}")
    assert told in said


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--tokens", "0"], "'0' is no data set: the number of tokens must be above 0"),
        (["--tokens", "-1"], "'-1' is no number of tokens: write it as 50000000"),
        (["--tokens", "many"], "'many' is no number of tokens"),
        (["--price-kwh", "-0.3"], "the price of a kWh must be a number not below 0, not -0.3"),
        (["--gpu-price", "RTX PRO 4500=-1"], "the hardware's price must be a number not below 0, not -1"),
        (["--gpu-price", "RTX PRO 4500"], "--gpu-price 'RTX PRO 4500' is not SKU=PRICE"),
        (["--host-price", "nan"], "the hardware's price must be a number not below 0, not nan"),
        (["--life-years", "0"], "the hardware's life must be above 0 years, not 0"),
        (["--utilisation", "70"], "utilisation must be above 0 and at most 1, not 70"),
        (["--extrapolate", "4,x"], "--extrapolate '4,x' is not a list of GPU counts"),
        (["--format", "pdf"], "'pdf' is not one of"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(compare: Compare, args: list[str], told: str) -> None:
    assert told in refused(compare(*args))


def test_without_a_run_the_published_tables_stand_alone_and_without_both_there_is_nothing(
    compare: Compare, tmp_path: Path
) -> None:
    assert len(rows(compare("--format", "csv", at=tmp_path / "none"))) == 8
    assert refused(compare("--no-published", at=tmp_path / "none")).startswith(
        "lorawatch: there is nothing to compare yet\n  record a run"
    )
    assert "no run has been recorded yet" in refused(compare("--tag", "x", at=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_file_that_cannot_be_written_says_so(compare: Compare, tmp_path: Path) -> None:
    done = compare("-o", tmp_path / "no" / "x.html")
    assert done.returncode == 1
    assert done.stderr == (
        f"lorawatch: {tmp_path}/no/x.html cannot be written: No such file or directory\n  choose another place with -o\n"
    )


def test_hostile_names_and_imported_tables_go_through_harmlessly(compare: Compare, tmp_path: Path) -> None:
    home = tmp_path / "hostile"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAWATCH_HOME", str(home))
        a_run(1, 1000, name=HOSTILE, sku=HOSTILE, tags=[HOSTILE])
        a_run(1, 1000, name=HOSTILE, state="failed")
    table = tmp_path / "table.csv"
    table.write_text('gpu,gpu_count,tok_s,source\n"=cmd()|<b>x",1,2000,"<img src=x>"\n')
    assert lorawatch("import", str(table), env={"LORAWATCH_HOME": str(home)}).returncode == 0
    for form in ("table", "markdown", "csv", "json", "html"):
        done = compare("--force", "--format", form, at=home)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        if form in ("html", "markdown"):
            assert "<script" not in done.stdout
            assert "<img" not in done.stdout
        if form == "csv":
            assert not [c for line in csv.reader(io.StringIO(done.stdout)) for c in line if c[:1] in ("=", "+", "@")]


def test_a_broken_published_table_is_refused_with_its_line(tmp_path: Path, compare: Compare) -> None:
    table = tmp_path / "table.csv"
    table.write_text("gpu,gpu_count,tok_s\nRTX 4090,1,fast\n")
    said = refused(lorawatch("import", str(table), env={"LORAWATCH_HOME": str(tmp_path / "h")}))
    assert "table.csv line 2, column tok_s: 'fast' is not a figure over 0" in said


def test_a_damaged_history_is_made_again_and_compared(compare: Compare, tmp_path: Path, home: Path) -> None:
    shutil.copytree(home, tmp_path / "copy")
    (tmp_path / "copy" / "history.duckdb").write_bytes(b"not a database" * 1000)
    done = compare(at=tmp_path / "copy")
    assert (done.returncode, done.stdout) == (0, compare(at=home).stdout)
    assert all(line.startswith("lorawatch: ") for line in done.stderr.splitlines())
    assert "is damaged: it is not a DuckDB database" in done.stderr
