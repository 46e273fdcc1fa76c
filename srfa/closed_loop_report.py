"""What a closed loop found, as a file: measured jobs replayed through the simulator, ``closed_loop.json``.

Everything an error is computed from stands beside it. A percentage is ``100 x (predicted - measured) / measured``.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, FiniteFloat

from srfa.coefficients import Provenance
from srfa.errors import InputError
from srfa.files import read_document, write_text
from srfa.metrics import PERCENT
from srfa.request_report import RequestModelReport
from srfa.specs import Spec
from srfa.validation_report import ValidationReport

Metric = Literal["ttft", "tpot", "itl", "e2e", "throughput"]
METRICS: tuple[Metric, ...] = get_args(Metric)
CLOSED_LOOP_FILE = "closed_loop.json"


class Pair(Spec):
    """One figure as it was measured and as it was predicted, and the signed error in percent of the measured one."""

    measured: FiniteFloat
    predicted: FiniteFloat
    error_pct: FiniteFloat


class Compared(Spec):
    """One metric of a job.

    Parameters
    ----------
    n
        Requests (for ``itl``: gaps between tokens) that have the metric measured.
    p50, p90, p99
        None with fewer than 1, 10, 100 of them: a tail of fewer is one request's luck.
    median_ape_pct, bias_pct
        Request by request: median of the absolute relative error, mean of the signed one; None for ``itl`` and
        ``throughput``, whose parts have no partners.
    """

    n: int = Field(ge=0)
    mean: Pair
    p50: Pair | None = None
    p90: Pair | None = None
    p99: Pair | None = None
    median_ape_pct: FiniteFloat | None = None
    bias_pct: FiniteFloat | None = None


class Replay(Spec):
    """One measured job through the simulator.

    Parameters
    ----------
    split, held_out, n_train_steps
        The fold whose coefficients it was replayed on, and the steps they were fitted to. The split is empty where
        coefficients were given.
    seen
        The coefficients were fitted to this job's own steps: its errors prove nothing.
    configuration
        Model, GPU, parallelism and numbers, as :func:`srfa.estimators.blackbox.configuration_name` says them.
    view
        Whose times were compared: the client's, or the engine's where no client was recorded.
    longest_answer_tokens
        Output tokens of the request with the most; where they are one, the job has no TPOT to compare.
    without_outside
        Which models of what lies outside the steps could not be fitted to other jobs, and why: what they stand for was
        taken as nothing. Empty where there are all.
    step_time_us
        Mean step time of the same job on the same coefficients, each measured batch predicted by itself: where it is
        right and the replay is wrong, the loop is off and not the clock. None where it was not predicted.
    wall_ratio
        Wall time of the job's steps over their labels, where labels are CPU time: the host's other work, which no
        clock of labels can know. None where labels are wall time.
    n_steps
        Steps the engine took, and the simulator.
    metrics
        Microseconds; ``throughput`` is output tokens a second.
    """

    job_id: str
    split: str
    held_out: str
    n_train_steps: int = 0
    seen: bool = False
    configuration: str
    workload: str
    n_requests: int
    view: Literal["client", "engine"]
    longest_answer_tokens: int
    without_outside: str = ""
    step_time_us: Pair | None = None
    wall_ratio: Pair | None = None
    n_steps: Pair | None = None
    metrics: dict[Metric, Compared]

    @property
    def place(self) -> str:
        """What the job measured: configuration and workload."""
        return f"{self.configuration}, {self.workload or '(unnamed)'}"

    @property
    def loop_pct(self) -> float | None:
        """Signed error of E2E that step time and wall ratio do not explain; None where the step time is not known.

        ``100 x ((1 + e2e) / ((1 + step time) x (1 + wall ratio)) - 1)``: what is left when the job's own means of both
        are taken as measured.
        """
        e2e_pct = self.error_pct("e2e")
        if e2e_pct is None or self.step_time_us is None:
            return None
        known = (pair.error_pct for pair in (self.step_time_us, self.wall_ratio) if pair)
        clock = prod(1.0 + error_pct / PERCENT for error_pct in known)
        return PERCENT * ((1.0 + e2e_pct / PERCENT) / clock - 1.0) if clock > 0 else None

    def error_pct(self, metric: Metric) -> float | None:
        """Return the signed error of a metric's mean; None where the job does not have it."""
        return self.metrics[metric].mean.error_pct if metric in self.metrics else None


class NotReplayed(Spec):
    """A job that could not be replayed in a split (in none at all, where ``split`` is empty), and why."""

    job_id: str
    split: str = ""
    place: str = ""
    reason: str


