"""The workload in the client's words, and what the client's answers are taken for."""

import json

import pytest

from srfa.errors import EngineError
from srfa.specs import BenchmarkJob, Workload
from tasks.load import LoadGenerator, bench_arguments
from tasks.workplace import Workplace

URL = "http://127.0.0.1:1"


@pytest.fixture
def answering(job, cpu, settings, tmp_path):
    """Return a load generator whose process gives the answer it is told to."""

    def make(answer, **changes):
        script = tmp_path / "client.py"
        script.write_text(
            "import json, sys\n"
            "print('noise'); print(json.dumps({'ready': True}), flush=True)\n"
            f"for line in sys.stdin: print({json.dumps(answer)!r}, flush=True)\n"
        )
        changed = settings.model_copy(update={"load_command": (str(script),), **changes})
        return LoadGenerator(Workplace(job, cpu, changed, folder=tmp_path / "place"))

    return make


def answer(completed, failed=0, **more):
    window = {"t_start_ns": 1, "t_end_ns": 2, "result_path": "none"}
    return {**window, "completed": completed, "failed": failed, **more}


def test_the_client_gets_vllm_s_words_and_no_infinity(job):
    words = bench_arguments(job, url=URL, tokenizer="/model")
    assert words["random_input_len"] == 16
    assert words["num_prompts"] == 5
    assert words["base_url"] == URL
    assert words["model"] == "srfa/tiny"
    assert words["tokenizer"] == "/model"
    assert words["request_rate"] == "inf"
    assert "max_concurrency" not in words, "None leaves the choice to the client"
    json.dumps(words, allow_nan=False)


def test_the_seed_of_the_job_is_the_seed_of_its_prompts(job):
    other = BenchmarkJob.model_validate(job.model_dump() | {"seed": 7})
    assert bench_arguments(other, url=URL, tokenizer="x")["seed"] == 7


def test_a_rate_is_sent_as_a_number(job):
    workload = Workload.model_validate(job.workload.model_dump() | {"request_rate": 2.5})
    job = BenchmarkJob.model_validate(job.model_dump() | {"workload": workload})
    assert bench_arguments(job, url=URL, tokenizer="x")["request_rate"] == 2.5


def test_enough_completed_requests_are_a_result(answering, job, tmp_path):
    with answering(answer(5)) as load:
        result = load.run(job, url=URL, result=tmp_path / "client.json")
    assert (result.completed, result.t_start_ns, result.t_end_ns) == (5, 1, 2)


@pytest.mark.parametrize(("completed", "limit", "passes"), [(4, 0.01, False), (4, 0.2, True), (0, 1.0, False)])
def test_too_many_failed_requests_are_no_measurement(answering, job, tmp_path, completed, limit, passes):
    with answering(answer(completed, 5 - completed), failed_ratio_limit=limit) as load:
        if passes:
            assert load.run(job, url=URL, result=tmp_path / "client.json").completed == completed
        else:
            with pytest.raises(EngineError, match=f"{completed} of 5 requests completed") as caught:
                load.run(job, url=URL, result=tmp_path / "client.json")
            assert caught.value.reason == "load_failed"


@pytest.mark.parametrize(
    ("document", "says"),
    [({"error": "unknown dataset"}, "unknown dataset"), ({"completed": 5}, "answers"), (answer(-1), "answers")],
)
def test_an_answer_that_is_none_is_a_failed_load(answering, job, tmp_path, document, says):
    with answering(document) as load, pytest.raises(EngineError, match=says) as caught:
        load.run(job, url=URL, result=tmp_path / "client.json")
    assert caught.value.reason == "load_failed"


def test_a_client_that_never_gets_ready_is_given_up(job, cpu, settings, tmp_path):
    script = tmp_path / "client.py"
    script.write_text("import time; time.sleep(60)")
    changed = settings.model_copy(update={"load_command": (str(script),), "ready_timeout_s": 0.5})
    load = LoadGenerator(Workplace(job, cpu, changed, folder=tmp_path / "place"))
    with load, pytest.raises(EngineError, match="not answered") as caught:
        load.run(job, url=URL, result=tmp_path / "client.json")
    assert caught.value.reason == "timeout"
