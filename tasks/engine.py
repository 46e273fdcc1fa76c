"""A real vLLM server for one engine group: started under a supervisor, really ready, and what was asked for."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from srfa.errors import EngineError
from tasks.engine_arguments import mismatches, resolved_arguments, serve_flags
from tasks.process import SupervisedProcess
from tasks.workplace import EngineSettings, Workplace

SCHEDULER: Final = "srfa.vllm.scheduler.TracingScheduler"
_OK: Final = 200
_POLL_S: Final = 0.2
_LAST_WORDS_S: Final = 5.0
"""How long a server that lost its engine may take to end."""
_WARMUP_PROMPT: Final = (5,) * 64
_WARMUP_TOKENS: Final = 8


class VllmEngine:
    """A vLLM server; inside the ``with`` block it is ready, warm and verified, after it nothing of it is left.

    Parameters
    ----------
    workplace
        Job, GPU, settings and folder. GPU and CPU differ in the environment only.

    Raises
    ------
    EngineError
        On entering, with reason ``port_in_use``, ``engine_start`` (it ended; with the last lines of its log),
        ``not_ready`` or ``config_mismatch``.

    Attributes
    ----------
    requested, resolved
        Engine arguments by vLLM's names: as flags were given, and as the server shows them.
    server_info
        The answer to ``/server_info``, whole.
    start_s
        Seconds from the start of the process until it was ready.
    """

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._settings = workplace.settings
        self._process: SupervisedProcess | None = None
        self._client = httpx.Client(timeout=self._settings.request_timeout_s, trust_env=False)
        self.trace = workplace.folder / "trace.jsonl"
        self.log = workplace.folder / "server.log"
        self.requested = workplace.job.engine.model_dump(exclude_none=True)
        self.resolved: dict[str, object] = {}
        self.server_info: dict[str, Any] = {}
        self.command: tuple[str, ...] = ()
        self.url = ""
        self.start_s = 0.0

    def __enter__(self) -> Self:
        begin = time.monotonic()
        try:
            self._start()
            self._wait_until_ready()
            self._verify()
            self.start_s = time.monotonic() - begin
            self._warm_up()
        except BaseException:  # an interrupt too must not leave a server
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server, ``SIGTERM`` then ``SIGKILL``; stopping twice is harmless."""
        self._client.close()
        if self._process is not None:
            self._process.stop()

    def reset_caches(self) -> None:
        """Empty the prefix cache, so that a job does not find what another left.

        Raises
        ------
        EngineError
            ``engine_died``, or ``load_failed`` where blocks are still held after the request timeout.
        """
        deadline = time.monotonic() + self._settings.request_timeout_s
        while not self._reset():
            self.check_alive()
            if time.monotonic() > deadline:
                raise EngineError(
                    "load_failed", f"{self._name()}: its prefix cache cannot be reset: requests still hold it"
                )
            time.sleep(_POLL_S)

    def check_alive(self) -> None:
        """Raise ``EngineError`` with reason ``engine_died`` and the last log lines where the server has ended."""
        status = None if self._process is None else self._process.exit_status()
        if status is not None:
            raise EngineError("engine_died", self._epitaph(status, "while it was in use"))

    def check_usable(self) -> None:
        """Raise ``EngineError`` with reason ``engine_died`` where the server has ended, or has lost its engine core."""
        self.check_alive()
        if self._process is None or self._reaches(self._is_healthy):
            return
        status = self._process.wait(_LAST_WORDS_S)
        if status is not None or not self._reaches(self._is_healthy):
            raise EngineError("engine_died", self._epitaph(status, "while it was in use"))

    def log_tail(self) -> str:
        """Return the last lines of the server's log."""
        return "" if self._process is None else self._process.log_tail()

    def traces(self) -> list[Path]:
        """Return the trace of each data-parallel rank, the first rank's first."""
        others = sorted(self.trace.parent.glob(f"{self.trace.stem}.dp*{self.trace.suffix}"))
        return [self.trace, *others]

    def _start(self) -> None:
        host, port = self._settings.host, _port(self._settings)
        self.url = f"http://{host}:{port}"
        job = self._workplace.job
        flags = ("--served-model-name", job.model, "--host", host, "--port", str(port), "--scheduler-cls", SCHEDULER)
        source = self._workplace.model_source
        self.command = (*self._settings.serve_command, source, *flags, *serve_flags(job.engine))
        self._process = self._workplace.start(self.command, self.log.name, SRFA_TRACE_PATH=str(self.trace))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._settings.ready_timeout_s
        for stage, reached in (
            ("answers /health", self._is_healthy),
            ("lists the model", self._lists_model),
            ("completes a request", self._completes),
        ):
            self._wait_for(stage, reached, deadline)

    def _wait_for(self, stage: str, reached: Callable[[], bool], deadline: float) -> None:
        while not self._reaches(reached):
            status = None if self._process is None else self._process.exit_status()
            if status is not None:
                taken = "address already in use" in self.log_tail().lower()
                raise EngineError(
                    "port_in_use" if taken else "engine_start", self._epitaph(status, "before it was ready")
                )
            if time.monotonic() > deadline:
                limit = f"within ready_timeout_s={self._settings.ready_timeout_s:g}"
                tail = f"raise the limit or read its log:\n{self.log_tail()}"
                raise EngineError("not_ready", f"{self._name()} never {stage} {limit}; {tail}")
            time.sleep(_POLL_S)

    @staticmethod
    def _reaches(reached: Callable[[], bool]) -> bool:
        try:
            return reached()
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return False  # not listening yet, or not answering what a ready server answers

    def _is_healthy(self) -> bool:
        return self._client.get(f"{self.url}/health", timeout=5).status_code == _OK

    def _lists_model(self) -> bool:
        models = self._client.get(f"{self.url}/v1/models", timeout=5).json()["data"]
        return any(model["id"] == self._workplace.job.model for model in models)

    def _completes(self) -> bool:
        return bool(self._complete(1)["usage"]["completion_tokens"] == 1)

    def _complete(self, n_tokens: int) -> Any:
        body = {
            "model": self._workplace.job.model,
            "prompt": list(_WARMUP_PROMPT),
            "max_tokens": n_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        return self._client.post(f"{self.url}/v1/completions", json=body).raise_for_status().json()

    def _verify(self) -> None:
        """Compare what the server resolved with what was asked for, and see that it is traced."""
        try:
            answer = self._client.get(f"{self.url}/server_info", params={"config_format": "json"}).raise_for_status()
            self.server_info = answer.json()
            config = self.server_info["vllm_config"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            remedy = "vLLM shows it with VLLM_SERVER_DEV_MODE=1; use the tested release"
            raise EngineError(
                "config_mismatch", f"{self._name()} does not show its configuration ({error}); {remedy}"
            ) from error
        self.resolved = resolved_arguments(config)
        wrong = mismatches(self._workplace.job.engine, self.resolved)
        if wrong:
            remedy = "ask for a value the engine can keep, or leave the argument out of the matrix"
            raise EngineError("config_mismatch", f"{self._name()}: {'; '.join(map(str, wrong))}; {remedy}")
        if not self.trace.is_file() or not self.trace.stat().st_size:
            raise EngineError("config_mismatch", f"{self._name()} writes no trace: {SCHEDULER} is not its scheduler")

    def _warm_up(self) -> None:
        for _ in range(self._settings.warmup_requests):
            try:
                self._complete(_WARMUP_TOKENS)
            except httpx.HTTPError as error:
                self.check_alive()
                raise EngineError("not_ready", f"{self._name()} fails a warm-up request: {error}") from error

    def _reset(self) -> bool:
        with suppress(httpx.HTTPError, ValueError, KeyError):
            answer = self._client.post(f"{self.url}/reset_prefix_cache")
            return answer.status_code == _OK and bool(answer.json()["success"])
        return False

    def _epitaph(self, status: int | None, when: str) -> str:
        end = "is not healthy" if status is None else f"ended with status {status}"
        return f"{self._name()} {end} {when}; the last lines of its log:\n{self.log_tail()}"

    def _name(self) -> str:
        return f"the engine of {self._workplace.job.model} on {self._workplace.gpu.name} ({self.url})"


def _port(settings: EngineSettings) -> int:
    """Return the port to serve on, after seeing that nobody else does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            text = (
                f"{where} cannot be served on ({error.strerror}); end what listens there, or set port=0 for a free one"
            )
            raise EngineError("port_in_use", text) from error
        return int(probe.getsockname()[1])
