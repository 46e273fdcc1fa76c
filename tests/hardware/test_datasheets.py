"""The GPU datasheets in hardware/ against what the silicon can do: SMs x clock x operations a clock, dense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

HARDWARE = Path(__file__).parents[2] / "hardware"

# Dense bf16 operations a clock and SM with fp32 accumulation; GeForce runs at half the rate of professional Ada boards.
FLOP_PER_CLOCK = {
    "a100-sxm-40gb": 2048,
    "a100-sxm-80gb": 2048,
    "h100-sxm-80gb": 4096,
    "h100-pcie-80gb": 4096,
    "h200-sxm-141gb": 4096,
    "b200-sxm-180gb": 8192,
    "l40s-48gb": 1024,
    "l4-24gb": 1024,
    "rtx-pro-6000-96gb": 1024,
    "rtx-4090-24gb": 512,
}
# Memory bandwidth is bus width times rate of a pin: an oracle apart from the printed figure (bits, Gbit/s a pin).
MEMORY_BUS = {
    "a100-sxm-40gb": (5120, 2.43),
    "a100-sxm-80gb": (5120, 3.186),
    "h100-sxm-80gb": (5120, 5.234),
    "h100-pcie-80gb": (5120, 3.186),
    "h200-sxm-141gb": (6144, 6.25),
    "b200-sxm-180gb": (8192, 7.5),
    "l40s-48gb": (384, 18.0),
    "l4-24gb": (192, 12.5),
    "rtx-pro-6000-96gb": (512, 25.0),
    "rtx-4090-24gb": (384, 21.0),
}
FP8_SINCE = 8.9


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((HARDWARE / f"{name}.json").read_text())
    return document


def every_file() -> list[str]:
    return sorted(path.stem for path in HARDWARE.glob("*.json"))


def peak_tflops(datasheet: dict[str, Any], flop_per_clock: int) -> float:
    return float(datasheet["sm_count"] * datasheet["boost_clock_mhz"] * flop_per_clock / 10**6)


def test_every_gpu_file_is_checked_here() -> None:
    gpus = [name for name in every_file() if load(name)["datasheet"]["kind"] == "cuda"]
    assert gpus == sorted(FLOP_PER_CLOCK)


@pytest.mark.parametrize("name", every_file())
def test_the_file_is_named_as_its_gpu_and_states_its_sources(name: str) -> None:
    document = load(name)
    assert document["name"] == name
    assert document["vendor_name"].strip()
    assert document["datasheet"]["source"].strip()
    assert document["calibration"]["source"].strip()


@pytest.mark.parametrize("name", FLOP_PER_CLOCK)
def test_bf16_rate_is_dense_and_within_five_per_cent_of_the_silicon(name: str) -> None:
    datasheet = load(name)["datasheet"]
    assert datasheet["bf16_tflops"] == pytest.approx(peak_tflops(datasheet, FLOP_PER_CLOCK[name]), rel=0.05)
    assert datasheet["fp16_tflops"] == datasheet["bf16_tflops"]


@pytest.mark.parametrize("name", FLOP_PER_CLOCK)
def test_a_figure_with_sparsity_would_not_pass(name: str) -> None:
    datasheet = load(name)["datasheet"]
    with_sparsity = 2 * datasheet["bf16_tflops"]
    assert with_sparsity > 1.5 * peak_tflops(datasheet, FLOP_PER_CLOCK[name])


@pytest.mark.parametrize("name", FLOP_PER_CLOCK)
def test_fp8_is_twice_bf16_from_ada_on_and_absent_before(name: str) -> None:
    datasheet = load(name)["datasheet"]
    if float(datasheet["compute_capability"]) < FP8_SINCE:
        assert datasheet["fp8_tflops"] is None
    else:
        assert datasheet["fp8_tflops"] == pytest.approx(2 * datasheet["bf16_tflops"], rel=0.03)


@pytest.mark.parametrize("name", MEMORY_BUS)
def test_memory_bandwidth_is_bus_width_times_pin_rate(name: str) -> None:
    bits, gbit_per_pin = MEMORY_BUS[name]
    assert load(name)["datasheet"]["memory_bandwidth_tbps"] == pytest.approx(bits / 8 * gbit_per_pin / 1000, rel=0.01)


@pytest.mark.parametrize("name", FLOP_PER_CLOCK)
def test_usable_memory_is_at_most_what_the_name_says_and_not_much_less(name: str) -> None:
    named_gb = int(name.rsplit("-", 1)[1].removesuffix("gb"))
    assert 0.93 * named_gb <= load(name)["datasheet"]["memory_gib"] <= named_gb


@pytest.mark.parametrize("name", FLOP_PER_CLOCK)
def test_only_sxm_boards_link_faster_than_pcie(name: str) -> None:
    datasheet = load(name)["datasheet"]
    assert (datasheet["link_gbps_per_direction"] > datasheet["pcie_gbps"]) == ("-sxm-" in name)


@pytest.mark.parametrize("name", FLOP_PER_CLOCK)
def test_calibration_priors_are_fractions_and_say_that_they_are_priors(name: str) -> None:
    calibration = load(name)["calibration"]
    assert calibration["source"].startswith("Priors, not measurements")
    fractions = [calibration[key] for key in ("mfu_prefill", "mfu_decode", "bandwidth_efficiency")]
    assert all(0 < fraction < 1 for fraction in fractions)
