import copy
import json
from pathlib import Path

import pytest

from srfa.catalog import load_catalog, load_gpu_spec
from srfa.errors import CatalogError

ROOT = Path(__file__).parent.parent
GPU = {
    "name": "h100",
    "vendor_name": "NVIDIA H100 80GB HBM3",
    "datasheet": {
        "source": "a datasheet",
        "kind": "cuda",
        "compute_capability": "9.0",
        "bf16_tflops": 989,
        "fp8_tflops": 1979,
        "memory_gib": 79.6,
        "memory_bandwidth_tbps": 3.35,
        "link_gbps_per_direction": 450,
        "pcie_gbps": 64,
        "sm_count": 132,
        "boost_clock_mhz": 1830,
    },
    "calibration": {
        "source": "priors",
        "mfu_prefill": 0.6,
        "mfu_decode": 0.3,
        "bandwidth_efficiency": 0.8,
        "allreduce_latency_us": 10,
        "alltoall_latency_us": 20,
        "launch_overhead_us": 5,
        "scheduler_overhead_us": 500,
    },
}
CPU = {
    **GPU,
    "name": "cpu",
    "vendor_name": "a processor",
    "datasheet": {
        "source": "microbenchmark",
        "kind": "cpu",
        "bf16_tflops": 0.9,
        "memory_gib": 8,
        "memory_bandwidth_tbps": 0.012,
        "link_gbps_per_direction": 1,
        "pcie_gbps": 1,
        "sm_count": 1,
        "boost_clock_mhz": 2700,
        "gpus_per_node": 1,
    },
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


def edited(document, key, value):
    """The document with ``a.b`` set to value, or removed where value is the marker ``...``."""
    result = copy.deepcopy(document)
    *folders, last = key.split(".")
    target = result
    for folder in folders:
        target = target[folder]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return result


def write_gpu(folder, document):
    path = folder / f"{document.get('name', 'h100')}.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def folders(tmp_path):
    hardware, models = tmp_path / "hardware", tmp_path / "models"
    hardware.mkdir()
    write_gpu(hardware, GPU)
    write_gpu(hardware, CPU)
    for name in ("meta-llama/Llama-3.1-8B", "org-a/same", "org-b/same"):
        (models / name).mkdir(parents=True)
        (models / name / "config.json").write_text(json.dumps(LLAMA))
    return hardware, models


@pytest.fixture
def catalog(folders):
    return load_catalog(*folders)


def test_every_shipped_file_loads():
    catalog = load_catalog(ROOT / "hardware", ROOT / "models")
    assert len(catalog.gpus) == len(list((ROOT / "hardware").glob("*.json")))
    assert set(catalog.models) == set(catalog.model_configs)
    assert all(name == spec.name for name, spec in {**catalog.gpus, **catalog.models}.items())


def test_a_catalog_is_keyed_by_file_stem_and_hugging_face_id(catalog):
    assert sorted(catalog.gpus) == ["cpu", "h100"]
    assert sorted(catalog.models) == ["meta-llama/Llama-3.1-8B", "org-a/same", "org-b/same"]
    assert catalog.model_configs["org-a/same"] == LLAMA


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "META-LLAMA/llama-3.1-8b", "llama-3.1-8b", "Llama-3.1-8B"])
def test_a_model_is_found_by_id_or_last_part_in_any_case(catalog, name):
    assert catalog.resolve_model(name).name == "meta-llama/Llama-3.1-8B"


def test_a_gpu_is_found_in_any_case(catalog):
    assert catalog.resolve_gpu("H100").name == "h100"


def test_an_ambiguous_last_part_lists_the_candidates(catalog):
    with pytest.raises(CatalogError, match=r"model 'same' is ambiguous; write one of org-a/same, org-b/same"):
        catalog.resolve_model("same")


def test_an_unknown_name_suggests_the_nearest_and_lists_all(catalog):
    with pytest.raises(CatalogError, match=r"unknown GPU 'h10'; did you mean 'h100'\? Known: cpu, h100"):
        catalog.resolve_gpu("h10")
    with pytest.raises(CatalogError, match=r"unknown model 'lama-3.1-8b'; did you mean 'meta-llama/Llama-3.1-8B'\?"):
        catalog.resolve_model("lama-3.1-8b")


