"""The load generator: vLLM's bench client in a process that outlives its workloads and the servers that fail it."""

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srfa.traces.client import parse_client
from srfa.vllm.loadgen import command_line, load_window_ns
from tasks.tiny_models import write_tiny_model

REPOSITORY = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("completions_server", Path(__file__).with_name("completions_server.py"))
completions_server = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(completions_server)
PREFIX_REPETITION = {
    "dataset_name": "prefix_repetition",
    "prefix_repetition_prefix_len": 16,
    "prefix_repetition_suffix_len": 8,
    "prefix_repetition_num_prefixes": 2,
    "prefix_repetition_output_len": 3,
}
RANDOM = {"dataset_name": "random", "random_input_len": 12, "random_output_len": 4, "random_range_ratio": 0.5}


class Generator:
    """The process under test, spoken to as its owner does."""

    def __init__(self, folder):
        self.folder = folder
        self.log = (folder / "load.log").open("wb")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(REPOSITORY)}
        # A proxy that does not exist: a client that asked it for this machine would fail every request.
        environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "srfa.vllm.loadgen"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def ask(self, line):
        self.say(line)
        return self.hear()

    def run(self, url, name, **arguments):
        fixed = {"backend": "openai", "base_url": url, "endpoint": "/v1/completions", "model": "tiny"}
        tokenizer = {"tokenizer": str(self.folder / "model"), "ready_check_timeout_sec": 0}
        request = {"args": fixed | tokenizer | arguments, "result_path": str(self.folder / name)}
        return self.ask(json.dumps(request))

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()
        return self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    facts = json.loads((REPOSITORY / "models/srfa/tiny-dense/config.json").read_text())
    write_tiny_model(facts, folder / "model")
    process = Generator(folder)
    try:
        assert process.hear() == {"ready": True}
        yield process
    finally:
        status = process.close()
    assert status == 0


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.vllm
@pytest.mark.parametrize("dataset", [RANDOM, PREFIX_REPETITION], ids=lambda arguments: arguments["dataset_name"])
def test_ids_in_the_result_are_those_the_server_saw_with_their_tokens(generator, dataset):
    with completions_server.CompletionsServer() as server:
        answer = generator.run(server.url, "ids.json", num_prompts=8, request_id_prefix="job7-", seed=3, **dataset)
    document = json.loads((generator.folder / "ids.json").read_text())
    sent = {seen["id"]: (seen["prompt_tokens"], seen["max_tokens"]) for seen in server.seen}
    received = zip(
        document["request_ids"], zip(document["input_lens"], document["output_lens"], strict=True), strict=True
    )
    assert answer["ok"]
    assert (answer["num_prompts"], answer["completed"], answer["failed"]) == (8, 8, 0)
    assert sorted(document["request_ids"]) == [f"job7-{index}" for index in range(8)]
    assert sent == dict(received)


@pytest.mark.vllm
def test_requests_the_bench_leaves_out_are_neither_sent_nor_failed(generator):
    with completions_server.CompletionsServer() as server:
        answer = generator.run(server.url, "left_out.json", num_prompts=9, **PREFIX_REPETITION)
    assert (answer["num_prompts"], answer["sent"], answer["completed"], answer["failed"]) == (9, 8, 8, 0)
    assert len(server.seen) == 8


@pytest.mark.vllm
def test_a_request_rate_of_infinity_and_the_contract_of_the_client_file_hold(generator):
    with completions_server.CompletionsServer() as server:
        answer = generator.run(
            server.url, "contract.json", num_prompts=6, request_rate="inf", temperature=0.0, **RANDOM
        )
    client = parse_client(Path(answer["result_path"]).read_bytes())
    assert client.succeeded.all()
    assert client.request_ids == tuple(f"{answer['request_id_prefix']}{index}" for index in range(6))


