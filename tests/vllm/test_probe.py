"""The probe: upper bounds of matrix rate and streaming, under the environment that restricts the engine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from srfa.vllm import probe
from srfa.vllm.probe import Case, Device, best_rate, bound_cores

REPOSITORY = Path(__file__).parents[2]
ONE_THREAD = Device("cpu", torch.float32, 1)
HOSTS_WITH_AVX2 = "avx2" in Path("/proc/cpuinfo").read_text().split()


def run_probe(out, *arguments, **environment):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ONEDNN", "OMP", "VLLM"))}
    subprocess.run(
        [sys.executable, "-m", "srfa.vllm.probe", "--out", str(out), *arguments],
        env=inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | environment,
        check=True,
        timeout=120,
    )
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    full = run_probe(folder / "full.json", "--seconds", "2", VLLM_CPU_OMP_THREADS_BIND="0")
    lite = run_probe(folder / "lite.json", "--seconds", "2", ONEDNN_MAX_CPU_ISA="SSE41")
    return {"full": full, "lite": lite}


def busy_ns(duration_ns):
    end_ns = time.process_time_ns() + duration_ns
    while time.process_time_ns() < end_ns:
        pass


def test_a_kernel_of_known_cost_is_given_its_rate():
    case = Case("spin", lambda: busy_ns(5_000_000), amount=10_000_000.0)
    assert best_rate(ONE_THREAD, [case], 0.05)["spin"] == pytest.approx(2.0, rel=0.2)


def test_sleeping_costs_a_cpu_nothing():
    assert ONE_THREAD.elapsed_ns(lambda: time.sleep(0.02), 1) < 10_000_000


def test_the_best_of_uneven_repeats_is_kept():
    durations = iter([9, 9, 4, 1, *[8] * 1000])
    case = Case("uneven", lambda: busy_ns(next(durations) * 1_000_000), amount=1_000_000.0)
    assert best_rate(ONE_THREAD, [case], 0.05)["uneven"] == pytest.approx(1.0, rel=0.3)


def test_without_time_each_case_still_runs():
    rates = best_rate(ONE_THREAD, [Case(name, lambda: busy_ns(1000), 1.0) for name in "ab"], 0.0)
    assert set(rates) == {"a", "b"}
    assert all(rate > 0 for rate in rates.values())


def test_operations_of_a_matrix_product_are_counted_by_hand():
    (case,) = (case for case in probe.matmul_cases(ONE_THREAD) if case.name == "onednn 512x3072x512")
    assert case.amount == 2 * 512 * 3072 * 512
    assert case.kernel().shape == (512, 3072)


def test_reads_cover_cache_and_dram():
    sizes = {case.amount for case in probe.read_cases(ONE_THREAD)}
    assert min(sizes) <= 2**20
    assert max(sizes) >= 2**28


def test_a_type_onednn_cannot_multiply_is_multiplied_by_mm():
    integers = torch.ones(8, 8, dtype=torch.int64)
    assert probe._onednn_kernels(integers, integers) == {}
    assert torch.equal(probe._mm_kernels(integers, integers)["mm"](), 8 * integers)


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ("1", [1]),
        ("0,2", [0, 2]),
        ("1-3|0", [1, 2, 3]),
        ("auto", [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
        ("9", [0, 1, 2, 3]),
    ],
)
def test_the_probe_runs_on_the_cores_of_the_engines_first_rank(environment, cores):
    assert bound_cores(environment, [0, 1, 2, 3]) == cores


def test_figures_are_the_best_of_all_kernels_and_in_plausible_units(figures):
    full = figures["full"]
    assert full["matmul_tflops"] == max(full["rates"]["matmul_tflops"].values()) == full["bf16_tflops"]
    assert full["memory_bandwidth_tbps"] == max(full["rates"]["memory_bandwidth_tbps"].values())
    assert (full["schema_version"], full["kind"], full["dtype"], full["threads"]) == (1, "cpu", "float32", 1)
    assert 0.001 < full["matmul_tflops"] < 2
    assert 0.002 < full["memory_bandwidth_tbps"] < 1
    assert full["cpu_model"] != "unknown"


def test_the_rate_bounds_a_large_product_made_elsewhere(figures):
    """An oracle apart from the probe: PyTorch's own mm, timed here, is another library and must not be far above."""
    torch.set_num_threads(1)
    a, best_ns = torch.ones(1024, 1024), float("inf")
    for _ in range(10):
        begin = time.thread_time_ns()
        torch.mm(a, a)
        best_ns = min(best_ns, time.thread_time_ns() - begin)
    assert 2 * 1024**3 / best_ns / 1000 < 1.5 * figures["full"]["matmul_tflops"]


@pytest.mark.skipif(not HOSTS_WITH_AVX2, reason="SSE4.1 restricts nothing on a CPU without AVX2")
def test_the_lite_profile_multiplies_at_least_one_and_a_half_times_slower_and_reads_as_fast(figures):
    full, lite = figures["full"], figures["lite"]
    assert full["matmul_tflops"] > 1.5 * lite["matmul_tflops"]
    assert lite["onednn_max_cpu_isa"] == "SSE41"
    assert lite["memory_bandwidth_tbps"] == pytest.approx(full["memory_bandwidth_tbps"], rel=0.5)


def test_an_unknown_type_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        probe.main(["--out", str(tmp_path / "p.json"), "--dtype", "float8"])
    assert "float8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and PyTorch for CUDA")
def test_a_gpu_reaches_most_of_its_datasheet(tmp_path):
    figures = run_probe(tmp_path / "gpu.json", "--device", "cuda", "--dtype", "bfloat16")
    sheets = [json.loads(path.read_text()) for path in (REPOSITORY / "hardware").glob("*.json")]
    (sheet,) = [s["datasheet"] for s in sheets if s["vendor_name"] == figures["gpu_name"]]
    assert 0.5 * sheet["bf16_tflops"] < figures["matmul_tflops"] < 1.05 * sheet["bf16_tflops"]
    assert (
        0.7 * sheet["memory_bandwidth_tbps"] < figures["memory_bandwidth_tbps"] < 1.05 * sheet["memory_bandwidth_tbps"]
    )
