"""What ``srfa simulate`` is asked, from files and words: jobs, workloads, engine arguments by vLLM's names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from srfa.catalog import Catalog
from srfa.document import read_yaml
from srfa.errors import InputError, UsageError
from srfa.matrix import expand, load_matrix
from srfa.specs import BenchmarkJob, EngineArgs, Spec, Workload
from srfa.wording import explain

Words = TypeVar("Words", bound=Spec)
ENGINE_VERSION: Final = "0.32.0"
"""The vLLM whose scheduler is simulated."""
_YAML: Final = frozenset({".yaml", ".yml"})
_NOT_OF_A_JOB: Final = ("job_id", "group_id")
_ONE_WORD: Final = re.compile(r"[A-Za-z_]+=")


@dataclass(frozen=True, slots=True)
class Given:
    """What one call names; what it leaves out is empty.

    Parameters
    ----------
    job, requests, workload
        What is to be served: a job's file, requests with their times, or the words of a workload.
    job_id
        Which job of its file.
    model, gpu, engine
        What it is to be served on; before those of the job.
    num_prompts, seed
        Of the workload; before those of the job.
    """

    job: Path | None = None
    job_id: str = ""
    requests: Path | None = None
    workload: str = ""
    model: str = ""
    gpu: str = ""
    engine: Mapping[str, object] = field(default_factory=dict)
    num_prompts: int | None = None
    seed: int | None = None
    engine_version: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be simulated; either ``workload`` or ``requests`` is None."""

    model: str
    gpu: str
    engine: EngineArgs
    workload: Workload | None
    requests: Path | None
    seed: int
    engine_version: str

    @property
    def job(self) -> BenchmarkJob:
        """As a job of a campaign.

        Raises
        ------
        UsageError
            Its requests came from a file, which no job has.
        """
        if self.workload is None:
            raise UsageError("--trace-out rehearses a job, whose load is a workload; give --job or --workload")
        return BenchmarkJob(
            model=self.model,
            gpu=self.gpu,
            engine=self.engine,
            workload=self.workload,
            seed=self.seed,
            engine_version=self.engine_version,
        )


def asked(given: Given, catalog: Catalog) -> Asked:
    """Put together what is asked; what the call names goes before what its job says.

    Raises
    ------
    UsageError
        Not exactly one of job, requests and workload is given, the model or GPU is missing, or something is named that
        belongs to another source of requests.
    InputError
        A file cannot be used, or a name is unknown.
    """
    if sum(map(bool, (given.job, given.requests, given.workload))) != 1:
        raise UsageError("give one of --job, --requests and --workload: what is to be served")
    if given.job_id and not given.job:
        raise UsageError(f"--job-id {given.job_id} chooses a job of a file; give that file with --job, or leave it out")
    if given.num_prompts and given.requests:
        raise UsageError(
            f"--num-prompts {given.num_prompts}: {given.requests} says how many requests there are; leave one out"
        )
    base = read_job(given.job, catalog, job_id=given.job_id) if given.job else None
    if base is None and not (given.model and given.gpu):
        raise UsageError("give --model and --gpu: what it is to be served on")
    words = base.workload if base else read_workload(given.workload) if given.workload else None
    if words and given.num_prompts:
        words = words.model_copy(update={"num_prompts": given.num_prompts})
    return Asked(
        model=catalog.resolve_model(given.model or (base.model if base else "")).name,
        gpu=catalog.resolve_gpu(given.gpu or (base.gpu if base else "")).name,
        engine=engine_arguments(base.engine if base else EngineArgs(), given.engine),
        workload=words,
        requests=given.requests,
        seed=given.seed if given.seed is not None else base.seed if base else 0,
        engine_version=given.engine_version or (base.engine_version if base else ENGINE_VERSION),
    )


