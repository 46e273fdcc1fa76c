from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srfa.errors import DataInvalidError, InputError
from srfa.schema import JOBS, OBSERVATIONS, STEPS
from srfa.traces.plugin import parse_trace
from srfa.traces.steps import steps_table
from srfa.traces.tables import (
    canonical_dtype,
    jobs_table,
    observations_table,
    read_table,
    resolved_arguments,
    write_table,
)


@pytest.fixture
def records(toy):
    return parse_trace(toy([(100, 4), (40, 6)]).lines())


@pytest.fixture
def tables(records, job):
    return jobs_table(job, records.engine, run_id="r1"), steps_table(records, job)


def test_resolved_values_win_over_requested_ones(records, make_job):
    job = make_job({"max_num_seqs": 999, "dtype": "auto", "tensor_parallel_size": 4})
    table = jobs_table(
        job,
        records.engine,
        run_id="r1",
        reported={"dtype": "torch.bfloat16", "max_num_seqs": 77, "quantization": None, "unheard_of": 1},
        environment={"driver": "570.1"},
    )
    assert table.schema.equals(JOBS, check_metadata=True)
    row = table.to_pylist()[0]
    assert (row["max_num_seqs"], row["tensor_parallel_size"], row["dtype"]) == (8, 1, "bfloat16")
    assert (row["source"], row["software_version"]) == ("srfa-plugin", "vllm 0.32.0")
    assert (row["job_id"], row["run_id"], row["num_gpu_blocks"]) == (job.job_id, "r1", 64)
    assert json.loads(row["environment"]) == {"driver": "570.1"}
    assert row["quantization"] is None


def test_how_requests_were_scheduled_is_kept_and_null_where_the_trace_is_older(records, job):
    names = ("scheduling_policy", "long_prefill_token_threshold", "watermark")
    facts = dict(zip(names, ("priority", 32, 0.25), strict=True))
    older = jobs_table(job, records.engine, run_id="r").to_pylist()[0]
    newer = jobs_table(job, records.engine.model_copy(update=facts), run_id="r").to_pylist()[0]
    assert {name: newer[name] for name in names} == facts
    assert [older[name] for name in names] == ["fcfs", None, None]
    assert not set(names) & set(OBSERVATIONS.names)


def test_a_closed_loop_clients_seats_are_kept_and_null_where_it_had_no_limit(records, make_job):
    closed, opened = make_job(max_concurrency=7), make_job()
    assert jobs_table(closed, records.engine, run_id="r")["max_concurrency"].to_pylist() == [7]
    assert jobs_table(opened, records.engine, run_id="r")["max_concurrency"].to_pylist() == [None]


def test_a_clients_rate_is_kept_beside_its_seats_and_null_where_it_had_none(records, make_job):
    jobs = make_job(max_concurrency=8, request_rate=16.0), make_job(max_concurrency=8)
    rows = [jobs_table(job, records.engine, run_id="r").to_pylist()[0] for job in jobs]
    assert [(row["max_concurrency"], row["request_rate"]) for row in rows] == [(8, 16.0), (8, None)]
    assert "request_rate" not in OBSERVATIONS.names


def test_what_nobody_reports_stays_as_requested(records, make_job):
    resolved = resolved_arguments(make_job({"gpu_memory_utilization": 0.8, "dtype": "half"}).engine, records.engine)
    assert (resolved.gpu_memory_utilization, resolved.dtype) == (0.8, "float16")


def test_a_block_count_asked_for_is_compared_with_the_blocks_there_are(records, make_job):
    resolved = resolved_arguments(make_job({"num_gpu_blocks_override": 128}).engine, records.engine)
    assert resolved.num_gpu_blocks_override == 64


def test_an_impossible_reported_value_is_refused_by_name(records, job):
    with pytest.raises(DataInvalidError, match=r"engine\.json: seed='many': "):
        resolved_arguments(job.engine, records.engine, {"seed": "many"})


@pytest.mark.parametrize(("name", "canonical"), [("torch.float16", "float16"), ("half", "float16"), ("auto", "auto")])
def test_dtypes_have_one_name(name, canonical):
    assert canonical_dtype(name) == canonical


def test_experts_spread_over_the_ranks_that_ran(records, make_job):
    engine = records.engine.model_copy(update={"tensor_parallel_size": 4, "enable_expert_parallel": True})
    row = jobs_table(make_job(), engine, run_id="r").to_pylist()[0]
    assert (row["gpu_count"], row["expert_parallel_size"]) == (4, 4)


def test_a_table_survives_the_file(tables, tmp_path):
    path = tmp_path / "steps" / "part-0.parquet"
    write_table(tables[1], path)
    found = read_table(path, STEPS)
    assert found.to_pylist() == tables[1].to_pylist()
    assert found.schema.metadata == STEPS.metadata
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert [entry.name for entry in path.parent.iterdir()] == ["part-0.parquet"]


def test_a_partitioned_folder_adds_no_column(tables, tmp_path):
    path = tmp_path / "run_id=r1" / "job_id=j1" / "part-0.parquet"
    write_table(tables[1], path)
    assert read_table(path).column_names == STEPS.names


