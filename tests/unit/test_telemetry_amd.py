"""AMD's driver, over a package that behaves as amdsmi 7.0.2: through the real sampler into journal lines, and in doctor.

No test here has seen a card: the package's own code and documentation are what the fake was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.amd import amd_env, gpu_uuid, no_nvidia
from fakes.nvml import gpu_uuid as nvidia_uuid
from fakes.nvml import run_python, stub_env
from fakes.sampling import sample

from lorawatch.run.clock_reasons import ClockReason
from lorawatch.telemetry.amd import identity

MIB = 1 << 20
OPEN = """
import json
import msgspec
from dataclasses import asdict
from lorawatch.telemetry.driver import DriverUnavailable, GpuLost
from lorawatch.telemetry.opening import open_driver
"""
DOCTOR = """
from lorawatch.doctor import gpu
from lorawatch.doctor.checks import to_json
from lorawatch.telemetry.vendors import Vendor
Vendor.present = lambda vendor: vendor.key in PRESENT
gpu._torch = lambda driver: []
print(to_json(gpu.gpus_and_torch()))
"""


def ask(code: str, env: dict[str, str]) -> Any:
    return json.loads(run_python(OPEN + code, env))


def doctor(env: dict[str, str], *present: str) -> dict[str, dict[str, Any]]:
    checks = json.loads(run_python(f"PRESENT = {present!r}\n{DOCTOR}", env))
    assert len({c["name"] for c in checks}) == len(checks)
    return {c["name"]: c for c in checks}


# --- journal lines


def test_an_instinct_card_in_journal_lines(tmp_path: Path) -> None:
    got = sample(no_nvidia(tmp_path) | amd_env(("mi300x", "mi300x")), 2.6, hz=5)
    assert len(got.fast) >= 20
    for line in got.fast:
        assert line["power_w"] == 561
        assert "power_average_w" not in line
        assert line["memory_used_bytes"] == 65535 * MIB  # no figure of its own width that means "missing"
        assert line["utilization_pct"] == 97
        assert line.get("sm_clock_mhz", 2100) == 2100
    reasons = {u: [x["event_reasons"] for x in got.fast if x["gpu_uuid"] == u and "event_reasons" in x]
               for u in (gpu_uuid(0), gpu_uuid(1))}  # fmt: skip
    assert len(reasons[gpu_uuid(0)]) >= 4
    assert set(reasons[gpu_uuid(0)]) == {int(ClockReason.POWER_CAP)}
    assert set(reasons[gpu_uuid(1)]) == {int(ClockReason.POWER_CAP | ClockReason.SOFTWARE_THERMAL)}
    full = [x for x in got.slow if "temperature_c" in x]
    assert {x["temperature_c"] for x in full} == {63}
    assert {x["power_limit_w"] for x in full} == {750}
    assert {x["memory_clock_mhz"] for x in full} == {1300}
    # ticks of 15.259 µJ become joules: their differences are the card's watts
    first, *_, last = [x for x in got.slow if x["gpu_uuid"] == gpu_uuid(0)]
    assert 1e5 <= first["energy_j"] < 1e5 + 2 * 561
    watts = (last["energy_j"] - first["energy_j"]) / (last["sampled_at"] - first["sampled_at"])
    assert watts == pytest.approx(561, rel=0.02)
    assert got.kinds() == ["gpu_memory_errors"] * len(got.events)  # the fake's count grows once a second
    assert {e["detail"]["errors"] for e in got.events} == {1}
    assert [g["processes"] for g in got.more["latest"]] == [1, 1]
    assert got.more["ended"] is True


def test_what_a_radeon_card_lacks_is_absent_never_zero(tmp_path: Path) -> None:
    got = sample(no_nvidia(tmp_path) | amd_env(("r9700",)), 1.5)
    assert {x["power_w"] for x in got.fast} == {240}  # its one reading, the average, stands for the instant one
    assert not [x for x in got.fast if "power_average_w" in x or "event_reasons" in x]
    assert not [x for x in got.slow if "energy_j" in x]
    assert {x["temperature_c"] for x in got.slow} == {63}
    assert got.events == []


REFUSED = (
    "amdsmi_get_power_info", "amdsmi_get_gpu_vram_usage", "amdsmi_get_gpu_activity", "amdsmi_get_clock_info",
    "amdsmi_get_gpu_metrics_info", "amdsmi_get_energy_count", "amdsmi_get_temp_metric", "amdsmi_get_power_cap_info",
    "amdsmi_get_gpu_total_ecc_count", "amdsmi_get_gpu_process_list",
)  # fmt: skip


@pytest.mark.parametrize("code", [2, 6, 9, 12345])
def test_what_the_driver_refuses_is_absent(tmp_path: Path, code: int) -> None:
    got = sample(no_nvidia(tmp_path) | amd_env(errors=dict.fromkeys(REFUSED, code)), 1.2)
    assert got.fast == []
    assert got.slow
    for line in got.slow:
        assert set(line) == {"t", "sampled_at", "gpu_uuid"}
    assert got.events == []


def test_a_lost_card_is_reported_once_and_the_other_goes_on(tmp_path: Path) -> None:
    got = sample(no_nvidia(tmp_path) | amd_env(("mi300x", "r9700"), lost=(1, 0.6)), 1.8)
    (event,) = [e for e in got.events if e["kind"] == "gpu_lost"]
    assert event["message"] == "GPU 1 (AMD Radeon AI PRO R9700) is lost: AMDSMI_STATUS_NOT_FOUND"
    assert event["detail"]["gpu_uuid"] == gpu_uuid(1)
    assert max(x["sampled_at"] for x in got.fast if x["gpu_uuid"] == gpu_uuid(0)) > got.more["began"] + 1.5


def test_a_sensor_that_is_not_found_is_no_lost_card(tmp_path: Path) -> None:
    got = sample(no_nvidia(tmp_path) | amd_env(errors={"amdsmi_get_temp_metric": 31}), 1.2)
    assert "gpu_lost" not in got.kinds()
    assert got.fast
    assert all("temperature_c" not in x for x in got.slow)


def test_a_call_that_hangs_holds_up_its_own_lane_only(tmp_path: Path) -> None:
    got = sample(no_nvidia(tmp_path) | amd_env(hang=("amdsmi_get_energy_count", 0, 0.5, 5.5)), 5)
    assert "telemetry_stale" in got.kinds()
    assert len(got.fast) > 30


# --- which driver, and which GPUs


def test_lists_the_gpus_as_a_run_records_them(tmp_path: Path) -> None:
    code = """
