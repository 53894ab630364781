"""Bad input: each mistake is one clear message with the right exit status, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import ONE_RANK, TINY, lorawatch, no_process_left, sql, the_run

OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--record", "tinny"], 2, ["'tinny'", "did you mean 'tiny'?"]),
        (["--record", "tiny", "--set", "lora.ranc=3"], 2, ["lora.ranc", "did you mean lora.rank?"]),
        (["--record", "tiny", "--set", "lora.rank=0"], 2, ["lora.rank is 0", "≥ 1"]),
        (["--record", "tiny", "--set", "train.steps=lots"], 2, ["train.steps", "'lots'", "whole number"]),
        (["--record", "tiny", "--gpus", "7"], 3, ["GPU 7 is not in this machine", "--gpus"]),
        (["--record", "tiny", "--sweep", "1,x"], 2, ["--sweep", "1,2,4"]),
        (["--record", "--"], 2, ["names no command"]),
        (["--record", "tiny", "--", "true"], 2, ["own command"]),
        (["show", "zzzz"], 2, ["no run"]),
        (["rnus"], 2, ["did you mean 'runs'?"]),
    ],
)
def test_a_mistake_on_the_command_line_starts_nothing(
    lorawatch_home: Path, args: list[str], code: int, words: list[str]
) -> None:
    result = lorawatch(*args)
    assert result.returncode == code, result.stdout + result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert not (lorawatch_home / "runs").exists() or not any((lorawatch_home / "runs").iterdir())


def failed_run(home: Path, *overrides: str, start: list[str] = ONE_RANK) -> tuple[int, str]:
    args = [word for o in overrides for word in ("--set", o)]
    result = lorawatch(*start, *args, env=OFFLINE)
    ((state,),) = sql(home, "SELECT state FROM runs")
    assert state == "failed"
    no_process_left(the_run(home))
    assert "Traceback" not in result.stdout + result.stderr
    return result.returncode, result.stdout + result.stderr


def test_a_data_set_that_is_not_there(lorawatch_home: Path, tmp_path: Path) -> None:
    code, out = failed_run(lorawatch_home, f"data.source={tmp_path}/none.jsonl")
    assert code == 2
    assert "none.jsonl" in out


def test_an_empty_data_set(lorawatch_home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    code, out = failed_run(lorawatch_home, f"data.source={tmp_path}/empty.jsonl")
    assert code == 2
    assert "empty.jsonl" in out


def test_a_broken_line_is_named_by_file_and_number(lorawatch_home: Path, tmp_path: Path) -> None:
    rows = ['{"text": "one"}', '{"text": "two"}', '{"text": "thr', '{"text": "four"}']
    (tmp_path / "broken.jsonl").write_text("\n".join(rows) + "\n")
    code, out = failed_run(
        lorawatch_home, f"data.source={tmp_path}/broken.jsonl", start=TINY
    )  # met by two ranks at once
    assert code == 2
    assert "broken.jsonl" in out
    assert "line 3" in out


def test_rows_without_a_known_form_say_which_forms_there_are(lorawatch_home: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"x": 1}\n' * 8)
    code, out = failed_run(lorawatch_home, f"data.source={tmp_path}/odd.jsonl")
    assert code == 2
    assert "messages" in out


def test_a_layer_that_the_model_lacks_is_named_beside_those_it_has(lorawatch_home: Path) -> None:
    code, out = failed_run(lorawatch_home, "lora.targets=[q_prj]")
    assert code == 2
    assert "q_prj" in out
    assert "q_proj" in out


def test_a_model_that_is_nowhere_says_how_to_get_it(lorawatch_home: Path) -> None:
    code, out = failed_run(lorawatch_home, "model.name=nobody/no-such-model", "model.weights=pretrained")
    assert code == 3
    assert "nobody/no-such-model" in out
    assert "model.name" in out
