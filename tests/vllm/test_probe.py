"""The probe: upper bounds of matrix rate and streaming, under the environment that restricts the engine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from srfa.microbenchmark import FIGURE_UNITS, read_microbenchmark
from srfa.vllm import collective, kernels, microbenchmark, probe
from srfa.vllm.collective import UnmeasuredError
from srfa.vllm.probe import Case, Device, best_rate, bound_cores, samples_ns

REPOSITORY = Path(__file__).parents[2]
ONE_THREAD = Device("cpu", torch.float32, 1)
HOSTS_WITH_AVX2 = "avx2" in Path("/proc/cpuinfo").read_text().split()


def run_probe(out, *arguments, module="srfa.vllm.probe", **environment):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ONEDNN", "OMP", "VLLM"))}
    subprocess.run(
        [sys.executable, "-m", module, "--out", str(out), *arguments],
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


def test_the_sampler_returns_the_time_of_one_call():
    samples = samples_ns(ONE_THREAD, lambda: busy_ns(100_000), 0.0)
    assert len(samples) == 2
    assert samples == pytest.approx([100_000] * 2, rel=0.3)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The real microbenchmark, as short as it gets."""
    out = tmp_path_factory.mktemp("microbenchmark") / "microbenchmark.json"
    run_probe(out, "--seconds", "0.1", "--gpu", "cpu-1t", "--device", "cpu", module="srfa.vllm.microbenchmark")
    return out


def test_the_microbenchmark_measures_every_figure_on_a_cpu(measured):
    document = json.loads(measured.read_text())
    what = [document[key] for key in ("gpu", "kind", "dtype", "threads")]
    assert what == ["cpu-1t", "cpu", "float32", 1]
    assert document["torch_version"] == torch.__version__
    assert 0.001 < document["gemm_tflops"] < 2
    assert 0.001 < document["attention_tflops"] < 2
    assert 0.001 < document["weight_stream_tbps"] < 1
    assert 0.001 < document["kv_stream_tbps"] < 1
    assert 0.1 < document["kernel_latency_us"] < 1000
    assert 1 < document["allreduce_latency_us"] < 1_000_000
    assert 0.001 < document["allreduce_gbps"] < 1000
    assert set(document["spread_ratio"]) == set(document["curves"]) == set(microbenchmark.FIGURES)
    assert not [note for note in document["notes"].values() if note.startswith("not measured")]


def test_a_rate_is_the_best_of_its_curve(measured):
    document = json.loads(measured.read_text())
    for figure in ("gemm_tflops", "weight_stream_tbps", "kv_stream_tbps", "attention_tflops"):
        assert document[figure] == max(document["curves"][figure].values())
    rows = {name.split()[-1].partition("x")[0] for name in document["curves"]["gemm_tflops"]}
    assert rows == {"128", "512", "1024", "2048", "4096"}


def test_what_the_microbenchmark_writes_the_library_reads(measured):
    assert read_microbenchmark(measured).model_dump(mode="json") == json.loads(measured.read_text())
    assert tuple(FIGURE_UNITS) == microbenchmark.FIGURES