def test_a_failed_write_leaves_the_earlier_file(tables, tmp_path):
    path = tmp_path / "part-0.parquet"
    write_table(tables[1], path)
    unwritable = pa.table({"x": pa.array([None], pa.month_day_nano_interval())}, metadata=STEPS.metadata)
    before = path.read_bytes()
    with pytest.raises(pa.ArrowNotImplementedError):
        write_table(unwritable, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["part-0.parquet"]


def test_a_table_without_a_version_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="no schema_version"):
        write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")


def test_unusable_files_are_refused_with_a_remedy(tables, tmp_path):
    garbage, other, newer = (tmp_path / f"{name}.parquet" for name in ("garbage", "other", "newer"))
    garbage.write_bytes(b"PAR1 no")
    write_table(tables[0], other)
    write_table(tables[1].replace_schema_metadata({"schema_version": "2"}), newer)
    for path, complaint in (
        (tmp_path / "absent.parquet", "cannot be read"),
        (garbage, "cannot be read"),
        (other, "columns differ"),
        (newer, "schema_version 2, this srfa reads 1"),
    ):
        with pytest.raises(InputError, match=rf"{path.name}: {complaint}.*ingest the traces again"):
            read_table(path, STEPS)


def test_observations_are_the_valid_steps_with_their_jobs_columns(tables, make_gpu):
    jobs, steps = tables
    observed = observations_table(jobs, steps, {"toy-gpu": make_gpu()})
    assert observed.schema.equals(OBSERVATIONS, check_metadata=True)
    assert observed["step_id"].to_pylist() == steps.filter(steps["valid"])["step_id"].to_pylist()
    assert set(observed["max_num_batched_tokens"].to_pylist()) == {64}
    assert observed["step_time_us"].equals(observed["step_wall_time_us"])
    assert set(observed["step_time_method"].to_pylist()) == {"output"}


def test_context_sums_are_those_of_the_lists(tables, make_gpu):
    observed = observations_table(*tables, {"toy-gpu": make_gpu()})
    for row in observed.to_pylist():
        assert row["sum_prefill_context_tokens"] == sum(row["prefill_context_tokens"])
        assert row["sum_decode_context_tokens"] == sum(row["decode_context_tokens"])


def test_a_cpu_profile_is_labelled_with_cpu_time_and_keeps_the_wall(tables, make_gpu):
    jobs, steps = tables
    observed = observations_table(jobs, steps, {"toy-gpu": make_gpu("step_cpu_time")})
    used = steps.filter(steps["valid"])
    assert observed["step_time_us"].to_pylist() == used["step_cpu_time_us"].to_pylist()
    assert observed["step_wall_time_us"].to_pylist() == used["step_time_us"].to_pylist()
    assert set(observed["step_time_method"].to_pylist()) == {"cpu_time"}


def test_steps_without_their_cpu_time_are_left_out(tables, make_gpu):
    jobs, steps = tables
    times = steps["step_cpu_time_us"].to_numpy().copy()
    times[[1, 2]] = np.nan, 0.0
    index = steps.schema.get_field_index("step_cpu_time_us")
    steps = steps.set_column(index, "step_cpu_time_us", pa.array(times, from_pandas=True))
    observed = observations_table(jobs, steps, {"toy-gpu": make_gpu("step_cpu_time")})
    assert observed["step_id"].to_pylist() == steps["step_id"].to_pylist()[3:]


def test_a_cpu_profile_without_any_cpu_time_is_refused(tables, make_gpu):
    jobs, steps = tables
    index = steps.schema.get_field_index("step_cpu_time_us")
    steps = steps.set_column(index, "step_cpu_time_us", pa.nulls(steps.num_rows, pa.float64()))
    with pytest.raises(DataInvalidError, match="no step has a CPU time, but the label of toy-gpu is step_cpu_time"):
        observations_table(jobs, steps, {"toy-gpu": make_gpu("step_cpu_time")})


def test_several_jobs_keep_their_own_columns(records, make_job, make_gpu):
    slow, fast = make_job({"dtype": "float32"}), make_job({"dtype": "bfloat16"})
    jobs = pa.concat_tables([jobs_table(job, records.engine, run_id="r") for job in (slow, fast)])
    steps = pa.concat_tables([steps_table(records, job) for job in (fast, slow)])
    observed = observations_table(jobs, steps, {"toy-gpu": make_gpu()})
    dtypes = dict(zip(observed["job_id"].to_pylist(), observed["dtype"].to_pylist(), strict=True))
    assert dtypes == {slow.job_id: "float32", fast.job_id: "bfloat16"}


def test_steps_of_an_unknown_job_and_jobs_on_an_unknown_gpu_are_refused(tables, make_gpu):
    jobs, steps = tables
    with pytest.raises(DataInvalidError, match="without a row in the jobs table"):
        observations_table(jobs.slice(0, 0), steps, {"toy-gpu": make_gpu()})
    with pytest.raises(DataInvalidError, match=r"without a datasheet: \['toy-gpu'\]"):
        observations_table(jobs, steps, {})


def test_no_step_gives_no_observation(tables, make_gpu):
    jobs, steps = tables
    observed = observations_table(jobs, steps.slice(0, 0), {"toy-gpu": make_gpu("step_cpu_time")})
    assert observed.num_rows == 0
    assert observed.schema.equals(OBSERVATIONS)
