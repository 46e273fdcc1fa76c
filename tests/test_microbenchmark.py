import json

import pytest

from srfa.catalog import load_gpu_spec
from srfa.errors import CatalogError
from srfa.microbenchmark import FIGURE_UNITS, Microbenchmark, doubtful, impossible, read_microbenchmark
from tests.steps import ROOT

H100 = {
    "gpu": "h100-sxm-80gb",
    "source": "measured",
    "kind": "cuda",
    "dtype": "bfloat16",
    "gemm_tflops": 700.0,
    "weight_stream_tbps": 2.9,
    "kv_stream_tbps": 2.5,
    "attention_tflops": 400.0,
    "kernel_latency_us": 2.2,
    "allreduce_latency_us": 12.0,
    "allreduce_gbps": 360.0,
}
CPU = {
    "gpu": "cpu-1t",
    "source": "measured",
    "kind": "cpu",
    "dtype": "float32",
    "threads": 1,
    "gemm_tflops": 0.08,
    "weight_stream_tbps": 0.02,
    "allreduce_gbps": 300.0,
}


def written(folder, document):
    path = folder / "m.json"
    path.write_text(json.dumps(document))
    return path


def found(document, shipped, **changes):
    """What is impossible and what is doubtful of a document on the GPU it names."""
    measured = Microbenchmark.model_validate(document | changes)
    gpu = shipped.resolve_gpu(measured.gpu)
    return impossible(measured, gpu), doubtful(measured, gpu)


def test_a_file_written_by_hand_needs_four_facts_and_a_figure(tmp_path):
    few = {key: H100[key] for key in ("gpu", "source", "kind", "dtype", "kv_stream_tbps")}
    measured = read_microbenchmark(written(tmp_path, few))
    assert measured.kv_stream_tbps == 2.5
    assert measured.gemm_tflops is None


def test_every_figure_is_a_field_with_a_unit():
    figures = {name for name in Microbenchmark.model_fields if name.endswith(("_tflops", "_tbps", "_gbps", "_us"))}
    assert figures == set(FIGURE_UNITS)