def test_cuda_without_a_gpu_is_refused_with_words(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert microbenchmark.main(["--out", str(tmp_path / "m.json"), "--device", "cuda"]) == 2
    assert "use --device cpu" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_amounts_of_the_kernels_are_counted_by_hand():
    gemm = {case.name: case.amount for case in kernels.gemm_cases(ONE_THREAD)}
    assert gemm["onednn 128x1024x1024"] == 2 * 128 * 1024 * 1024
    attention = {case.name: case for case in kernels.attention_cases(ONE_THREAD)}
    assert attention["n=1024"].amount == 2 * 2 * 8 * 64 * 1024**2 / 2
    assert attention["n=1024"].kernel().shape == (1, 8, 1024, 64)


def test_what_is_streamed_exceeds_the_caches_and_is_counted_once():
    least = min(kernels.stream_bytes(ONE_THREAD), 256 * 2**20)
    weights = kernels.weight_stream_cases(ONE_THREAD)
    assert all(case.amount >= least and case.amount % (4 * 4096 * 2048) == 0 for case in weights)
    contexts = kernels.kv_stream_cases(ONE_THREAD)
    for case in contexts:
        batch, context = (int(part.partition("=")[2]) for part in case.name.split())
        assert case.amount == 2 * batch * 8 * context * 64 * 4
        assert case.kernel().shape == (batch, 8, 1, 64)
    assert contexts[0].amount >= least / 2


def test_causal_attention_does_not_look_ahead():
    tokens = torch.randn(1, 1, 4, 8)
    out = kernels._attention(tokens, tokens, tokens, causal=True)()
    assert torch.allclose(out[0, 0, 0], tokens[0, 0, 0])


def test_the_spread_of_steady_repeats_is_small_and_of_noisy_ones_their_coefficient_of_variation():
    assert microbenchmark.spread_ratio([100.0] * 9 + [900.0]) == 0.0
    draw = torch.normal(100.0, 20.0, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    assert microbenchmark.spread_ratio(draw) == pytest.approx(0.2, rel=0.1)


def test_latencies_are_medians_and_rates_the_best():
    found = microbenchmark.Findings()
    found.add("kernel_latency_us", {"add": [1000.0, 3000.0, 9000.0]}, {})
    found.add("gemm_tflops", {"a": [2.0, 1.0], "b": [4.0, 4.0]}, {"a": 5000.0, "b": 4000.0})
    found.add("allreduce_gbps", {"two": [2.0]}, {"two": 10.0})
    assert found.values["kernel_latency_us"] == 3.0
    assert found.values["gemm_tflops"] == 5.0
    assert found.curves["gemm_tflops"] == {"a": 5.0, "b": 1.0}
    assert found.values["allreduce_gbps"] == 5.0


def test_a_figure_that_cannot_be_measured_is_null_with_its_reason(monkeypatch):
    def out_of_memory(device):
        raise RuntimeError("out of memory\n and more")

    def alone(device, seconds):
        raise UnmeasuredError("one GPU is visible")

    tiny = {"kernel_latency_us": kernels.tiny_cases, "gemm_tflops": out_of_memory}
    monkeypatch.setattr(microbenchmark, "_CASES", tiny)
    monkeypatch.setattr(microbenchmark, "measure_allreduce", alone)
    document = microbenchmark.measure(ONE_THREAD, 0.0)
    assert document["kernel_latency_us"] > 0
    assert document["gemm_tflops"] is document["allreduce_gbps"] is document["allreduce_latency_us"] is None
    assert document["notes"]["gemm_tflops"] == "not measured: out of memory"
    assert document["notes"]["allreduce_gbps"] == "not measured: one GPU is visible"
    assert document["gpu"] == document["device_name"]


def test_one_gpu_has_no_peer(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UnmeasuredError, match="an all-reduce needs two"):
        collective.measure_allreduce(Device("cuda", torch.bfloat16, 1), 1.0)


@pytest.mark.parametrize(("ranks", "share"), [(2, 1.0), (8, 1.75)])
def test_a_ring_sends_twice_the_message_less_one_share(ranks, share):
    assert collective.AllReduce(ranks, (), ()).ring_bytes() == share * 64 * 2**20


class Peers:
    """Processes that never end, or of which one failed."""

    def __init__(self, failure=None):
        self.processes, self.killed, self.failure = [self], False, failure

    def join(self, timeout):
        if self.failure:
            raise self.failure
        return False

    def kill(self):
        self.killed = True


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (None, "have not ended within 0 s"),
        (torch.multiprocessing.ProcessRaisedException("Traceback\nValueError: no such device", 0, 1), "no such device"),
    ],
)
def test_peers_that_fail_or_hang_are_ended_and_told(failure, says):
    peers = Peers(failure)
    with pytest.raises(UnmeasuredError, match=says):
        collective._join(peers, 0.0)
    assert peers.killed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and PyTorch for CUDA")
def test_the_microbenchmark_of_a_gpu_is_possible_by_its_datasheet(tmp_path, shipped):
    out = tmp_path / "gpu.json"
    run_probe(out, "--seconds", "20", "--device", "cuda", module="srfa.vllm.microbenchmark")
    found = read_microbenchmark(out)
    shipped.calibrated({str(out): found})
    missing = [figure for figure in FIGURE_UNITS if getattr(found, figure) is None]
    assert missing == ([] if torch.cuda.device_count() > 1 else ["allreduce_latency_us", "allreduce_gbps"])
    assert set(missing) <= set(found.notes)
