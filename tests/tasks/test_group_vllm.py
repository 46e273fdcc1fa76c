"""One engine group on real vLLM: measured from start to store, and no process left however it ends."""

import gzip
import json
import os
import threading
from pathlib import Path

import psutil
import pytest

from srfa.specs import BenchmarkJob, EngineArgs, EngineGroup, Workload
from srfa.traces.ingest import ingest_job
from tasks.cluster import ClusterSettings, connected, run_group_on_ray
from tasks.engine import VllmEngine
from tasks.group import GroupRequest, run_group
from tasks.store import open_store
from tasks.workplace import EngineSettings, Workplace
from tests.processes import living, wait_for

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}
ENGINE = EngineArgs(
    dtype="float32",
    load_format="dummy",
    enforce_eager=True,
    kv_cache_memory_bytes=1 << 26,
    max_model_len=512,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    block_size=32,
    enable_prefix_caching=True,
    enable_chunked_prefill=True,
)


@pytest.fixture
def job(cpu):
    workload = Workload(name="chunked", random_input_len=100, random_output_len=8, num_prompts=6, max_concurrency=3)
    return BenchmarkJob(model="srfa/test", gpu=cpu.name, engine=ENGINE, workload=workload, engine_version="0.32.0")


@pytest.fixture
def request_(cpu, tmp_path):
    uri = open_store(str(tmp_path / "store")).uri
    return GroupRequest(run_id="r1", store_uri=uri, gpu=cpu, hf_config=MODEL, settings=EngineSettings())


def workers_below(root):
    return [process for process in root.children(recursive=True) if process.name().startswith("VLLM::Worker")]


def tokens(lines):
    """New tokens of all steps, and the prompt and output tokens of all requests."""
    records = [json.loads(line) for line in lines]
    scheduled = sum(sum(record["num_new_tokens"]) for record in records if record["record"] == "step")
    requests = [record for record in records if record["record"] == "request"]
    return scheduled, requests


def test_a_group_is_measured_and_every_token_is_accounted_for(job, cpu, request_, children):
    prefixes = Workload(
        name="prefixes",
        dataset_name="prefix_repetition",
        prefix_repetition_prefix_len=64,
        prefix_repetition_suffix_len=16,
        prefix_repetition_num_prefixes=2,
        prefix_repetition_output_len=4,
        num_prompts=6,
    )
    second = BenchmarkJob.model_validate(job.model_dump() | {"workload": prefixes})
    outcomes = run_group(EngineGroup(group_id=job.group_id, jobs=(job, second)), request_)
    assert [outcome.status for outcome in outcomes] == ["measured", "measured"], outcomes
    assert not children()
    store = open_store(request_.store_uri)
    cached = []
    for measured, outcome in zip((job, second), outcomes, strict=True):
        client = json.loads(store.get(f"{outcome.prefix}/client.json"))
        assert client["completed"] == outcome.n_requests == 6
        trace = gzip.decompress(store.get(f"{outcome.prefix}/trace.jsonl.gz")).splitlines()
        scheduled, requests = tokens(trace)
        assert len(requests) == 6
        prompt, output = (sum(record[name] for record in requests) for name in ("prompt_tokens", "output_tokens"))
        assert (sum(client["input_lens"]), sum(client["output_lens"])) == (prompt, output)
        cached.append(sum(record["cached_tokens"] for record in requests))
        assert scheduled + cached[-1] == prompt + output - len(requests), "the last token of a request is not computed"
        files = {Path(key).name: store.get(key) for key in store.list(f"{outcome.prefix}/")}
        ingested = ingest_job(files, measured, cpu, run_id="r1")
        assert ingested.steps.num_rows == outcome.n_steps
    assert cached[0] == 0, "the first job found another's prefixes"
    assert cached[1] > 0, "repeated prefixes were not found"


def test_kill_9_of_the_inner_guard_leaves_no_vllm_process(job, cpu, request_, tmp_path, children):
    place = Workplace(job, cpu, request_.settings, folder=tmp_path / "place", hf_config=MODEL)
    with VllmEngine(place):
        tree = children()
        assert workers_below(psutil.Process(os.getpid()))
        outer = next(process for process in tree if process.ppid() == os.getpid())
        (inner,) = outer.children()
        inner.kill()
        wait_for(lambda: not living(process for process in tree if process != outer), 10)


@pytest.mark.ray
def test_kill_9_of_the_ray_worker_leaves_no_vllm_process(job, cpu, request_):
    group = EngineGroup(group_id=job.group_id, jobs=(job,))
    answers = []
    with connected(ClusterSettings(num_cpus=2), [cpu]):
        run = threading.Thread(
            target=lambda: answers.append(run_group_on_ray(group, request_, ClusterSettings())), daemon=True
        )
        run.start()
        me = psutil.Process(os.getpid())
        wait_for(lambda: workers_below(me), 300)
        (model_worker,) = workers_below(me)
        ray_worker = next(parent for parent in model_worker.parents() if "ray::" in " ".join(parent.cmdline()))
        tree = ray_worker.children(recursive=True)
        assert len(tree) > 6, "guards, API server, engine core, worker, load generator"
        ray_worker.kill()
        run.join(60)
        wait_for(lambda: not living(tree), 15)
    assert [outcome.reason for outcome in answers[0]] == ["worker_lost"]