d = open_driver()
print(json.dumps([d.words(), msgspec.to_builtins(d.gpus("h")), [x.architecture() for x in d.devices],
                  asdict(d.devices[0].facts()), d.linked([x.uuid for x in d.devices])]))
"""
    words, gpus, architectures, facts, linked = ask(code, no_nvidia(tmp_path) | amd_env(("mi300x", "r9700")))
    assert words == "6.12.12, AMD SMI 26.0.2"
    assert gpus == [
        {
            "host": "h", "gpu_index": i, "gpu_uuid": gpu_uuid(i), "sku": sku, "memory_total_bytes": 196592 * MIB,
            "power_limit_w": limit, "vendor": "amd",
        }
        for i, (sku, limit) in enumerate([("AMD Instinct MI300X", 750), ("AMD Radeon AI PRO R9700", 300)])
    ]  # fmt: skip
    assert architectures == ["gfx942", "gfx1201"]
    assert facts["free_memory_bytes"] == (196592 - 65535) * MIB
    assert (facts["default_power_limit_w"], facts["energy_counter"]) == (750, True)
    assert facts["persistence_mode"] is facts["compute_mode"] is facts["mig_mode"] is None
    assert linked is False


@pytest.mark.parametrize(
    ("enumeration", "serial", "name"),
    [
        ({"hip_uuid": "GPU-de8287300da37c72", "hip_id": 3}, "0xDE8287300DA37C72", "GPU-de8287300da37c72"),
        ({}, "0xDE8287300DA37C72", "GPU-de8287300da37c72"),  # a library before hip_uuid
        ({"hip_uuid": "GPU-0xDE8287300DA37C72"}, "N/A", "GPU-de8287300da37c72"),
        ({"hip_uuid": "GPU-e8287300da37c72"}, "N/A", "GPU-0e8287300da37c72"),
        ({"hip_uuid": "GPU-0000000000000000", "hip_id": 3}, "N/A", "AMD-3"),
        ({"hip_uuid": "N/A", "hip_id": "N/A"}, None, "AMD-1"),
        ({"hip_uuid": "GPU-XX"}, None, "AMD-1"),
    ],
)
def test_a_card_is_known_by_what_rocm_takes_for_it(enumeration: dict[str, Any], serial: Any, name: str) -> None:
    assert identity(enumeration, serial, 1) == name


def test_cards_without_a_uuid_are_listed_all_the_same(tmp_path: Path) -> None:
    code = "print(json.dumps([d.uuid for d in open_driver().devices]))"
    env = no_nvidia(tmp_path) | amd_env(("mi300x", "r9700"), no_uuid=(1,))
    assert ask(code, env) == [gpu_uuid(0), "AMD-1"]


def test_nvidia_cards_go_first_where_both_are(tmp_path: Path) -> None:
    env = stub_env(tmp_path) | amd_env()
    code = """
import sys
print(json.dumps([[g.gpu_uuid, g.vendor] for g in open_driver().gpus("h")] + ["amdsmi" in sys.modules]))
"""
    assert ask(code, env) == [[nvidia_uuid(0), "nvidia"], False]
    checks = doctor(env, "nvidia", "amd")
    assert checks["NVIDIA driver"]["status"] == "ok"
    assert checks["AMD driver"]["status"] == "info"
    assert "AMD GPUs are not sampled" in checks["AMD driver"]["found"]
    assert "AMD driver" not in doctor(env, "nvidia")


def test_amd_cards_are_taken_where_nvidias_driver_lists_none(tmp_path: Path) -> None:
    env = stub_env(tmp_path, gpus=0) | amd_env()
    assert ask('print(json.dumps([g.vendor for g in open_driver().gpus("h")]))', env) == ["amd"]


def test_chat_goes_to_the_freest_amd_card_unless_the_user_has_chosen(tmp_path: Path) -> None:
    code = """
