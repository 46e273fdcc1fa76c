"""A rehearsed group through the runner of measured ones: store, manifests, going on, data gates, failures."""

import gzip
import json

import pytest

from srfa.coefficients import FitConfig
from srfa.estimators import estimator_named
from srfa.rehearsal import simulate_job
from srfa.specs import BenchmarkJob, EngineGroup, Workload
from tasks import simulated_engine
from tasks.evidence import Manifest
from tasks.group import GroupRequest, run_group
from tasks.ingest import JobData, ingest_stored_job, measured_catalog
from tasks.rehearsal import Rehearsal
from tasks.simulated_engine import noise_of
from tasks.store import open_store
from tests.planted import planted_observations
from tests.steps import catalog


@pytest.fixture
def store(rehearsed_request):
    return open_store(rehearsed_request.store_uri)


@pytest.fixture(scope="module")
def fitted():
    estimator = estimator_named("lacm")
    return estimator.fit(estimator.features(planted_observations(), catalog()), FitConfig())


def changed(job, **fields):
    return BenchmarkJob.model_validate(job.model_dump() | fields)


def with_rehearsal(request, **fields):
    return request.model_copy(update={"rehearsal": Rehearsal(**fields)})


def test_each_job_leaves_what_a_measured_one_leaves_and_says_that_it_was_simulated(
    rehearsed_group, rehearsed_request, store
):
    for job, outcome in zip(rehearsed_group.jobs, run_group(rehearsed_group, rehearsed_request), strict=True):
        assert outcome.status == "measured", outcome
        assert "+simulated" in outcome.message
        manifest = Manifest.model_validate_json(store.get(f"{outcome.prefix}/manifest.json"))
        assert (manifest.job, manifest.outcome) == (job, outcome)
        assert manifest.files.keys() == {"trace.jsonl.gz", "client.json", "engine.json"}
        first = gzip.decompress(store.get(f"{outcome.prefix}/trace.jsonl.gz")).splitlines()[0]
        assert json.loads(first)["vllm_version"] == "0.32.0+simulated"


def test_the_seconds_of_a_job_are_those_its_load_would_have_taken(rehearsed_group, rehearsed_request, store):
    for outcome in run_group(rehearsed_group, rehearsed_request):
        window = Manifest.model_validate_json(store.get(f"{outcome.prefix}/manifest.json")).window
        assert outcome.wall_s == (window.t_end_ns - window.t_start_ns) / 1e9


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_rehearsed_jobs_pass_the_data_gates_of_measured_ones(rehearsed_group, rehearsed_request, store, noise):
    request = with_rehearsal(rehearsed_request, latency_mode="roofline", step_noise=noise, slow_steps=noise / 5)
    jobs = [
        JobData(outcome=outcome, job=job)
        for outcome, job in zip(run_group(rehearsed_group, request), rehearsed_group.jobs, strict=True)
    ]
    known = measured_catalog(store, jobs, catalog())
    for data in jobs:
        checked, ingested = ingest_stored_job(store, data, known, request.run_id)
        assert checked.outcome.status == "measured", checked.gates
        assert checked.tokens_conserved
        assert set(ingested.observations["software_version"].to_pylist()) == {"vllm 0.32.0+simulated"}


def test_a_node_needs_no_catalogue_and_no_file_of_the_driver(rehearsed_group, rehearsed_request, store, fitted):
    request = with_rehearsal(rehearsed_request, coefficients=fitted)
    arrived = GroupRequest.model_validate_json(request.model_dump_json())
    for job, outcome in zip(rehearsed_group.jobs, run_group(rehearsed_group, arrived), strict=True):
        at_home = simulate_job(job, catalog(), coefficients=fitted)
        assert store.get(f"{outcome.prefix}/trace.jsonl.gz") == at_home["trace.jsonl.gz"]


