"""The order of a sweep's runs, and what is made of their figures."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import lorawatch

from lorawatch.cli.sweep import configurations, plan_sweep, print_sweep
from lorawatch.errors import UsageError


def test_repeats_go_in_turns_and_separate_beside_coupled() -> None:
    order = plan_sweep([(1, 1), (2, 2), (4, 4)], separate=True, repeat=2)
    assert order == [(1, False), (2, False), (2, True), (4, False), (4, True)] * 2
    assert plan_sweep([(1, 1), (2, 2)], separate=False, repeat=1) == [(1, False), (2, False)]
    assert plan_sweep([(None, 4)], separate=True, repeat=1) == [(None, False), (None, True)]


def test_no_repeat_and_nothing_to_separate_are_refused_with_a_way_out() -> None:
    with pytest.raises(UsageError, match="--repeat 0 is no number of runs") as caught:
        plan_sweep([(None, 2)], separate=False, repeat=0)
    assert "at least 1" in str(caught.value.hint)
    with pytest.raises(UsageError, match="a single one") as caught:
        plan_sweep([(None, 1)], separate=True, repeat=1)
    assert "--sweep 1,2 --separate" in str(caught.value.hint)
    plan_sweep([(1, 1), (2, 2)], separate=True, repeat=1)


def run(ranks: int, coupling: str, tok_s: float | None, **more: Any) -> dict[str, Any]:
    return {
        "run_id": f"{coupling}{ranks}", "sweep_id": "s", "world_size": ranks, "coupling": coupling,
        "state": "completed", "tok_s": tok_s, "tok_s_ci95": 5.0, "avg_power_w": 200.0 * ranks, "tok_per_j": 5.0, **more,
    }  # fmt: skip


SWEEP = [
    *(run(1, "ddp", v) for v in (99.0, 100.0, 101.0)),
    *(run(2, "ddp", v) for v in (169.0, 170.0, 171.0)),
    *(run(2, "separate", v) for v in (189.0, 190.0, 191.0)),
]


def test_a_sweep_tells_what_coupling_costs_with_the_interval_across_repeats() -> None:
    one, two, apart = configurations(SWEEP)
    # t(2) = 4.303, standard deviation 1, three runs
    assert (one.runs, one.tok_s.value, one.tok_s.ci95) == (3, 100.0, pytest.approx(4.303 / 3**0.5, rel=1e-3))
    assert two.efficiency_pct is not None
    assert two.efficiency_pct.value == pytest.approx(85.0)
    assert two.coupling_efficiency_pct is not None
    assert two.coupling_efficiency_pct.value == pytest.approx(100 * 170 / 190)
    assert two.coupling_efficiency_pct.ci95 == pytest.approx(
        2.484 * (1 + (170 / 190) ** 2) ** 0.5 / 190 * 100, rel=1e-3
    )
    assert two.split is not None
    assert two.split.shared_machine.value == pytest.approx(5.0)
    assert two.split.communication.value == pytest.approx(10.0)
    assert apart.efficiency_pct is not None
    assert apart.efficiency_pct.value == pytest.approx(95.0)
    assert (apart.coupling_efficiency_pct, apart.split, one.split) == (None, None, None)


def test_a_single_run_keeps_its_own_interval_and_a_failed_one_counts_nowhere() -> None:
    found = configurations([run(1, "ddp", 100.0), run(2, "ddp", 3.0, state="failed"), run(2, "ddp", None)])
    assert [(c.ranks, c.runs, c.tok_s.ci95) for c in found] == [(1, 1, 5.0)]


def test_without_one_rank_alone_the_coupling_is_still_told() -> None:
    two, _ = configurations(SWEEP[3:])
    assert (two.speedup, two.efficiency_pct, two.split) == (None, None, None)
    assert two.coupling_efficiency_pct is not None


def test_a_sweep_fits_80_columns_and_says_each_figure(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    by_id = {str(n): {**row, "run_id": f"0gq3pz{n:02}"} for n, row in enumerate(SWEEP)}
    monkeypatch.setattr("lorawatch.cli.sweep.run_figures", lambda run_id: by_id.get(run_id))
    print_sweep([*by_id, "gone"])
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 80
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "0gq3pz08 2 separate 3 completed 191 400.0 5.00" in lines
    assert "1 — 3 100 ± 2 200.0 5.00 1.00× 100.0%" in lines
    assert "2 ddp 3 170 ± 2 400.0 5.00 1.70× 85.0 ± 2.4%" in lines
    assert "2 89.5 ± 1.8% 5.0 ± 2.7% 10.0 ± 1.8%" in lines


@pytest.mark.parametrize("option", [("--separate",), ("--repeat", "2"), ("--sweep", "1,2")])
def test_an_own_command_has_no_sweep(option: tuple[str, ...]) -> None:
    result = lorawatch("--record", *option, "--", "true")
    assert result.returncode == 2
    assert "do not go with an own command" in result.stderr
