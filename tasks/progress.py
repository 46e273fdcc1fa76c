"""What a campaign shows while it runs: one line a job in the log of the flow run, as soon as the store has it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from srfa.errors import StoreError
from srfa.specs import BenchmarkJob, EngineGroup, JobOutcome
from tasks.evidence import MANIFEST, Manifest
from tasks.store import TraceStore

_POLL_S: Final = 5.0
Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


def run_log() -> Log:
    """Return the log of the flow or task run, whose lines Prefect shows; outside of one, the log called ``srfa``."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("srfa")


class JobBoard:
    """Says once of every job how it ended, with its place among all; safe to use from several threads.

    Parameters
    ----------
    jobs
        All jobs of the campaign.
    log
        Where the lines go.
    """

    def __init__(self, jobs: Iterable[BenchmarkJob], log: Log) -> None:
        self._names = {job.job_id: job_name(job) for job in jobs}
        self._log = log
        self._told: set[str] = set()
        self._servers: set[str] = set()
        self._lock = threading.Lock()

    def start(self, group: EngineGroup) -> None:
        """Say that a group has been handed to the cluster."""
        first = group.first
        where = f"{first.model} on {first.gpu}"
        self._log.info("group %s: %s, %d job(s), waits for its place", group.group_id, where, len(group.jobs))

    def tell(self, outcomes: Iterable[JobOutcome]) -> None:
        """Say how jobs ended, leaving out those that were told before."""
        with self._lock:
            for outcome in outcomes:
                if outcome.job_id not in self._told and outcome.job_id in self._names:
                    self._told.add(outcome.job_id)
                    self._tell(outcome)

    def _tell(self, outcome: JobOutcome) -> None:
        if outcome.server_start_s and outcome.group_id not in self._servers:
            self._servers.add(outcome.group_id)
            self._log.info("group %s: server was ready after %.0f s", outcome.group_id, outcome.server_start_s)
        place = f"job {len(self._told)} of {len(self._names)}: {self._names[outcome.job_id]}"
        if outcome.status == "measured":
            steps = f"{outcome.n_steps} steps, {outcome.n_requests} requests"
            self._log.info("%s: %s in %.1f s", place, steps, outcome.wall_s)
        else:
            self._log.warning("%s: failed (%s): %s", place, outcome.reason, outcome.message)


def job_name(job: BenchmarkJob) -> str:
    """Return what people call a job: id, model, GPU, what is special about its server, workload."""
    server = server_text(job)
    return f"{job.job_id} {job.model} on {job.gpu}{f' {server}' if server else ''}, {job.workload.name}"


def server_text(job: BenchmarkJob) -> str:
    """Return what sets a server apart from others of its model and GPU, in short.

    >>> from srfa.specs import EngineArgs, Workload
    >>> engine = EngineArgs(tensor_parallel_size=4, max_num_batched_tokens=512)
    >>> job = BenchmarkJob(model="m", gpu="g", engine=engine, workload=Workload(name="w"), engine_version="0.32.0")
    >>> server_text(job)
    'TP4 chunk 512'
    """
    engine = job.engine
    sizes = (
        ("TP", engine.tensor_parallel_size),
        ("DP", engine.data_parallel_size),
        ("EP", engine.expert_parallel_size),
    )
    words = [f"{short}{size}" for short, size in sizes if size > 1]
    words += [f"chunk {engine.max_num_batched_tokens}"] if engine.max_num_batched_tokens else []
    words += [f"offload {engine.cpu_offload_gb:g} GB"] if engine.cpu_offload_gb else []
    return " ".join(words)


@contextmanager
def watched(store: TraceStore, run_id: str, board: JobBoard, *, poll_s: float = _POLL_S) -> Iterator[None]:
    """Tell the board of every job whose manifest appears in the store, while the block runs.

    Nodes write to the store and to nothing else, so this works wherever they are. A store that does not answer is asked
    again; the jobs' outcomes do not depend on this.
    """
    end = threading.Event()
    thread = threading.Thread(target=_watch, args=(store, run_id, board, end, poll_s), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _watch(store: TraceStore, run_id: str, board: JobBoard, end: threading.Event, poll_s: float) -> None:
    known: set[str] = set()
    while not end.wait(poll_s):
        try:
            new = [key for key in store.list(f"traces/run_id={run_id}/") if key.endswith(f"/{MANIFEST}")]
            for key in set(new) - known:
                board.tell([Manifest.model_validate_json(store.get(key)).outcome])
                known.add(key)
        except (StoreError, ValueError) as error:
            logging.getLogger("srfa").debug("progress of run %s cannot be read: %s", run_id, error)