from lorawatch.cli.child import freest_gpu
gpu = freest_gpu()
print(json.dumps(gpu and [gpu.gpu_uuid, gpu.vendor]))
"""
    env = no_nvidia(tmp_path) | amd_env(("mi300x", "r9700"), errors={"amdsmi_get_gpu_vram_usage@0": 2})
    assert ask(code, env) == [gpu_uuid(1), "amd"]
    assert ask(code, env | {"ROCR_VISIBLE_DEVICES": "0"}) is None


# --- broken and absent libraries


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"no_library": True}, "libamd_smi.so: cannot open shared object file"),
    ({"old_library": True}, "undefined symbol"),
    ({"errors": {"amdsmi_init": 34}}, "the AMD driver is not loaded"),
    ({"errors": {"amdsmi_init": 10}}, "no permission to talk to the AMD driver"),
    ({"errors": {"amdsmi_init": 18}}, "the AMD driver answers"),
    ({"init_fails": True}, "AMD SMI fails: OSError"),
    ({"errors": {"amdsmi_get_processor_handles": 32}}, "AMDSMI_STATUS_NOT_INIT"),
]


@pytest.mark.parametrize(("settings", "words"), BROKEN)
def test_a_broken_library_is_a_plain_reason(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    env = no_nvidia(tmp_path) | amd_env(**settings)
    checks = doctor(env, "amd")  # its output parses: what the package prints is not in it
    assert checks["AMD driver"]["status"] == "warn"
    assert words in checks["AMD driver"]["found"]
    assert checks["AMD driver"]["advice"]
    assert checks["NVIDIA driver"]["status"] == "info"
    assert doctor(env)["AMD driver"]["status"] == "info"  # no card of AMD is in the machine


def test_a_machine_whose_libraries_are_both_broken_samples_its_host(tmp_path: Path) -> None:
    got = sample(no_nvidia(tmp_path) | amd_env(no_library=True), 1.2)
    assert got.fast == got.slow == got.events == []
    assert len(got.host) == 2
    assert got.more["ended"] is True


def test_nvidias_broken_library_leaves_amds_cards(tmp_path: Path) -> None:
    env = stub_env(tmp_path, errors={"nvmlInitWithFlags": 9}) | amd_env()
    checks = doctor(env, "nvidia", "amd")
    assert checks["NVIDIA driver"]["status"] == "warn"
    assert "MI300X" in checks["GPU 0"]["found"]


def test_the_reason_is_that_of_the_vendor_whose_card_is_there(tmp_path: Path) -> None:
    code = """
from lorawatch.telemetry.vendors import Vendor
reasons = []
for present in ("nvidia", "amd", "no"):
    Vendor.present = lambda vendor: vendor.key == present
    try:
        open_driver()
    except DriverUnavailable as failure:
        reasons.append(failure.reason)
print(json.dumps(reasons))
"""
    nvidia, amd, none = ask(code, no_nvidia(tmp_path) | amd_env(errors={"amdsmi_init": 34}))
    assert "no NVIDIA driver is installed" in nvidia
    assert amd == "the AMD driver is not loaded"
    assert none == nvidia


def test_a_driver_that_never_answers_does_not_hold_us(tmp_path: Path) -> None:
    code = """
from lorawatch.telemetry.amd import open_amd
try:
    open_amd(0.3)
except DriverUnavailable as failure:
    print(json.dumps(failure.reason))
"""
    assert "did not answer within" in ask(code, no_nvidia(tmp_path) | amd_env(init_s=20))


# --- doctor


def test_doctor_says_that_amd_was_not_tried(tmp_path: Path) -> None:
    checks = doctor(no_nvidia(tmp_path) | amd_env(("mi300x", "r9700")), "amd")
    driver = checks["AMD driver"]
    assert driver["status"] == "warn"
    assert driver["found"] == "6.12.12, AMD SMI 26.0.2; written from AMD's documentation, not tried on a card"
    assert "amd-smi" in driver["advice"]
    assert "runs use the CPU" not in checks["NVIDIA driver"]["found"]
    assert "AMD Instinct MI300X" in checks["GPU 0"]["found"]
    assert "750 W limit, energy counter" in checks["GPU 0"]["found"]
    assert "4242" in checks["GPU 0"]["advice"]
    assert "no energy counter" in checks["GPU 1"]["found"]


def test_doctor_names_the_package_where_an_amd_card_lacks_it(tmp_path: Path) -> None:
    checks = doctor(no_nvidia(tmp_path), "amd")
    assert checks["AMD driver"]["status"] == "info"
    assert "amdsmi is not installed" in checks["AMD driver"]["found"]
    assert "lorawatch[amd]" in checks["AMD driver"]["advice"]
    assert "AMD driver" not in doctor(no_nvidia(tmp_path))