def test_a_measured_figure_survives_the_file(tmp_path):
    measured = Microbenchmark.model_validate(H100 | {"curves": {"gemm_tflops": {"mm 128": 1e-05}}, "notes": {"a": "b"}})
    path = tmp_path / "m.json"
    path.write_text(measured.model_dump_json())
    assert read_microbenchmark(path) == measured


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gemm_tflop": 1.0}, "unknown key 'gemm_tflop'; did you mean 'gemm_tflops'?"),
        ({"gemm_tflops": "fast"}, "gemm_tflops='fast' should be a number"),
        ({"gemm_tflops": -1.0}, "gemm_tflops=-1.0 should be greater than 0"),
        ({"gemm_tflops": float("inf")}, "gemm_tflops=inf should be a finite number"),
        ({"gemm_tflops": float("nan")}, "gemm_tflops=nan should be"),
        ({"kind": "gpu"}, "kind='gpu' should be 'cuda' or 'cpu'"),
        ({"schema_version": 2}, "schema_version=2 should be 1"),
        (dict.fromkeys(FIGURE_UNITS), "holds no figure"),
    ],
)
def test_a_faulty_file_is_refused_with_its_name_key_and_value(changes, says, tmp_path):
    path = written(tmp_path, H100 | changes)
    with pytest.raises(CatalogError) as caught:
        read_microbenchmark(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(CatalogError, match=r"m.json: missing key 'dtype'; add it"):
        read_microbenchmark(written(tmp_path, {key: value for key, value in H100.items() if key != "dtype"}))


@pytest.mark.parametrize(("text", "says"), [(None, "cannot be read"), ("{", "not JSON"), ("[]", "should be")])
def test_what_is_no_file_of_this_form_is_refused(text, says, tmp_path):
    path = tmp_path / "m.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CatalogError, match=says):
        read_microbenchmark(path)


def test_plausible_figures_pass(shipped):
    assert found(H100, shipped) == ([], [])
    assert found(CPU, shipped) == ([], [])


@pytest.mark.parametrize(
    ("figure", "peak_key", "peak"),
    [
        ("gemm_tflops", "bf16_tflops", 1.0),
        ("attention_tflops", "bf16_tflops", 1.0),
        ("weight_stream_tbps", "memory_bandwidth_tbps", 1.0),
        ("kv_stream_tbps", "memory_bandwidth_tbps", 1.0),
        ("allreduce_gbps", "link_gbps_per_direction", 2.0),
    ],
)
def test_five_percent_above_the_peak_is_the_limit_and_five_percent_of_it_the_least(figure, peak_key, peak, shipped):
    """An all-reduce may reach twice the link: the switch adds up on the way."""
    limit = peak * getattr(shipped.resolve_gpu("h100-sxm-80gb").datasheet, peak_key)
    assert found(H100, shipped, **{figure: 1.049 * limit})[0] == []
    assert found(H100, shipped, **{figure: 0.051 * limit})[0] == []
    (high,), _ = found(H100, shipped, **{figure: 1.06 * limit})
    assert high.startswith(f"{figure}=")
    assert f"106 % of datasheet.{peak_key}" in high
    assert "sparsity" in high
    (low,), _ = found(H100, shipped, **{figure: 0.04 * limit})
    assert f"4 % of datasheet.{peak_key}" in low
    assert "suspiciously little" in low


def test_figures_of_an_h200_are_not_those_of_an_h100(shipped):
    (finding,), _ = found(H100, shipped, weight_stream_tbps=4.2)
    assert "another GPU than h100-sxm-80gb" in finding


def test_little_on_a_cpu_is_a_doubt_and_no_error(shipped):
    errors, (doubt,) = found(CPU, shipped, gemm_tflops=0.001)
    assert errors == []
    assert doubt.startswith("gemm_tflops=0.001 is 1.15 % of datasheet.bf16_tflops")


def test_more_than_the_profile_has_is_refused_on_a_cpu_too(shipped):
    (finding,), _ = found(CPU, shipped, gemm_tflops=0.2)
    assert finding.startswith("gemm_tflops=0.2")


def test_a_profile_of_one_thread_is_not_measured_with_two(shipped):
    (finding,), _ = found(CPU, shipped, threads=2)
    assert finding == "threads=2 but cpu-1t has 1; measure with OMP_NUM_THREADS=1"


def test_a_cpus_figures_are_not_a_gpus(shipped):
    (finding,), _ = found(CPU, shipped, gpu="h100-sxm-80gb")
    assert "kind='cpu' but h100-sxm-80gb is 'cuda'" in finding


def test_float32_on_a_gpu_runs_without_tensor_cores_and_may_be_slow(shipped):
    assert found(H100, shipped, dtype="float32", gemm_tflops=40.0, attention_tflops=10.0)[0] == []


def test_the_probes_notes_are_doubts(shipped):
    assert found(CPU, shipped, notes={"gemm_tflops": "repeats spread by 30%"})[1] == [
        "gemm_tflops: repeats spread by 30%"
    ]


def test_a_catalogue_takes_figures_by_name_or_vendors_name_and_keeps_its_datasheets(shipped):
    by_vendor = Microbenchmark.model_validate(H100 | {"gpu": "NVIDIA H100 80GB HBM3"})
    cpu = Microbenchmark.model_validate(CPU)
    calibrated = shipped.calibrated({"a.json": by_vendor, "b.json": cpu})
    assert calibrated.resolve_gpu("h100-sxm-80gb").microbenchmark == by_vendor
    assert calibrated.resolve_gpu("cpu-1t").microbenchmark == cpu
    assert {name for name, gpu in calibrated.gpus.items() if gpu.microbenchmark} == {"h100-sxm-80gb", "cpu-1t"}
    assert all(gpu.datasheet == shipped.gpus[name].datasheet for name, gpu in calibrated.gpus.items())
    assert all(gpu.microbenchmark is None for gpu in shipped.gpus.values())


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"gpu": "h100-smx-80gb"}, "m.json: gpu='h100-smx-80gb': unknown GPU .* did you mean 'h100-sxm-80gb'"),
        ({"gpu": "H100-SXM-80GB"}, "m.json: gpu='H100-SXM-80GB' is measured in first.json too; leave one out"),
        ({"gpu": "l4-24gb"}, "m.json: gemm_tflops=700"),
    ],
)
def test_figures_that_belong_to_no_gpu_are_refused_with_their_place(others, says, shipped):
    first = Microbenchmark.model_validate(H100)
    with pytest.raises(CatalogError, match=says):
        shipped.calibrated({"first.json": first, "m.json": Microbenchmark.model_validate(H100 | others)})


@pytest.mark.parametrize(("gemm_tflops", "accepted"), [(700, True), (1979, False)])
def test_figures_in_a_file_of_hardware_are_held_against_its_datasheet(gemm_tflops, accepted, tmp_path):
    path = tmp_path / "h100-sxm-80gb.json"
    sheet = json.loads((ROOT / "hardware" / path.name).read_text())
    path.write_text(json.dumps(sheet | {"microbenchmark": H100 | {"gemm_tflops": gemm_tflops}}))
    if accepted:
        assert load_gpu_spec(path).microbenchmark.gemm_tflops == gemm_tflops
        return
    with pytest.raises(CatalogError, match=r"microbenchmark\.gemm_tflops=1979 is 200 % of datasheet\.bf16_tflops"):
        load_gpu_spec(path)