def read_job(path: Path, catalog: Catalog, *, job_id: str = "") -> BenchmarkJob:
    """Return a job of a file: JSON as ``srfa expand --json`` prints it (all of it, or one job), or a matrix (YAML).

    Parameters
    ----------
    job_id
        Which one, where there are several.

    Raises
    ------
    InputError
        The file cannot be read or holds no such job.
    UsageError
        There are several and none is named.
    """
    jobs = {job.job_id: job for job in _jobs(path, catalog)}
    if not job_id and len(jobs) == 1:
        return next(iter(jobs.values()))
    if job_id in jobs:
        return jobs[job_id]
    some = ", ".join(list(jobs)[:4])
    if job_id:
        raise InputError(f"{path}: holds no job {job_id}, but {len(jobs)} others ({some}, ..)")
    raise UsageError(f"{path}: holds {len(jobs)} jobs; name one with --job-id, such as {some}")


def read_workload(text: str) -> Workload:
    """Return a workload from words (``random_input_len=512,num_prompts=300``) or from a file of them (YAML or JSON).

    Raises
    ------
    InputError, UsageError
        The file cannot be read, or a word is unknown or has an impossible value.

    Examples
    --------
    >>> read_workload("random_input_len=512,request_rate=4").request_rate
    4.0
    """
    if _ONE_WORD.match(text):
        words = dict(part.partition("=")[::2] for part in text.split(","))
        return _words(Workload, {"name": "words"} | words, "--workload")
    path = Path(text)
    found = read_yaml(path, InputError).data
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: expected words of a workload, for example random_input_len: 512")
    return _words(Workload, {"name": path.stem} | dict(found), str(path))


def engine_arguments(base: EngineArgs, given: Mapping[str, object]) -> EngineArgs:
    """Return engine arguments with those of the command line in their places.

    Raises
    ------
    UsageError
        A value that the argument cannot have.
    """
    return _words(EngineArgs, base.model_dump() | dict(given), "engine arguments")


def parse_sweep(texts: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Read ``NAME=VALUE,VALUE`` options.

    Raises
    ------
    UsageError
        One has another form.

    Examples
    --------
    >>> parse_sweep(["max_num_seqs=64,128"])
    [('max_num_seqs', ['64', '128'])]
    """
    found = []
    for text in texts:
        name, _, values = text.partition("=")
        choices = [value.strip() for value in values.split(",") if value.strip()]
        if not choices:
            raise UsageError(f"--sweep {text!r}: expected NAME=VALUE,VALUE, for example max_num_seqs=64,128,256")
        found.append((name.strip().removeprefix("--").replace("-", "_"), choices))
    return found


def parse_rates(text: str) -> tuple[float, ...]:
    """Read ``1,2,4``: requests a second.

    Raises
    ------
    UsageError
        One is no number above 0.
    """
    try:
        rates = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        rates = (0.0,)
    if not all(0 < rate < float("inf") for rate in rates):
        raise UsageError(f"--rates {text!r}: expected requests a second with commas between, for example 1,2,4")
    return rates


def _jobs(path: Path, catalog: Catalog) -> list[BenchmarkJob]:
    if path.suffix in _YAML:
        return list(expand(load_matrix(path), catalog).jobs)
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a job's file") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); write one with 'srfa expand --json'") from error
    listed = document.get("jobs", [document]) if isinstance(document, dict) else document
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed) or not listed:
        raise InputError(f"{path}: holds no job; write one with 'srfa expand --json'")
    return [_job(one, path) for one in listed]


def _job(fields: Mapping[str, object], path: Path) -> BenchmarkJob:
    own = {name: value for name, value in fields.items() if name not in _NOT_OF_A_JOB}
    try:
        return BenchmarkJob.model_validate(own)
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {explain(item, BenchmarkJob)}" for item in error.errors())) from error


def _words(form: type[Words], values: Mapping[str, object], where: str) -> Words:
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join(f"{where}: {explain(item, form)}" for item in error.errors())) from error