@pytest.mark.vllm
def test_the_window_holds_the_load_and_nothing_before_it(generator):
    before_ns = time.monotonic_ns()
    with completions_server.CompletionsServer() as server:
        answer = generator.run(server.url, "window.json", num_prompts=5, max_concurrency=1, **RANDOM)
    after_ns = time.monotonic_ns()
    document = json.loads((generator.folder / "window.json").read_text())
    starts_ns = [start * 1e9 for start in document["start_times"]]
    ends_ns = [1e9 * sum(both) for both in zip(document["start_times"], document["latencies"], strict=True)]
    assert before_ns < answer["t_start_ns"] <= min(starts_ns) + 1000
    assert max(ends_ns) <= answer["t_end_ns"] < after_ns
    assert answer["t_end_ns"] - answer["t_start_ns"] == pytest.approx(document["duration"] * 1e9, rel=1e-6)


@pytest.mark.vllm
def test_each_workload_without_a_prefix_gets_one_of_its_own(generator):
    with completions_server.CompletionsServer() as server:
        answers = [generator.run(server.url, f"own{n}.json", num_prompts=2, **RANDOM) for n in range(2)]
    assert len({seen["id"] for seen in server.seen}) == 4
    assert answers[0]["request_id_prefix"] != answers[1]["request_id_prefix"]


@pytest.mark.vllm
def test_the_same_seed_sends_the_same_lengths(generator):
    lengths = []
    for name, seed in (("a.json", 1), ("b.json", 1), ("c.json", 2)):
        with completions_server.CompletionsServer() as server:
            generator.run(server.url, name, num_prompts=8, seed=seed, **RANDOM)
        lengths.append(json.loads((generator.folder / name).read_text())["input_lens"])
    assert lengths[0] == lengths[1] != lengths[2]


@pytest.mark.vllm
@pytest.mark.parametrize(("fail_every", "completed"), [(1, 0), (4, 6)])
def test_requests_answered_with_500_are_counted_as_failed(generator, fail_every, completed):
    with completions_server.CompletionsServer(fail_every) as server:
        answer = generator.run(server.url, "failing.json", num_prompts=8, **RANDOM)
    document = json.loads((generator.folder / "failing.json").read_text())
    assert (answer["ok"], answer["completed"], answer["failed"]) == (completed > 0, completed, 8 - completed)
    assert sum(bool(error) for error in document["errors"]) == 8 - completed


@pytest.mark.vllm
def test_a_refused_connection_fails_every_request_and_not_the_process(generator):
    answer = generator.run(f"http://127.0.0.1:{closed_port()}", "refused.json", num_prompts=3, **RANDOM)
    assert (answer["ok"], answer["completed"], answer["failed"]) == (False, 0, 3)
    assert "Connect" in json.loads((generator.folder / "refused.json").read_text())["errors"][0]
    assert answer["t_start_ns"] <= answer["t_end_ns"]


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no json", "JSONDecodeError"),
        ("[1]", "result_path=None: expected str"),
        ('{"result_path": "x.json", "args": 3}', "args=3: expected dict"),
        ('{"result_path": "x.json", "args": {"num_promts": 3}}', "unrecognized arguments: --num-promts"),
        ('{"result_path": "x.json", "args": {"num_prompts": "many"}}', "invalid int value: 'many'"),
        ('{"result_path": "x.json", "args": {"tokenizer": "no/such", "model": "no/such"}}', "OSError"),
    ],
)
def test_a_request_that_cannot_be_run_is_answered_with_why_and_the_next_one_runs(generator, line, said):
    answer = generator.ask(line)
    assert answer["ok"] is False
    assert said in answer["error"]
    with completions_server.CompletionsServer() as server:
        assert generator.run(server.url, "next.json", num_prompts=1, **RANDOM)["completed"] == 1


def test_a_window_without_starts_is_the_whole_call():
    assert load_window_ns({"duration": 1.0}, 5, 9) == (5, 9)


def test_a_window_never_leaves_the_call():
    assert load_window_ns({"start_times": [0.5e-9, 3e-9], "duration": 1.0}, 5, 9) == (5, 9)


def test_an_infinite_rate_is_written_as_the_bench_reads_it():
    assert list(command_line({"request_rate": math.inf, "profile": False, "goodput": ["ttft:9", "tpot:1"]})) == [
        "--request-rate",
        "inf",
        "--goodput",
        "ttft:9",
        "tpot:1",
    ]
