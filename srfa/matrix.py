"""``matrix.yaml``, the experiment: what it may say, and its expansion into jobs and skipped cells.

A cell is one point of ``models x gpus x parallelism x workloads x knobs``. Engine arguments are put together from
``defaults.engine``, then the cell's parallelism, then its knobs. Excluded and infeasible cells keep their reason.
Nothing of the file's order, spelling of names or list of rules enters a job's id.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from srfa.catalog import Catalog
from srfa.document import Document
from srfa.errors import MatrixError
from srfa.feasibility import infeasible_server, infeasible_workload
from srfa.matrix_language import CELL_FIELDS, Axes, Matrix, axis_points, check, given, load_matrix
from srfa.specs import BenchmarkJob, EngineArgs, GpuSpec, ModelSpec, Skipped, Workload

__all__ = ["Expansion", "Matrix", "expand", "load_matrix"]


@dataclass(frozen=True, slots=True)
class Expansion:
    """What a matrix means: the jobs to run, and the cells that are not, each with its reason."""

    jobs: tuple[BenchmarkJob, ...]
    skipped: tuple[Skipped, ...]


def expand(matrix: Matrix, catalog: Catalog) -> Expansion:
    """Turn a matrix into jobs and skipped cells, every feasible cell once.

    Equal cells collapse. A cell that a rule excludes and ``include`` names is a job.

    Raises
    ------
    MatrixError
        A model, GPU or workload that is not known, or no job at all.
    """
    check(matrix, catalog)
    expander = _Expander(matrix, catalog)
    cells = {cell.key: (cell, expander.reason(cell)) for cell in expander.product()}
    cells |= {cell.key: (cell, expander.impossible(cell)) for cell in expander.included()}
    jobs, skipped = [], []
    for cell, reason in cells.values():
        for job in expander.jobs(cell):
            if reason is None:
                jobs.append(job)
            else:
                skipped.append(Skipped(job=job, reason=reason))
    if not jobs:
        raise MatrixError(_nothing_left(matrix.document, skipped))
    return Expansion(tuple(jobs), tuple(skipped))


@dataclass(frozen=True, slots=True)
class _Cell:
    """One point of the experiment; ``engine`` is one object for all cells with equal arguments."""

    model: ModelSpec
    gpu: GpuSpec
    workload: Workload
    engine: EngineArgs

    @property
    def key(self) -> tuple[str, str, str, int]:
        return (self.model.name, self.gpu.name, self.workload.name, id(self.engine))


@dataclass(frozen=True, slots=True)
class _Rule:
    """One entry of ``exclude``: values by field, and the reason it gives."""

    fields: tuple[tuple[str, tuple[object, ...]], ...]
    reason: str

    def matches(self, cell: _Cell) -> bool:
        return all(_field_of(cell, name) in values for name, values in self.fields)


@dataclass(slots=True)
class _Expander:
    """Makes cells of a matrix whose findings are known to be none; keeps what was worked out before."""

    matrix: Matrix
    catalog: Catalog
    _engines: dict[tuple[tuple[str, object], ...], EngineArgs] = field(default_factory=dict)
    _interned: dict[EngineArgs, EngineArgs] = field(default_factory=dict)
    _servers: dict[tuple[str, str, int], str | None] = field(default_factory=dict)
    _models: dict[str, ModelSpec] = field(default_factory=dict)
    _gpus: dict[str, GpuSpec] = field(default_factory=dict)
    _rules: tuple[_Rule, ...] = ()

    def __post_init__(self) -> None:
        rules = enumerate(self.matrix.exclude)
        self._rules = tuple(_rule(self.matrix.document, self.catalog, index, entry) for index, entry in rules)

    def product(self) -> Iterator[_Cell]:
        """Yield the cells of the axes, in the order of the file."""
        if self.matrix.axes is None:
            return
        start = given(self.matrix.defaults.engine)
        for parts in itertools.product(*_dimensions(self.matrix, self.matrix.axes)):
            yield self._cell(start.copy(), parts)

    def included(self) -> Iterator[_Cell]:
        """Yield the cells of ``include``."""
        for entry in self.matrix.include:
            fields = {name: value for name, value in given(entry).items() if name != "why"}
            yield self._cell(given(self.matrix.defaults.engine), (fields,))

    def jobs(self, cell: _Cell) -> Iterator[BenchmarkJob]:
        """Yield the measurements of one cell: its seeds times its repeats."""
        defaults = self.matrix.defaults
        for seed, repeat in itertools.product(dict.fromkeys(defaults.seeds), range(defaults.repeats)):
            yield BenchmarkJob(
                model=cell.model.name,
                gpu=cell.gpu.name,
                engine=cell.engine,
                workload=cell.workload,
                seed=seed,
                repeat=repeat,
                engine_version=defaults.engine_version,
                image=defaults.image,
            )

    def reason(self, cell: _Cell) -> str | None:
        """Return why a cell of the product is skipped: the first rule that matches, else what makes it impossible."""
        excluded = next((rule.reason for rule in self._rules if rule.matches(cell)), None)
        return excluded or self.impossible(cell)

    def impossible(self, cell: _Cell) -> str | None:
        server = (cell.model.name, cell.gpu.name, id(cell.engine))
        if server not in self._servers:
            self._servers[server] = infeasible_server(cell.engine, cell.model, cell.gpu)
        return self._servers[server] or infeasible_workload(cell.workload, cell.engine, cell.model)

    def _cell(self, fields: dict[str, Any], parts: Sequence[Mapping[str, object]]) -> _Cell:
        for part in parts:
            fields.update(part)
        model, gpu, workload = (fields.pop(name) for name in CELL_FIELDS)
        if model not in self._models:
            self._models[model] = self.catalog.resolve_model(model)
        if gpu not in self._gpus:
            self._gpus[gpu] = self.catalog.resolve_gpu(gpu)
        return _Cell(
            model=self._models[model],
            gpu=self._gpus[gpu],
            workload=self.matrix.workloads[workload],
            engine=self._engine(fields),
        )

    def _engine(self, arguments: dict[str, object]) -> EngineArgs:
        """Validate each distinct combination once, and return one object for all that are equal."""
        key = tuple(arguments.items())
        if key not in self._engines:
            engine = EngineArgs.model_validate(arguments, strict=True)
            self._engines[key] = self._interned.setdefault(engine, engine)
        return self._engines[key]


def _dimensions(matrix: Matrix, axes: Axes) -> list[list[dict[str, object]]]:
    """Return the axes that vary independently, each as the fields it sets at each of its points."""
    free = axis_points(matrix, axes)
    zipped = [[free.pop(name) for name in group] for group in matrix.zip]
    together = [[_merged(points) for points in zip(*group, strict=True)] for group in zipped]
    return [*free.values(), *together]


def _merged(parts: Sequence[Mapping[str, object]]) -> dict[str, object]:
    return {key: value for part in parts for key, value in part.items()}


def _rule(document: Document, catalog: Catalog, index: int, entry: Mapping[str, tuple[object, ...]]) -> _Rule:
    resolve = {"model": lambda n: catalog.resolve_model(n).name, "gpu": lambda n: catalog.resolve_gpu(n).name}
    fields = tuple(
        (name, tuple(resolve[name](str(value)) for value in values) if name in resolve else values)
        for name, values in entry.items()
        if name != "why"
    )
    why = "".join(f": {reason}" for reason in entry.get("why", ()))
    return _Rule(fields, f"excluded by rule {index + 1} ({document.place(('exclude', index))}){why}")


def _field_of(cell: _Cell, name: str) -> object:
    return getattr(cell, name).name if name in CELL_FIELDS else getattr(cell.engine, name)


def _nothing_left(document: Document, skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return f"{document.name}: the expansion is empty: there are neither axes nor included cells; add axes"
    reason, count = Counter(cell.reason for cell in skipped).most_common(1)[0]
    place = document.place(("axes",))
    return f"{place}: the expansion is empty: all {len(skipped)} cells are skipped, {count} because: {reason}"
