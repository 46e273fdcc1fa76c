"""Load on a server by vLLM's own bench client, imported once for all workloads.

``python -m srfa.vllm.loadgen`` says ``{"ready": true}`` when ``vllm bench serve`` is imported (10 to 15 s), then
answers each line ``{"args": {...}, "result_path": "..."}`` on its input with one line on its output; whatever the bench
prints goes to the error stream. ``args`` are arguments of ``vllm bench serve`` by name (``num_prompts``). What goes
wrong with one workload is its answer's ``error``; the process lives on until its input ends.

The file at ``result_path`` is the bench's detailed result, plus ``request_ids``: the id each request carried in
``x-request-id``, ``<request_id_prefix><index>`` in the order in which the bench lists them.
"""

import argparse
import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

_NS_PER_S = 1000000000
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class WorkloadError(Exception):
    """A request that cannot be run as a workload."""


class Bench(Protocol):
    """The names of ``vllm.benchmarks.serve`` that are used."""

    add_cli_args: Any
    get_samples: Any
    main_async: Any


class LoadGenerator:
    """Runs workloads one after the other.

    Parameters
    ----------
    bench
        The module ``vllm.benchmarks.serve``; its ``get_samples`` is wrapped, so that every data set's requests carry
        ids (the bench gives none to ``prefix_repetition``, and shuffles what it numbered).
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._parser = bench_parser(bench)
        self._request_ids: list[str] = []
        self._get_samples = bench.get_samples
        bench.get_samples = self._named_samples

    def answer(self, line: str) -> dict[str, Any]:
        """Return what to say to one line of input; never raises for what a workload or its server does.

        Returns
        -------
        dict
            ``ok`` and, where the bench came to its end, ``t_start_ns`` and ``t_end_ns`` (CLOCK_MONOTONIC around the
            requests alone), ``num_prompts`` asked for, ``sent`` (``prefix_repetition`` sends equally many a prefix and
            leaves out the rest), ``completed``, ``failed``, ``request_id_prefix`` and ``result_path``.
            ``ok`` is False, with ``error``, where it did not, and also false without one where no request completed.
        """
        try:
            return self._run(json.loads(line))
        except (
            Exception,
            SystemExit,
        ) as error:  # the bench raises anything, SystemExit too: it is the answer, not our end
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        path = Path(_field(request, "result_path", str))
        # Every workload needs a prefix of its own: the trace of a server holds the requests of all of them.
        prefix = {"request_id_prefix": f"load-{uuid.uuid4().hex[:12]}-"}
        options = parse_bench_arguments(self._parser, prefix | _field(request, "args", dict))
        # Only what is returned is kept: the bench would write its file in place, and under a name of its own.
        options.save_detailed, options.save_result, options.append_result = True, False, False
        begin_ns = time.monotonic_ns()
        result = asyncio.run(self._bench.main_async(options))
        start_ns, end_ns = load_window_ns(result, begin_ns, time.monotonic_ns())
        result["request_ids"] = self._request_ids
        _write(path, result)
        return {
            "ok": result["completed"] > 0,
            "t_start_ns": start_ns,
            "t_end_ns": end_ns,
            "num_prompts": options.num_prompts,
            "sent": len(self._request_ids),
            "completed": result["completed"],
            "failed": len(self._request_ids) - result["completed"],
            "request_id_prefix": options.request_id_prefix,
            "result_path": str(path),
        }

    def _named_samples(self, options: argparse.Namespace, tokenizer: object) -> list[Any]:
        samples = [
            replace(sample, request_id=f"{options.request_id_prefix}{index}")
            for index, sample in enumerate(self._get_samples(options, tokenizer))
        ]
        self._request_ids = [sample.request_id for sample in samples]
        return samples


def bench_parser(bench: Bench) -> argparse.ArgumentParser:
    """Return the parser of ``vllm bench serve``; where it would end the process, it raises :class:`WorkloadError`."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    parser: argparse.ArgumentParser = FlexibleArgumentParser(prog="vllm bench serve", allow_abbrev=False)
    bench.add_cli_args(parser)
    parser.error = _refuse  # type: ignore[method-assign]
    return parser


def parse_bench_arguments(parser: argparse.ArgumentParser, arguments: Mapping[str, Any]) -> argparse.Namespace:
    """Return the bench's options for arguments by name.

    Raises
    ------
    WorkloadError
        An unknown argument, or a value that is not of its type; the text is the parser's.
    """
    return parser.parse_args(list(command_line(arguments)))


def command_line(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield arguments as the words of a command line; None and False stand for one that is not given.

    Examples
    --------
    >>> list(command_line({"num_prompts": 8, "ignore_eos": True, "seed": None, "extra_body": {"n": 1}}))
    ['--num-prompts', '8', '--ignore-eos', '--extra-body', '{"n": 1}']
    """
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            yield flag
        elif isinstance(value, list):
            yield from (flag, *map(str, value))
        elif value is not None and value is not False:
            yield from (flag, json.dumps(value) if isinstance(value, dict) else str(value))


def load_window_ns(result: Mapping[str, Any], begin_ns: int, end_ns: int) -> tuple[int, int]:
    """Return the first request's start and the load's end on CLOCK_MONOTONIC, within ``begin_ns`` to ``end_ns``.

    The bench notes starts with ``time.perf_counter``, which on Linux reads CLOCK_MONOTONIC, and the length of its load;
    between the two calls around it lie also loading the tokenizer and making up prompts.
    """
    starts = [start for start in result.get("start_times", ()) if start > 0]
    if not starts:
        return begin_ns, end_ns
    start_ns = max(begin_ns, int(min(starts) * _NS_PER_S))
    return start_ns, min(end_ns, start_ns + int(result["duration"] * _NS_PER_S) + 1)


def main() -> int:
    """Serve requests until the input ends; return the exit status."""
    answers = _claim_standard_output()
    _bypass_proxies(os.environ)
    from vllm.benchmarks import serve  # noqa: PLC0415

    generator = LoadGenerator(serve)
    _say(answers, {"ready": True})
    for line in sys.stdin:
        if line.strip():
            _say(answers, generator.answer(line))
    return 0


def _claim_standard_output() -> IO[str]:
    """Return a stream on our own output, and send what anybody else writes there, in C too, to the error stream."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _bypass_proxies(environment: "os._Environ[str]") -> None:
    """Keep the bench, which obeys proxy variables, from asking a proxy for this machine."""
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join([*filter(None, [environment.get(name)]), *_LOOPBACK])


def _say(answers: IO[str], document: Mapping[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


def _field(request: Mapping[str, Any], name: str, kind: type) -> Any:
    value = request.get(name) if isinstance(request, dict) else None
    if not isinstance(value, kind):
        raise WorkloadError(
            f"{name}={value!r}: expected {kind.__name__}, as in {{'args': {{..}}, 'result_path': '..'}}"
        )
    return value


def _refuse(message: str) -> NoReturn:
    raise WorkloadError(f"vllm bench serve: {message}")


def _write(path: Path, document: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
