import pytest

from srfa.datasheet import dense_peak_tflops, implausible
from srfa.specs import Calibration, Datasheet, GpuSpec

# Vendor datasheets: compute capability, SMs, boost MHz, dense bf16 TFLOP/s, the same with sparsity.
PUBLISHED = {
    "NVIDIA A100-SXM4-80GB": ("8.0", 108, 1410, 312, 624),
    "NVIDIA A10": ("8.6", 72, 1695, 125, 250),
    "NVIDIA L4": ("8.9", 58, 2040, 121, 242),
    "NVIDIA L40S": ("8.9", 142, 2520, 362, 733),
    "NVIDIA GeForce RTX 4090": ("8.9", 128, 2520, 165.2, 330.3),
    "NVIDIA H100 SXM": ("9.0", 132, 1830, 989, 1979),
    "NVIDIA H100 SXM at its general boost": ("9.0", 132, 1980, 989, 1979),
    "NVIDIA B200": ("10.0", 148, 1855, 2250, 4500),
    "NVIDIA GeForce RTX 5090": ("12.0", 170, 2407, 209.5, 419),
}


def gpu(vendor_name, bf16_tflops, **changes):
    capability, sm_count, clock, _, _ = PUBLISHED[vendor_name]
    sheet = {
        "source": "datasheet",
        "kind": "cuda",
        "compute_capability": capability,
        "bf16_tflops": bf16_tflops,
        "memory_gib": 80,
        "memory_bandwidth_tbps": 2,
        "link_gbps_per_direction": 64,
        "pcie_gbps": 64,
        "sm_count": sm_count,
        "boost_clock_mhz": clock,
        **changes,
    }
    calibration = {"mfu_prefill": 0.5, "mfu_decode": 0.5, "bandwidth_efficiency": 0.8}
    latencies = dict.fromkeys(("allreduce", "alltoall"), 1.0) | dict.fromkeys(("launch", "scheduler"), 1.0)
    named = {f"{k}_latency_us" if k.startswith("all") else f"{k}_overhead_us": v for k, v in latencies.items()}
    return GpuSpec(
        name="x",
        vendor_name=vendor_name,
        datasheet=Datasheet(**sheet),
        calibration=Calibration(source="priors", **calibration, **named),
    )


@pytest.mark.parametrize("vendor_name", PUBLISHED)
def test_the_dense_figure_is_accepted_and_the_with_sparsity_figure_refused(vendor_name):
    *_, dense, sparse = PUBLISHED[vendor_name]
    assert implausible(gpu(vendor_name, dense)) == []
    (finding,) = implausible(gpu(vendor_name, sparse))
    assert "with-sparsity figure; divide by 2" in finding


def test_the_dense_peak_of_an_a100_is_its_datasheet_figure():
    assert dense_peak_tflops(gpu("NVIDIA A100-SXM4-80GB", 312)) == pytest.approx(312, rel=0.01)


def test_an_unknown_compute_capability_is_bounded_by_the_widest_known():
    unknown = gpu("NVIDIA H100 SXM", 1979, compute_capability="13.0")
    assert implausible(unknown) == []
    assert implausible(gpu("NVIDIA H100 SXM", 3958, compute_capability=None))


def test_geforce_may_do_eight_bits_at_four_times_its_halved_rate():
    assert implausible(gpu("NVIDIA GeForce RTX 4090", 165.2, int8_tops=660.6, fp16_tflops=330.3)) == []
    assert implausible(gpu("NVIDIA GeForce RTX 4090", 165.2, int8_tops=1321))