def test_replacing_a_gpu_leaves_the_first_catalog_as_it_was(catalog):
    faster = catalog.gpus["cpu"].model_copy(update={"vendor_name": "measured"})
    replaced = catalog.with_gpu(faster)
    assert replaced.resolve_gpu("cpu").vendor_name == "measured"
    assert catalog.resolve_gpu("cpu").vendor_name == "a processor"
    assert replaced.models == catalog.models


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("datasheet.bf16_tflop", 989, "unknown key in datasheet 'bf16_tflop'; did you mean 'bf16_tflops'?"),
        ("datasheet.sm_count", ..., "missing key 'sm_count' in datasheet"),
        ("datasheet.sm_count", "132", "datasheet.sm_count='132' should be a whole number"),
        ("datasheet.memory_gib", -1, "datasheet.memory_gib=-1 should be greater than 0"),
        ("datasheet.compute_capability", 9.0, "datasheet.compute_capability=9.0 should be text; put it in quotes"),
        ("datasheet.kind", "cudda", "did you mean 'cuda'?"),
        ("name", "h200", "name='h200' should be 'h100'"),
        ("datasheet.bf16_tflops", 1979, "looks like the with-sparsity figure; divide by 2"),
        ("datasheet.fp8_tflops", 3958, "looks like the with-sparsity figure; divide by 2"),
        ("datasheet.int8_tops", 3958, "looks like the with-sparsity figure; divide by 2"),
        ("datasheet.memory_bandwidth_tbps", 3350, "looks like GB/s; divide by 1000"),
        ("datasheet.memory_gib", 81559, "looks like MiB; divide by 1024"),
        ("datasheet.boost_clock_mhz", 1.83, "looks like GHz; multiply by 1000"),
        ("datasheet.sm_count", 16896, "looks like CUDA cores; count SMs"),
        ("datasheet.link_gbps_per_direction", 3600, "looks like Gbit/s; divide by 8"),
        ("calibration.mfu_prefill", 65, "calibration.mfu_prefill=65 is above 1"),
        (
            "calibration.launch_overhead_us",
            -1,
            "calibration.launch_overhead_us=-1 should be greater than or equal to 0",
        ),
    ],
)
def test_a_planted_fault_is_refused_with_file_key_value_and_remedy(tmp_path, key, value, said):
    path = tmp_path / "h100.json"
    path.write_text(json.dumps(edited(GPU, key, value)))
    with pytest.raises(CatalogError) as caught:
        load_gpu_spec(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_a_cpu_profile_is_held_to_the_ranges_of_its_units_only(tmp_path):
    fast = edited(CPU, "datasheet.bf16_tflops", 500)
    assert load_gpu_spec(write_gpu(tmp_path, fast)).datasheet.bf16_tflops == 500
    with pytest.raises(CatalogError, match=r"memory_bandwidth_tbps=12 .* looks like GB/s"):
        load_gpu_spec(write_gpu(tmp_path, edited(CPU, "datasheet.memory_bandwidth_tbps", 12)))


def test_all_findings_of_a_file_are_reported_at_once(tmp_path):
    path = write_gpu(tmp_path, edited(edited(GPU, "datasheet.sm_count", "a"), "datasheet.pcie_gbps", "b"))
    with pytest.raises(CatalogError) as caught:
        load_gpu_spec(path)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n "name": "h100",\n "datasheet": {,}\n}', ":3: not JSON"),
        ('{"name": "a", "name": "b"}', "key 'name' stands there twice"),
        ('{"name": NaN}', "NaN is no figure"),
        ("[1, 2]", "should hold one JSON object {...}, not list"),
    ],
)
def test_malformed_json_is_refused_with_its_place(tmp_path, text, said):
    path = tmp_path / "h100.json"
    path.write_text(text)
    with pytest.raises(CatalogError) as caught:
        load_gpu_spec(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "h100.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(CatalogError, match="cannot be read"):
        load_gpu_spec(path)


def test_missing_and_empty_folders_are_refused(folders, tmp_path):
    hardware, models = folders
    with pytest.raises(CatalogError, match=r"nowhere: is not a folder with \*.json"):
        load_catalog(tmp_path / "nowhere", models)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalogError, match=r"empty: holds no \*/\*/config.json"):
        load_catalog(hardware, tmp_path / "empty")


def test_a_model_without_a_needed_key_names_file_and_key(folders):
    hardware, models = folders
    path = models / "org-a" / "same" / "config.json"
    path.write_text(json.dumps(edited(LLAMA, "hidden_size", ...)))
    with pytest.raises(CatalogError, match=r"config.json: missing key 'hidden_size' \(also read: n_embd") as caught:
        load_catalog(hardware, models)
    assert str(path) in str(caught.value)
