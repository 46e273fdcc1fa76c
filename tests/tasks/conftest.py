"""A group, a request and the settings that run it on the fake engine."""

from pathlib import Path

import psutil
import pytest

from srfa.specs import BenchmarkJob, Calibration, Datasheet, EngineArgs, EngineGroup, GpuSpec, Workload
from tasks.group import GroupRequest
from tasks.rehearsal import Rehearsal
from tasks.workplace import EngineSettings
from tests.processes import living
from tests.steps import catalog

FAKE = str(Path(__file__).with_name("fake_engine.py"))


@pytest.fixture
def children():
    """List the living processes started since the test began; other tests' servers may run beside it."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def started():
        family = psutil.Process().children(recursive=True)
        return living(child for child in family if child.pid not in before)

    return started


@pytest.fixture(scope="session")
def cpu():
    sheet = Datasheet(
        source="made up",
        kind="cpu",
        bf16_tflops=0.1,
        memory_gib=8,
        memory_bandwidth_tbps=0.02,
        link_gbps_per_direction=1,
        pcie_gbps=1,
        sm_count=1,
        boost_clock_mhz=2000,
        engine_env={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
        omp_threads=1,
    )
    figures = dict.fromkeys(Calibration.model_fields, 0.5) | {"source": "made up"}
    return GpuSpec(name="cpu-test", vendor_name="a CPU", datasheet=sheet, calibration=Calibration(**figures))


@pytest.fixture
def settings():
    return EngineSettings(
        serve_command=(FAKE, "serve"),
        load_command=(FAKE, "load"),
        probe_command=(FAKE, "probe"),
        ready_timeout_s=20,
        stop_grace_s=1,
        request_timeout_s=10,
        warmup_requests=1,
    )


@pytest.fixture
def job(cpu):
    return BenchmarkJob(
        model="srfa/tiny",
        gpu=cpu.name,
        engine=EngineArgs(max_num_seqs=8, dtype="half", enable_prefix_caching=True, enforce_eager=True),
        workload=Workload(name="short", random_input_len=16, random_output_len=4, num_prompts=5),
        engine_version="0.32.0",
    )


@pytest.fixture
def group(job):
    """Three jobs of one server; their workloads differ in the prompt's length."""
    longer = [job.workload.model_copy(update={"name": f"in{n}", "random_input_len": n}) for n in (32, 64)]
    jobs = (job, *(job.model_copy(update={"workload": workload}) for workload in longer))
    jobs = tuple(BenchmarkJob.model_validate(each.model_dump()) for each in jobs)
    return EngineGroup(group_id=job.group_id, jobs=jobs)


@pytest.fixture
def request_(cpu, settings, tmp_path):
    return GroupRequest(run_id="r1", store_uri=str(tmp_path / "store"), gpu=cpu, settings=settings)


@pytest.fixture(scope="session")
def rehearsed_group():
    """Three short jobs of one server on a GPU that is not here."""
    engine = EngineArgs(max_model_len=4096, max_num_batched_tokens=1024, tensor_parallel_size=2)
    jobs = tuple(
        BenchmarkJob(
            model="meta-llama/Llama-3.1-8B",
            gpu="h100-sxm-80gb",
            engine=engine,
            workload=Workload(
                name=f"in{length}", random_input_len=length, random_output_len=12, num_prompts=20, max_concurrency=4
            ),
            engine_version="0.32.0",
        )
        for length in (64, 300, 1200)
    )
    return EngineGroup(group_id=jobs[0].group_id, jobs=jobs)


@pytest.fixture
def rehearsed_request(rehearsed_group, tmp_path):
    """What a node is told of it: the engine is simulated by the roofline."""
    known, job = catalog(), rehearsed_group.first
    return GroupRequest(
        run_id="rehearsal-r1",
        store_uri=str(tmp_path / "store"),
        gpu=known.resolve_gpu(job.gpu),
        hf_config=dict(known.model_configs[job.model]),
        rehearsal=Rehearsal(latency_mode="roofline"),
    )
