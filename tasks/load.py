"""Load on a server: the bench client that ships with vLLM, kept alive for all workloads of an engine group."""

from __future__ import annotations

import json
import math
import os
import select
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srfa.errors import EngineError
from srfa.specs import BenchmarkJob
from tasks.process import SupervisedProcess
from tasks.workplace import Workplace

_READ_BYTES: Final = 65_536
_CHECK_S: Final = 1.0


class LoadResult(BaseModel):
    """What the load generator answers when a workload has ended.

    Parameters
    ----------
    t_start_ns, t_end_ns
        CLOCK_MONOTONIC before the first request was sent and after the last answer came.
    completed, failed
        Requests.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    t_start_ns: int
    t_end_ns: int
    completed: int = Field(ge=0)
    failed: int = Field(ge=0)
    result_path: Path
    error: str | None = None


def bench_arguments(job: BenchmarkJob, *, url: str, tokenizer: str) -> dict[str, object]:
    """Return a workload as arguments of ``vllm bench serve``, by its own names; what is None is left out."""
    words = job.workload.model_dump(exclude_none=True, exclude={"name"})
    if math.isinf(job.workload.request_rate):
        words["request_rate"] = "inf"  # JSON knows no infinity
    return words | {
        "backend": "openai",
        "base_url": url,
        "endpoint": "/v1/completions",
        "model": job.model,
        "tokenizer": tokenizer,
        "seed": job.seed,
        "ready_check_timeout_sec": 0,
    }


class LoadGenerator:
    """A client process that runs one workload after the other; it starts at once and imports while the server does.

    Parameters
    ----------
    workplace
        Settings, environment and folder; the client's log is ``load.log`` there.
    """

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._settings = workplace.settings
        self._process: SupervisedProcess | None = None
        self._ready = False
        self._unread = b""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the client."""
        if self._process is not None:
            self._process.stop()
        self._process, self._ready, self._unread = None, False, b""

    def run(self, job: BenchmarkJob, *, url: str, result: Path) -> LoadResult:
        """Send the job's workload to ``url`` and wait for its end.

        Returns
        -------
        LoadResult
            With enough completed requests; the client's own result lies at ``result``.

        Raises
        ------
        EngineError
            ``load_failed``: the client ended, refused, or too many requests failed. ``timeout``: no end within
            ``load_timeout_s``; the client is then stopped, and the next run starts another.
        """
        process = self._started()
        arguments = bench_arguments(job, url=url, tokenizer=self._workplace.model_source)
        request = json.dumps({"args": arguments, "result_path": str(result)}, allow_nan=False)
        try:
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error
        answer = self._answer(self._settings.load_timeout_s)
        return self._checked(answer, job)

    def _start(self) -> SupervisedProcess:
        self._process = self._workplace.start(self._settings.load_command, "load.log", talks=True)
        return self._process

    def _started(self) -> SupervisedProcess:
        process = self._process or self._start()
        if not self._ready:
            self._ready = bool(self._answer(self._settings.ready_timeout_s).get("ready"))
        return process

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        """Return the next line that is a JSON object; other output of the client is passed over."""
        deadline = time.monotonic() + timeout_s
        while True:
            line, newline, rest = self._unread.partition(b"\n")
            if not newline:
                self._read(deadline, timeout_s)
                continue
            self._unread = rest
            if line.startswith(b"{"):
                document: dict[str, Any] = json.loads(line)
                return document

    def _read(self, deadline: float, timeout_s: float) -> None:
        process = self._process
        if process is None:
            raise self._ended()
        descriptor = process.stdout.fileno()
        ready, _, _ = select.select([descriptor], [], [], _CHECK_S)
        if ready:
            new = os.read(descriptor, _READ_BYTES)
            if not new:
                raise self._ended()
            self._unread += new
        elif time.monotonic() > deadline:
            tail = process.log_tail()
            self.stop()
            raise EngineError(
                "timeout", f"the load generator has not answered for {timeout_s:g} s; its log ends:\n{tail}"
            )

    def _ended(self) -> EngineError:
        process = self._process
        status = None if process is None else process.wait(self._settings.stop_grace_s)
        tail = "" if process is None else process.log_tail()
        self.stop()
        return EngineError("load_failed", f"the load generator ended with status {status}; its log ends:\n{tail}")

    def _checked(self, answer: dict[str, Any], job: BenchmarkJob) -> LoadResult:
        name = f"workload {job.workload.name} of job {job.job_id}"
        if answer.get("error"):
            raise EngineError("load_failed", f"{name}: the load generator refuses: {answer['error']}")
        try:
            result = LoadResult.model_validate(answer)
        except ValidationError as error:
            raise EngineError("load_failed", f"{name}: the load generator answers {answer!r:.200}: {error}") from error
        asked = job.workload.num_prompts
        missing = max(asked - result.completed, 0)
        if not result.completed or missing / asked > self._settings.failed_ratio_limit:
            limit = f"{self._settings.failed_ratio_limit:.0%} may fail"
            raise EngineError(
                "load_failed",
                f"{name}: {result.completed} of {asked} requests completed, {limit}; {_first_error(result)}",
            )
        return result


def _first_error(result: LoadResult) -> str:
    """Return what the client noted of the first request that failed."""
    try:
        errors = json.loads(result.result_path.read_bytes()).get("errors", [])
    except (OSError, ValueError):
        return "the client kept no result"
    return f"the first error: {next((error for error in errors if error), 'none noted')!s:.300}"
