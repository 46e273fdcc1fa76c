import dataclasses
import json

import pytest

from srfa.errors import InputError, UsageError
from srfa.matrix import expand, load_matrix
from srfa.present import expansion_json
from srfa.simulation_questions import Given, asked, engine_arguments, parse_rates, parse_sweep, read_job, read_workload
from srfa.specs import BenchmarkJob, EngineArgs, Workload
from tests.steps import ROOT, catalog

JOB = BenchmarkJob(
    model="meta-llama/Llama-3.1-8B", gpu="l4-24gb", engine=EngineArgs(max_num_seqs=32),
    workload=Workload(name="w", num_prompts=20), seed=5, engine_version="0.32.0",
)  # fmt: skip


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"job_id": JOB.job_id, "group_id": JOB.group_id} | JOB.model_dump(mode="json")))
    return path


def test_a_job_is_read_as_it_was_expanded(tmp_path):
    expansion = expand(load_matrix(ROOT / "examples" / "local.yaml"), catalog())
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps(expansion_json(expansion)))
    wanted = expansion.jobs[3]
    assert read_job(path, catalog(), job_id=wanted.job_id) == wanted
    assert read_job(ROOT / "examples" / "local.yaml", catalog(), job_id=wanted.job_id) == wanted


def test_of_several_jobs_one_must_be_named(tmp_path):
    with pytest.raises(UsageError, match=r"holds \d+ jobs; name one with --job-id"):
        read_job(ROOT / "examples" / "local.yaml", catalog())
    with pytest.raises(InputError, match="holds no job abc"):
        read_job(ROOT / "examples" / "local.yaml", catalog(), job_id="abc")


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"jobs": []}', '{"model": "x"}'])
def test_a_file_without_a_job_is_refused_by_name(tmp_path, text):
    path = tmp_path / "job.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"job\.json"):
        read_job(path, catalog())


def test_what_the_call_names_goes_before_the_job(job_file):
    found = asked(Given(job=job_file, gpu="h100-sxm-80gb", engine={"max_num_seqs": 64}, num_prompts=7), catalog())
    assert (found.gpu, found.model, found.engine.max_num_seqs, found.seed) == ("h100-sxm-80gb", JOB.model, 64, 5)
    assert found.workload.num_prompts == 7


def test_a_seed_of_0_is_a_seed(job_file):
    assert asked(Given(job=job_file, seed=0), catalog()).seed == 0
    assert asked(Given(workload="num_prompts=1", model=JOB.model, gpu=JOB.gpu), catalog()).seed == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Given(workload="num_prompts=1", job_id="abc"), "--job-id abc chooses a job of a file"),
        (Given(requests=ROOT / "x.csv", num_prompts=500), r"--num-prompts 500: .*x\.csv says how many"),
    ],
)
def test_what_would_be_ignored_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        asked(dataclasses.replace(given, model=JOB.model, gpu=JOB.gpu), catalog())


def test_a_job_that_is_only_read_is_the_same_job(job_file):
    assert asked(Given(job=job_file), catalog()).job == JOB


@pytest.mark.parametrize("given", [Given(), Given(workload="num_prompts=1", requests=ROOT / "x.csv")])
def test_exactly_one_source_of_requests_is_wanted(given):
    with pytest.raises(UsageError, match="one of --job, --requests and --workload"):
        asked(given, catalog())


def test_a_workload_needs_a_model_and_a_gpu():
    with pytest.raises(UsageError, match="--model and --gpu"):
        asked(Given(workload="num_prompts=1", model=JOB.model), catalog())


def test_requests_of_a_file_are_no_job_to_rehearse(tmp_path):
    found = asked(Given(requests=tmp_path / "r.csv", model=JOB.model, gpu=JOB.gpu), catalog())
    with pytest.raises(UsageError, match="--trace-out rehearses a job"):
        _ = found.job


def test_words_and_a_file_of_them_are_the_same_workload(tmp_path):
    path = tmp_path / "words.yaml"
    path.write_text("random_input_len: 300\nrequest_rate: 2.5\n")
    assert read_workload(str(path)) == read_workload("random_input_len=300,request_rate=2.5,name=words")


@pytest.mark.parametrize(
    ("text", "said"),
    [("random_inputlen=3", "did you mean 'random_input_len'"), ("num_prompts=0", "num_prompts='0'")],
)
def test_a_wrong_word_is_named(text, said):
    with pytest.raises(UsageError, match=said):
        read_workload(text)


def test_engine_arguments_that_cannot_be_are_named():
    with pytest.raises(UsageError, match="max_num_seqs=0"):
        engine_arguments(EngineArgs(), {"max_num_seqs": 0})


def test_knobs_may_be_spelled_as_options():
    assert parse_sweep(["--max-num-seqs=8, 16"]) == [("max_num_seqs", ["8", "16"])]


@pytest.mark.parametrize("text", ["max_num_seqs", "max_num_seqs="])
def test_a_sweep_without_values_is_refused(text):
    with pytest.raises(UsageError, match="expected NAME=VALUE,VALUE"):
        parse_sweep([text])


@pytest.mark.parametrize("text", ["1,x", "0", "-1", "inf", "nan"])
def test_rates_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match="expected requests a second"):
        parse_rates(text)