class Pooled(Spec):
    """One metric over jobs, each counted once.

    Parameters
    ----------
    median_pct
        Median of the absolute errors of the jobs' means: the headline.
    bias_pct
        Mean of the signed ones.
    p50_pct, p90_pct, p99_pct
        Medians over the jobs that have the percentile; None where none has.
    request_pct
        Median over jobs of the median absolute error of single requests.
    """

    n_jobs: int
    median_pct: FiniteFloat
    bias_pct: FiniteFloat
    p50_pct: FiniteFloat | None = None
    p90_pct: FiniteFloat | None = None
    p99_pct: FiniteFloat | None = None
    request_pct: FiniteFloat | None = None


class Summary(Spec):
    """The metrics over the jobs of one split, or, where ``split`` is empty, over each job's nearest fold."""

    split: str
    n_jobs: int
    metrics: dict[Metric, Pooled]

    def median_pct(self, metric: Metric) -> float | None:
        """Return the median error of a metric; None where no job has it."""
        return self.metrics[metric].median_pct if metric in self.metrics else None


class NoiseFloor(Spec):
    """How far repeats of one cell lie apart: what no prediction can be better than.

    Parameters
    ----------
    n_cells, n_jobs
        Cells with at least two repeats, and their jobs.
    spread_pct
        By metric: a repeat's mean as the prediction of another's, median over all ordered pairs of a cell.
    """

    n_cells: int
    n_jobs: int
    spread_pct: dict[Metric, FiniteFloat]


class ClosedLoopReport(Spec):
    """Every measured job, replayed or with the reason why not.

    Parameters
    ----------
    impossible
        Why nothing could be replayed; empty where something could.
    headline
        Each job once, on the fold with the most steps that never saw it. None where nothing unseen was replayed.
    splits
        The same for each split, in the order of the limits file.
    noise
        None where no cell was measured twice.
    request_models
        The models of what lies outside the steps on held-out jobs; None where nothing was replayed.
    provenance
        Where the fits came from that the jobs were replayed on: the data that the folds were made of, or those of the
        given coefficients.
    """

    schema_version: Literal[1] = 1
    estimator: str
    impossible: str = ""
    headline: Summary | None = None
    splits: tuple[Summary, ...] = ()
    noise: NoiseFloor | None = None
    request_models: RequestModelReport | None = None
    replays: tuple[Replay, ...] = ()
    not_replayed: tuple[NotReplayed, ...] = ()
    provenance: Provenance = Provenance()

    @property
    def job_ids(self) -> frozenset[str]:
        """The jobs that were replayed at least once."""
        return frozenset(replay.job_id for replay in self.replays)

    @property
    def lost(self) -> tuple[NotReplayed, ...]:
        """One entry a job that was never replayed."""
        first = {one.job_id: one for one in reversed(self.not_replayed) if one.job_id not in self.job_ids}
        return tuple(sorted(first.values(), key=lambda one: one.job_id))

    def require_of(self, reports: Iterable[ValidationReport]) -> None:
        """Do nothing where all of these reports are of the data that the replays were made on.

        Raises
        ------
        InputError
            One of them is of other data, or one of the two files does not say of which it is.
        """
        for report in reports:
            if report.provenance.data != self.provenance.data:
                raise InputError(
                    f"the closed loop is of other data ({self.provenance.data_in_words}) than the report of"
                    f" {report.split} ({report.provenance.data_in_words}); run 'srfa replay DIR --split S --out"
                    " closed_loop.json' and 'srfa validate' on the same observation files"
                )


def nearest(replays: Iterable[Replay]) -> tuple[Replay, ...]:
    """Return one replay a job, by job id: of those that never saw it, the first with the most training steps."""
    found: dict[str, Replay] = {}
    for replay in replays:
        best = found.get(replay.job_id)
        if not replay.seen and (best is None or replay.n_train_steps > best.n_train_steps):
            found[replay.job_id] = replay
    return tuple(found[job_id] for job_id in sorted(found))


def write_closed_loop(report: ClosedLoopReport, path: Path) -> None:
    """Write ``closed_loop.json`` under a temporary name and rename it into place.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    write_text(path, report.model_dump_json(indent=1) + "\n")


def read_closed_loop(path: Path) -> ClosedLoopReport:
    """Read ``closed_loop.json``.

    Raises
    ------
    InputError
        The file is missing, is not JSON, or has an unknown, missing or malformed field.
    """
    return read_document(path, ClosedLoopReport, made_by="srfa replay --out")


def read_closed_loop_beside(report: Path) -> ClosedLoopReport | None:
    """Return the ``closed_loop.json`` in the folder of a ``report.json``; None where there is none.

    Raises
    ------
    InputError
        The file is not JSON, or has an unknown, missing or malformed field.
    """
    path = report.parent / CLOSED_LOOP_FILE
    return read_closed_loop(path) if path.exists() else None
