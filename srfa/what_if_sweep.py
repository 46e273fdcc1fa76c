"""The same question of many deployments: knobs swept, parallel sizes tried, in as many processes as wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Any, Final

from joblib import Parallel, delayed, parallel_config
from pydantic import ValidationError

from srfa.errors import SrfaError, UsageError
from srfa.feasibility import infeasible_server
from srfa.specs import EngineArgs
from srfa.what_if import Question
from srfa.what_if_report import CapacityCurve, Deployment, Refused
from srfa.wording import unknown

Ask = Callable[[Question], CapacityCurve]
Progress = Callable[[int, int], Any]
_VARIED: Final = ("model", "gpu")


def swept(deployment: Deployment, knobs: Sequence[tuple[str, Sequence[str]]]) -> Iterator[Deployment]:
    """Yield the deployment with every combination of the values of some knobs.

    Parameters
    ----------
    knobs
        Names of engine arguments, ``model`` or ``gpu``, each with its values as text.

    Raises
    ------
    UsageError
        An unknown knob, or a value that it cannot have.
    """
    names = [name for name, _ in knobs]
    for name in names:
        if name not in (*_VARIED, *EngineArgs.model_fields):
            raise UsageError(f"--sweep: {unknown('knob', name, (*_VARIED, *EngineArgs.model_fields))}")
    for values in product(*(choices for _, choices in knobs)):
        yield _with_knobs(deployment, dict(zip(names, values, strict=True)))


def parallelisms(question: Question) -> Iterator[Deployment]:
    """Yield the deployment with every tensor parallel size that starts on one node, for experts also spread over it."""
    model, gpu, deployment = question.model, question.gpu, question.deployment
    for ranks in (2**power for power in range(gpu.datasheet.gpus_per_node.bit_length())):
        for spread in (False, True) if model.is_moe and ranks > 1 else (False,):
            update = {"tensor_parallel_size": ranks, "enable_expert_parallel": spread}
            engine = deployment.engine.model_copy(update=update)
            if infeasible_server(engine, model, gpu) is None:
                yield deployment.model_copy(update={"engine": engine})


def answered(
    questions: Sequence[Question],
    ask: Ask,
    *,
    n_jobs: int = 1,
    progress: Progress | None = None,
) -> tuple[tuple[CapacityCurve, ...], tuple[Refused, ...]]:
    """Ask every question, in that many processes; what cannot be simulated is returned with its reason."""
    found: dict[int, CapacityCurve | Refused] = {}
    for number, answer in _each_answer(enumerate(questions), ask, min(n_jobs, len(questions))):
        found[number] = answer
        if progress:
            progress(len(found), len(questions))
    ordered = [found[number] for number in range(len(questions))]
    return (
        tuple(one for one in ordered if isinstance(one, CapacityCurve)),
        tuple(one for one in ordered if isinstance(one, Refused)),
    )


def _each_answer(
    numbered: Iterable[tuple[int, Question]], ask: Ask, n_workers: int
) -> Iterator[tuple[int, CapacityCurve | Refused]]:
    if n_workers < 2:
        yield from (_answer(number, question, ask) for number, question in numbered)
        return
    with parallel_config(backend="loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=n_workers, return_as="generator_unordered")
    yield from pool(delayed(_answer)(number, question, ask) for number, question in numbered)


def _answer(number: int, question: Question, ask: Ask) -> tuple[int, CapacityCurve | Refused]:
    try:
        return number, ask(question)
    except SrfaError as error:
        return number, Refused(deployment=question.deployment, reason=str(error))


def _with_knobs(deployment: Deployment, values: dict[str, str]) -> Deployment:
    places = {name: values[name] for name in _VARIED if name in values}
    arguments: dict[str, object] = {name: value for name, value in values.items() if name not in _VARIED}
    try:
        engine = EngineArgs.model_validate(deployment.engine.model_dump() | arguments)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--sweep: {first['loc'][0]}={first['input']!r}: {first['msg']}") from error
    return Deployment.model_validate({**deployment.model_dump(), **places, "engine": engine})