def test_going_on_simulates_only_what_is_missing(rehearsed_group, rehearsed_request, store, monkeypatch):
    first = run_group(rehearsed_group, rehearsed_request)
    store.delete(f"{first[1].prefix}/manifest.json")
    asked = []
    simulate = simulated_engine.simulate_job
    monkeypatch.setattr(
        simulated_engine,
        "simulate_job",
        lambda job, *given, **named: asked.append(job) or simulate(job, *given, **named),
    )
    assert run_group(rehearsed_group, rehearsed_request) == first
    assert asked == [rehearsed_group.jobs[1]]
    assert run_group(rehearsed_group, rehearsed_request) == first
    assert len(asked) == 1


def test_a_job_that_cannot_be_simulated_fails_alone_with_its_reason(rehearsed_group, rehearsed_request, store):
    first, second, third = rehearsed_group.jobs
    chat = changed(second, workload=Workload(name="chat", dataset_name="sharegpt", dataset_path="s.json"))
    group = EngineGroup(group_id=rehearsed_group.group_id, jobs=(first, chat, third))
    outcomes = run_group(group, rehearsed_request)
    assert [outcome.reason for outcome in outcomes] == [None, "not_simulated", None]
    assert "sharegpt" in outcomes[1].message
    assert not store.exists(f"{outcomes[1].prefix}/manifest.json")
    assert json.loads(store.get(f"{outcomes[1].prefix}/failure.json"))["reason"] == "not_simulated"


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ({"data_parallel_size": 2}, "data_parallel_size=2: several ranks"),
        ({"kv_cache_memory_bytes": 2**20}, "kv_cache_memory_bytes=1048576 (0.00 GiB) is less than one sequence"),
    ],
)
def test_a_server_that_cannot_be_simulated_fails_its_jobs_with_the_reason(
    rehearsed_group, rehearsed_request, engine, says
):
    jobs = tuple(changed(job, engine=job.engine.model_dump() | engine) for job in rehearsed_group.jobs)
    outcomes = run_group(EngineGroup(group_id=jobs[0].group_id, jobs=jobs), rehearsed_request)
    assert [outcome.reason for outcome in outcomes] == ["not_simulated"] * 3
    assert all(says in outcome.message for outcome in outcomes)


def test_a_cpu_profile_is_simulated_with_the_catalogue_s_figures(rehearsed_group, rehearsed_request, store):
    known = catalog()
    engine = {"max_model_len": 512, "kv_cache_memory_bytes": 2**26, "dtype": "float32", "block_size": 32}
    load = Workload(name="w", random_input_len=64, random_output_len=16, num_prompts=12, max_concurrency=4)
    job = changed(rehearsed_group.first, model="srfa/tiny-dense", gpu="cpu-1t", engine=engine, workload=load)
    request = rehearsed_request.model_copy(
        update={"gpu": known.resolve_gpu(job.gpu), "hf_config": dict(known.model_configs[job.model])}
    )
    (outcome,) = run_group(EngineGroup(group_id=job.group_id, jobs=(job,)), request)
    assert outcome.status == "measured", outcome
    assert measured_catalog(store, [JobData(outcome=outcome, job=job)], known) is known


def test_each_job_has_noise_of_its_own_which_its_seed_repeats(rehearsed_group):
    rehearsal = Rehearsal(latency_mode="roofline", step_noise=0.1)
    noises = [noise_of(rehearsal, job) for job in rehearsed_group.jobs]
    assert len({noise.seed for noise in noises}) == 3
    assert noises == [noise_of(rehearsal, job) for job in rehearsed_group.jobs]
    other = rehearsal.model_copy(update={"noise_seed": 1})
    assert {noise_of(other, job).seed for job in rehearsed_group.jobs}.isdisjoint(noise.seed for noise in noises)
    assert noise_of(Rehearsal(latency_mode="roofline"), rehearsed_group.first) is None


def test_noise_moves_the_run(rehearsed_group, rehearsed_request):
    exact = run_group(rehearsed_group, rehearsed_request)
    noisy = with_rehearsal(rehearsed_request, latency_mode="roofline", slow_steps=1.0)
    slow = run_group(rehearsed_group, noisy.model_copy(update={"run_id": "rehearsal-r2"}))
    for before, after in zip(exact, slow, strict=True):
        assert after.wall_s > 2 * before.wall_s
