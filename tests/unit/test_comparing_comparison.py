"""Configurations from runs and tables, and what a comparison says of them: figures, prices, answers, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from comparing_runs import EXXACT, PRO_4500, PRO_5000, a_run, compared, configurations, row

from lorawatch.comparing.comparison import choose_baseline, compare
from lorawatch.comparing.configuration import epoch_cell, measured, published
from lorawatch.comparing.gather import gather
from lorawatch.comparing.rows import Prices
from lorawatch.comparing.words import columns, ladder, notes
from lorawatch.errors import UsageError
from lorawatch.published.builtin import builtin_rows
from lorawatch.published.printed import compare_cell, seconds
from lorawatch.published.rows import PublishedRow

# ---- configurations


def test_repeats_are_one_configuration_with_students_interval_across_them() -> None:
    (found,) = configurations(a_run(tok_s=990), a_run(tok_s=1000), a_run(tok_s=1010))
    assert found.tok_s.value == 1000
    assert found.tok_s.ci95 == pytest.approx(4.303 * 10 / 3**0.5, rel=1e-3)
    assert (found.runs, found.label, found.provenance) == (3, "1 × RTX PRO 4500", "measured")
    assert found.tok_per_j is not None
    assert found.tok_per_j.value == pytest.approx(10.0)


def test_a_run_whose_compiling_failed_says_that_the_reference_engine_ran() -> None:
    (found,) = configurations(a_run(fell_back=True))
    assert any("the reference engine ran" in mark for mark in found.marks)
    (fine,) = configurations(a_run())
    assert not any("reference engine" in mark for mark in fine.marks)


def test_a_single_run_keeps_its_own_interval() -> None:
    (found,) = configurations(a_run(tok_s=1000, ci95=7))
    assert (found.tok_s.value, found.tok_s.ci95) == (1000, 7)


def test_skus_counts_couplings_workloads_and_simulations_stay_apart() -> None:
    runs = [
        a_run(), a_run(2), a_run(2, coupling="separate"), a_run(sku=PRO_5000), a_run(workload="v"),
        a_run(tags=("simulated",)), a_run(sku=None, gpu_count=0),
    ]  # fmt: skip
    found = configurations(*runs, recipes={"v": {**EXXACT, "train": {"batch_size_per_gpu": 8}}})
    assert [(c.label, c.provenance) for c in found] == [
        ("1 × RTX PRO 4500", "measured"),
        ("2 × RTX PRO 4500", "measured"),
        ("2 × RTX PRO 4500 separate", "measured"),
        ("1 × RTX PRO 5000", "measured"),
        ("1 × RTX PRO 4500", "measured"),
        ("1 × RTX PRO 4500", "simulated"),
        ("1 × CPU", "measured"),
    ]
    assert len({c.key for c in found}) == 7


def test_runs_that_failed_or_measured_nothing_are_excluded_with_the_reason() -> None:
    runs = [
        a_run(state="failed", failure="cuda_oom", steps=7),
        a_run(state="stopped", steps=0),
        a_run(tok_s=None),
        a_run(tok_s=0.0),
        a_run(tok_s=float("nan")),
        a_run(),
    ]
    found, excluded = measured(runs, {"w": EXXACT})
    assert [c.runs for c in found] == [1]
    assert [e.why for e in excluded] == [
        "failed (cuda_oom) after step 7",
        "stopped",
        *["it has no measured steps that report their tokens"] * 3,
    ]


def test_unfinished_runs_may_be_asked_for_and_are_marked() -> None:
    failed = a_run(state="failed", failure="cuda_oom", steps=7)
    (found,), excluded = measured([a_run(), failed, a_run(state="failed", tok_s=None)], {"w": EXXACT}, unfinished=True)
    assert found.runs == 2
    assert "with a run that failed (cuda_oom): its steps until then" in found.marks
    assert [e.why for e in excluded] == ["it has no measured steps that report their tokens"]


def test_what_differs_within_repeats_is_marked() -> None:
    (found,) = configurations(
        a_run(throttled_share=0.4, power_capped_share=0.3, torch_version="2.12.0"),
        a_run(driver_version="580.95", power_limit_w=150.0, host="node2", mfu_plausible=False),
        a_run(energy_source="power_integral"),
    )
    assert found.marks == (
        "clocks held back by heat or hardware 40% of the time",
        "at its power limit 30% of the time",
        "MFU over 75% is implausible: check the FLOP count",
        "energy from power readings: the card has no counter",
        "its runs differ in torch: 2.12.0, 2.13.0",
        "its runs differ in driver: 580.65, 580.95",
        "its runs differ in power limit: 150 W a GPU, 200 W a GPU",
        "its runs differ in host: h, node2",
    )


def test_settings_are_told_where_the_rows_differ_and_only_there() -> None:
    comparison = compared(a_run(), a_run(2, power_limit_w=300.0, driver_version="580.95"))
    assert row(comparison, "1 × RTX PRO 4500").marks == ("driver 580.65", "power limit 200 W a GPU")
    assert row(comparison, "2 × RTX PRO 4500").marks == ("driver 580.95", "power limit 150 W a GPU")


@pytest.mark.parametrize("power", [0.0, None])
def test_zero_and_missing_power_are_no_figure(power: float | None) -> None:
    (found,) = configurations(a_run(avg_power_w=power, tok_per_j=power, tok_per_j_all=None))
    comparison = compare([found], prices=Prices(0.3))
    assert (found.tok_per_j, comparison.rows[0].epochs[1].kwh, comparison.rows[0].epochs[1].energy_cost) == (None,) * 3
    (table,) = published([PublishedRow("s", "x", 1, tok_s=100.0, avg_power_w=power)])
    assert table.tok_per_j is None


def test_hostile_text_is_harmless_wherever_it_comes_from() -> None:
    bad = "\x1b[31ma\nb\t\u202e"
    (found,) = configurations(a_run(name=bad, sku=bad, host=bad, torch_version=bad, run_id=bad, workload=None))
    assert (found.name, found.sku, found.source, found.settings["torch"]) == ("a b",) * 4
    assert found.work == {"command": "a b"}
    _, (excluded,) = measured([a_run(name=bad, run_id=bad, state=bad, failure=bad, steps=3)], {})
    assert (excluded.run_id, excluded.name, excluded.why) == ("a b", "a b", "a b (a b) after step 3")
    told = PublishedRow(bad, bad, 1, tok_s=1.0, note=bad, title=bad, url=bad, printed={"scaling": bad})
    (table,) = published([told])
    assert (table.source, table.sku, table.reference, table.printed["scaling"]) == ("a b", "a b", "a b, a b", "a b")
    assert table.marks[0] == "a b"


# ---- the published tables


def test_every_published_system_is_a_row_recomputed_to_its_last_digit_except_the_named_cells() -> None:
    comparison = compare(gather().configurations, differences=gather().differences)
    assert [r.configuration.label for r in comparison.rows] == [
        "1 × RTX PRO 4500", "2 × RTX PRO 4500", "3 × RTX PRO 4500", "4 × RTX PRO 4500",
        "1 × RTX PRO 5000", "2 × RTX PRO 5000",
        "1 × RTX PRO 6000 Server Edition", "2 × RTX PRO 6000 Server Edition",
    ]  # fmt: skip
    wrong: dict[str, dict[str, str]] = {}
    for found in comparison.rows:
        own, printed = found.configuration, found.configuration.printed
        assert found.speedup is not None
        assert found.efficiency_pct is not None
        assert own.tok_per_j is not None
        values = {
            "tok_s_per_gpu": found.per_gpu.value,
            "scaling": found.speedup.value,
            "efficiency_pct": found.efficiency_pct.value,
            "tok_per_j": own.tok_per_j.value,
        }
        for column, value in values.items():
            if column in printed and not compare_cell(printed[column], value):
                wrong.setdefault(own.label, {})[column] = f"{value:.3f}"
    assert wrong == {
        # within the rounding of tok/s: 5,429.5 ÷ 2,776.5 is 1.956
        "2 × RTX PRO 4500": {"scaling": "1.955", "efficiency_pct": "97.749"},
        "2 × RTX PRO 5000": {"scaling": "1.939", "efficiency_pct": "96.963"},
    }
    assert [r.configuration.label for r in comparison.rows if r.differs] == ["2 × RTX PRO 5000"]
    said = notes(comparison)
    assert (
        "2 × RTX PRO 4500 (published): prints speed-up 1.96 and efficiency 97.8; its own figures, which are rounded too, "
        "give a little less or more"
    ) in said
    assert "2 × RTX PRO 5000 (published): prints speed-up 1.93; its own figures give 1.94 (7,216 ÷ 3,721)" in said
    assert row(comparison, "2 × RTX PRO 5000", "published").differs == {
        "scaling": "1.94 (7,216 ÷ 3,721)",
        "efficiency_pct": "97.0 (100 × 7,216 ÷ (2 × 3,721))",
    }


def test_the_sixteen_printed_epoch_times_stand_beside_the_ladders_within_their_rounding() -> None:
    comparison = compare(gather().configurations, differences=gather().differences)
    checked = 0
    for found in comparison.rows:
        for epoch in found.epochs:
            printed = found.configuration.printed.get(epoch_cell(epoch.tokens))
            if printed is not None:
                checked += 1
                assert abs(seconds(printed).value - epoch.time.value) <= seconds(printed).half_unit
                assert epoch_cell(epoch.tokens) not in found.differs
    assert checked == 16
    headings, lines = ladder(comparison)
    assert headings == ["configuration", "5M", "50M", "500M", "5B"]
    assert lines[3] == [
        "4 × RTX PRO 4500 (published)",
        "7.78 min (~8 min)", "77.8 min (~1.3 hr)", "13.0 h (~13 hr)", "5.40 d (~5.4 days)",
    ]  # fmt: skip
    assert lines[1] == ["2 × RTX PRO 4500 (published)", "15.3 min", "2.56 h", "25.6 h", "10.7 d"]


def test_a_printed_epoch_time_that_does_not_follow_is_marked_with_the_reason() -> None:
    from lorawatch.comparing.gather import _differences

    rows = [
        PublishedRow("Blog", "X", 1, tok_s=1000.0, printed={"tok_s": "1000"}),
        PublishedRow(
            "Blog",
            "X",
            1,
            dataset_tokens=5_000_000,
            epoch_time="~2 hr",
            epoch_s=7200.0,
            printed={"epoch_time": "~2 hr"},
        ),
    ]
    comparison = compare(published(rows), differences=_differences(rows))
    assert ladder(comparison)[1][0][1] == "83.3 min (printed ~2 hr)"
    assert (
        "1 × X (published): prints epoch time of 5M tokens ~2 hr; its own figures give 1 hr (5,000,000 ÷ 1,000)"
        in notes(comparison)
    )


def test_rows_of_one_table_that_differ_in_work_are_configurations_of_their_own() -> None:
    def told(batch: int, tok_s: float, gpus: int = 1) -> PublishedRow:
        work = {**EXXACT, "train": {"batch_size_per_gpu": batch, "engine": "reference"}}
        return PublishedRow("Blog", "RTX 4090", gpus, tok_s=tok_s, work=work)

    found = published([told(2, 1000), told(8, 2000), told(2, 1900, 2), told(8, 3900, 2)])
    assert len({c.key for c in found}) == 4
    comparison = compare(found)
    assert [(r.configuration.count, r.speedup.value) for r in comparison.rows if r.speedup] == [(1, 1.0), (2, 1.9)]
    assert len(comparison.other_work) == 2


def test_a_table_that_does_not_tell_its_work_is_shown_only_when_forced() -> None:
    table = published([PublishedRow("Blog", "RTX 4090", 1, tok_s=9000.0)])
    own = configurations(a_run())
    comparison = compare([*own, *table])
    assert [r.configuration.provenance for r in comparison.rows] == ["measured"]
    assert (
        "left out, other work: Blog (1 × RTX 4090): model not stated; precision not stated; LoRA not stated; "
        "sequence length not stated; batch per GPU not stated"
    ) in notes(comparison)
    forced = compare([*own, *table], force=True)
    assert row(forced, "1 × RTX 4090", "published").other_work[0] == "model not stated"


def test_what_a_table_does_not_tell_and_is_assumed_is_marked() -> None:
    work = {k: dict(v) for k, v in (builtin_rows()[0].work or {}).items()}
    del work["train"]["engine"]
    (table,) = published([PublishedRow("Blog", "RTX 4090", 1, tok_s=9000.0, work=work)])
    assert table.marks == ("its table does not state engine: assumed to be lorawatch's default",)


def test_broken_published_rows_are_no_configurations() -> None:
    rows = [PublishedRow("s", "x", n, tok_s=rate) for n, rate in ((1, 0.0), (1, None), (1, float("nan")), (0, 5.0))]
    assert published(rows) == []


# ---- a comparison


def test_speed_up_efficiency_and_ratio_keep_their_intervals() -> None:
    comparison = compared(a_run(tok_s=1000, ci95=10), a_run(2, 1900, ci95=19))
    one, two = row(comparison, "1 × RTX PRO 4500"), row(comparison, "2 × RTX PRO 4500")
    assert (one.speedup.value, one.speedup.ci95, one.against.value) == (1.0, 0.0, 1.0)  # type: ignore[union-attr]
    assert two.speedup is not None
    assert two.efficiency_pct is not None
    assert two.speedup.value == 1.9
    assert two.speedup.ci95 == pytest.approx(1.9 * 2**0.5 / 100)
    assert two.efficiency_pct.value == pytest.approx(95.0)
    assert two.per_gpu.value == 950
    assert two.per_gpu.ci95 == 9.5
    assert two.karp_flatt == pytest.approx((1 / 1.9 - 0.5) / 0.5)


def test_separate_runs_give_coupling_efficiency_and_where_the_loss_went() -> None:
    comparison = compared(a_run(tok_s=1000), a_run(4, 3600), a_run(4, 3800, coupling="separate"))
    coupled, apart = row(comparison, "4 × RTX PRO 4500"), row(comparison, "4 × RTX PRO 4500 separate")
    assert coupled.coupling_pct is not None
    assert coupled.split is not None
    assert coupled.coupling_pct.value == pytest.approx(100 * 3600 / 3800)
    assert coupled.split.shared_machine.value == pytest.approx(5.0)
    assert coupled.split.communication.value == pytest.approx(5.0)
    assert (apart.coupling_pct, apart.split, apart.karp_flatt) == (None, None, None)
    assert apart.efficiency_pct is not None
    assert apart.efficiency_pct.value == pytest.approx(95.0)


def test_without_one_gpu_there_is_no_speed_up() -> None:
    found = row(compared(a_run(2, 1900), a_run(2, 1950, coupling="separate")), "2 × RTX PRO 4500")
    assert (found.speedup, found.efficiency_pct, found.karp_flatt, found.split) == (None,) * 4
    assert found.coupling_pct is not None


def test_other_work_is_left_out_with_what_differs_and_forced_rows_are_marked() -> None:
    runs = configurations(a_run(), a_run(2, 1900, workload="v"), recipes={"v": {**EXXACT, "data": {"source": "demo"}}})
    comparison = compare(runs, baseline="1 x RTX PRO 4500")
    assert [r.configuration.label for r in comparison.rows] == ["1 × RTX PRO 4500"]
    assert notes(comparison) == [
        "left out, other work: exxact-8b (2 × RTX PRO 4500): rows of demo, not full length",
        "--force shows other work too, marked",
    ]
    forced = compare(runs, baseline="1 x RTX PRO 4500", force=True)
    assert row(forced, "2 × RTX PRO 4500").other_work == ("rows of demo, not full length",)
    assert row(forced, "2 × RTX PRO 4500").speedup is None
    origin = next(c for c in columns(forced) if c.name == "provenance")
    assert [origin.text(r) for r in forced.rows] == ["measured", "measured, OTHER WORK"]
    assert [line[0] for line in ladder(forced)[1]] == ["1 × RTX PRO 4500", "2 × RTX PRO 4500 (other work)"]
    assert forced.answer == ("1 × RTX PRO 4500 takes 13.9 h (13.8 to 14.0 h) for 50M tokens.",)


def test_a_published_benchmark_of_other_work_is_left_out_in_one_line() -> None:
    own = configurations(a_run(workload="v"), recipes={"v": {**EXXACT, "train": {"batch_size_per_gpu": 8}}})
    said = notes(compare([*own, *published(builtin_rows())]))
    assert said[0] == (
        "left out, other work: Exxact (1 × RTX PRO 4500, 2 × RTX PRO 4500, 3 × RTX PRO 4500 and 5 more): "
        "batch per GPU 2, not 8"
    )


def test_of_many_excluded_runs_the_latest_are_named() -> None:
    runs = [a_run(run_id=f"bad{n}", state="failed") for n in range(6)]
    found, excluded = measured([*runs, a_run()], {"w": EXXACT})
    said = notes(compare(found, excluded=excluded))
    assert said == [
        *(f"left out: run bad{n} exxact-8b: failed after step 60" for n in (5, 4, 3, 2)),
        "left out: 2 more runs that did not complete or measured nothing",
    ]


# ---- baselines


@pytest.mark.parametrize(
    "name",
    [
        "2 × RTX PRO 4500", "2xRTX PRO 4500", "2 * rtx pro 4500", "2 x NVIDIA RTX PRO 4500 Blackwell",
        "RTX PRO 4500 × 2", "2 × RTX PRO 4500 (measured)",
    ],
)  # fmt: skip
def test_a_baseline_is_found_by_the_ways_people_write_it(name: str) -> None:
    comparison = compared(a_run(), a_run(2, 1900), a_run(2, 1950, coupling="separate"), baseline=name)
    assert comparison.baseline.label == "2 × RTX PRO 4500"
    assert row(comparison, "1 × RTX PRO 4500").against.value == pytest.approx(1000 / 1900)


def test_a_bare_gpu_means_one_of_it_and_a_label_the_own_latest_run_unless_told() -> None:
    old, new = a_run(workload="v", tok_s=500), a_run(tok_s=1000)
    found = [*configurations(old, new, recipes={"v": {**EXXACT, "train": {}}}), *published(builtin_rows())]
    assert choose_baseline(found, "rtx pro 4500").tok_s.value == 1000
    assert choose_baseline(found, "1 × RTX PRO 4500 (published)").tok_s.value == 2777
    assert choose_baseline(found, "1 × RTX PRO 4500 (Exxact)").tok_s.value == 2777
    assert choose_baseline(found, found[0].key).tok_s.value == 500
    assert choose_baseline(found).tok_s.value == 1000


def test_an_unknown_baseline_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError) as refused:
        compared(a_run(), a_run(2), baseline="H100")
    assert str(refused.value) == (
        "no configuration 'H100' to compare with\n  there are: 1 × RTX PRO 4500, 2 × RTX PRO 4500"
    )


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(UsageError, match="there is nothing to compare yet"):
        compare([])


# ---- counts that were not measured


def test_counts_that_were_not_measured_are_fitted_and_say_so() -> None:
    comparison = compared(a_run(tok_s=1000), a_run(2, 1900), extrapolate=[2, 4, 4])
    four = row(comparison, "4 × RTX PRO 4500", "extrapolated")
    # t(1) = 1.024 s, t(2) = 2·1024/1900: a ring's way of 1 adds 0.0539 s, and of 1.5 adds 0.0808 s
    assert four.configuration.tok_s.value == pytest.approx(4 * 1024 / (1.024 + 1.5 * (2048 / 1900 - 1.024)))
    assert four.configuration.tok_s.ci95 is not None
    assert four.marks == ("fitted by a step-time model to 1, 2 GPUs, not measured",)
    assert four.epochs[1].kwh is None
    assert [r.configuration.count for r in comparison.rows] == [1, 2, 4]
    assert comparison.refused == ()


def test_what_is_fitted_to_published_or_simulated_figures_says_that_too() -> None:
    comparison = compare(published(builtin_rows()), extrapolate=[8])
    assert row(comparison, "8 × RTX PRO 4500", "extrapolated").marks == (
        "fitted by a step-time model to published figures of 1, 2, 3, 4 GPUs, not measured",
    )
    simulated = [a_run(tags=("simulated",)), a_run(2, 1900, tags=("simulated",))]
    assert row(compared(*simulated, extrapolate=[4]), "4 × RTX PRO 4500", "extrapolated").marks == (
        "fitted by a step-time model to simulated figures of 1, 2 GPUs, not measured",
    )


def test_what_cannot_be_fitted_says_why() -> None:
    assert compared(a_run(), extrapolate=[2, 4]).refused == (
        "2, 4 × RTX PRO 4500: not extrapolated: only 1 GPU measured: what more GPUs cost shows in runs of at least two "
        "GPU counts",
    )
    assert compared(a_run(), a_run(2, 1900), extrapolate=[1000]).refused == (
        "1000 × RTX PRO 4500: not extrapolated: 1000 GPUs are too far from the 2 that were measured: at most 16",
    )
    assert compared(a_run(sku=None), a_run(2, 1900, sku=None), extrapolate=[4]).refused == (
        "CPU: not extrapolated: ranks on one CPU share its cores, which the step-time model does not cover",
    )
    faster = compared(a_run(), a_run(2, 2500), extrapolate=[4]).refused
    assert "steps became faster from 1 to 2 GPUs" in faster[0]


# ---- prices


def test_energy_and_hardware_of_an_epoch() -> None:
    prices = Prices(0.30, {"RTX PRO 4500": 2600.0}, host_price=3000.0, life_years=4, utilisation=0.7)
    found = row(compared(a_run(2, 2000), prices=prices), "2 × RTX PRO 4500").epochs[1]
    # 50M tokens at 2,000 tok/s: 25,000 s at 200 W: 5e6 J; 8,200 over 4 · 8766 h · 0.7
    assert found.kwh == pytest.approx(5e6 / 3.6e6)
    assert found.energy_cost == pytest.approx(0.30 * 5e6 / 3.6e6)
    assert found.hardware_cost == pytest.approx(8200 * 25_000 / 3600 / (4 * 8766 * 0.7))
    assert found.total_cost == pytest.approx(found.energy_cost + found.hardware_cost)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["RTX PRO 4500", "rtx-pro-4500", PRO_4500, "RTX PRO 4500 Workstation Edition"])
def test_a_gpus_price_is_found_by_any_of_its_names(name: str) -> None:
    (found,) = configurations(a_run())
    assert Prices(gpu_prices={name: 2600.0}).hardware(found) == 2600


def test_a_price_that_nothing_takes_is_said() -> None:
    prices = Prices(gpu_prices={"RTX PRO 6000": 9000.0})
    assert compared(a_run(), prices=prices).refused == (
        "the price 9000 of a 'RTX PRO 6000' is not used: the GPUs here are RTX PRO 4500",
    )
    assert compared(a_run(), prices=Prices(host_price=3000)).refused == (
        "the host's price 3000 is not used: it is added to a price of the GPUs",
    )


@pytest.mark.parametrize(
    "prices",
    [
        Prices(-0.1),
        Prices(float("nan")),
        Prices(gpu_prices={"x": -1.0}),
        Prices(gpu_prices={"x": float("inf")}),
        Prices(host_price=-5),
        Prices(life_years=0),
        Prices(utilisation=1.5),
    ],
)
def test_prices_that_are_none_are_refused(prices: Prices) -> None:
    with pytest.raises(ValueError, match="must be"):
        prices.check()


# ---- answers


def answer(*runs: Any, **more: Any) -> tuple[str, ...]:
    return compared(*runs, **more).answer


def test_one_configuration_is_told_without_a_contest() -> None:
    assert answer(a_run(tok_s=1000, ci95=None)) == ("1 × RTX PRO 4500 takes 13.9 h for 50M tokens.",)
    assert answer(a_run(2, 2000, ci95=None), tokens=1_200_000_000) == (
        "2 × RTX PRO 4500 takes 6.94 d for 1.2B tokens.",
    )


def test_the_published_benchmark_is_answered() -> None:
    prices = Prices(0.30, {"RTX PRO 4500": 2600, "RTX PRO 5000": 4400, "RTX PRO 6000 SE": 8500}, host_price=3000)
    assert compare(published(builtin_rows()), prices=prices, extrapolate=[8]).answer == (
        "4 × RTX PRO 4500 (published) is the fastest: 77.8 min for 50M tokens, 3.86 times as fast as one, "
        "96.5% scaling efficiency.",
        "Of other models 2 × RTX PRO 6000 Server Edition (published) is the fastest: 87.3 min.",
        "Not measured: by a fitted model, 8 × RTX PRO 6000 Server Edition (extrapolated) would take 22.5 min.",
        "2 × RTX PRO 6000 Server Edition (published) takes the least energy: 0.96 kWh, 0.29 at 0.3 a kWh.",
        "4 × RTX PRO 4500 (published) is the cheapest: 1.01 for energy and its share of the hardware's price.",
        "2 × RTX PRO 6000 Server Edition (published) costs more to buy than 4 × RTX PRO 4500 (published) and would pay it "
        "back by its lower energy in 147 years, longer than it serves.",
    )


def test_intervals_stand_in_the_answer_and_noise_is_called_noise() -> None:
    said = answer(a_run(tok_s=1000, ci95=20), a_run(sku=PRO_5000, tok_s=990, ci95=20))
    assert said[:2] == (
        "1 × RTX PRO 4500 is the fastest: 13.9 h (13.6 to 14.2 h) for 50M tokens.",
        "Of other models 1 × RTX PRO 5000 is the fastest: 14.0 h (13.8 to 14.3 h), within the noise of the one above.",
    )
    clear = answer(a_run(tok_s=1000, ci95=20), a_run(sku=PRO_5000, tok_s=900, ci95=20))
    assert clear[1] == "Of other models 1 × RTX PRO 5000 is the fastest: 15.4 h (15.1 to 15.8 h)."
    more = "; the difference from 1 × RTX PRO 4500 is within the noise."
    assert answer(a_run(tok_s=1000, ci95=90), a_run(2, 1090, ci95=90))[0].endswith(more)
    assert "noise" not in answer(a_run(tok_s=1000, ci95=90), a_run(2, 1900, ci95=90))[0]


def test_a_simulated_configuration_never_passes_for_a_measured_one() -> None:
    said = answer(a_run(), a_run(2, 1900, tags=("simulated",)))
    assert said[0].startswith("2 × RTX PRO 4500 (simulated) is the fastest:")


def test_dearer_hardware_pays_or_does_not() -> None:
    def said(dear_per_joule: float, price: float = 4000.0, kwh: float = 10.0) -> str:
        prices = Prices(kwh, {"RTX PRO 4500": 1000.0, "RTX PRO 5000": price}, utilisation=1.0)
        runs = (
            a_run(tok_s=1000, tok_per_j=10.0, ci95=None),
            a_run(sku=PRO_5000, tok_s=1100, tok_per_j=dear_per_joule, ci95=None),
        )
        return answer(*runs, prices=prices)[-1]

    assert said(20.0) == (
        "1 × RTX PRO 5000 costs more to buy than 1 × RTX PRO 4500 and pays it back by its lower energy after 21.6B tokens."
    )
    assert said(9.0) == "1 × RTX PRO 5000 costs more to buy than 1 × RTX PRO 4500 and never pays it back by energy."
    assert said(10.5, kwh=0.2) == (
        "1 × RTX PRO 5000 costs more to buy than 1 × RTX PRO 4500 and would pay it back by its lower energy in 327 years, "
        "longer than it serves."
    )
    assert "is the cheapest" in said(20.0, price=1000.0)  # neither is dearer to buy


def test_only_separate_runs_answer_nothing_but_are_shown() -> None:
    comparison = compared(a_run(2, 1900, coupling="separate"))
    assert (comparison.answer, len(comparison.rows)) == ((), 1)
