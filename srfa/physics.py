"""Does a fit obey physics where nobody measured? Rules on random batches, each with its worst case.

A validation asks how far predictions are from measurements; it cannot see a coefficient that is wrong where the data
are thin. These rules need no measurements: a step with more work is not faster, no step undercuts its roofline, and
another GPU in the server helps by no more than its share. They are asked of ``n_batches`` random batches on the
configurations the fit saw, and of one dense and one mixture-of-experts model beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from srfa.batches import MAX_CONTEXT_TOKENS, Batches, batches_on, log_uniform, prefill_batches, ragged, random_batches
from srfa.catalog import Catalog
from srfa.coefficients import Coefficients
from srfa.errors import UnknownConfigurationError
from srfa.estimators.protocol import Estimator
from srfa.observations import Configuration, Observations
from srfa.physics_places import Pair, configurations_of, place_words, size_pairs, tp_pairs
from srfa.physics_report import PhysicsFinding, PhysicsReport, PhysicsRule
from srfa.ragged import FloatArray, IntArray, Ragged
from srfa.roofline import Place, floor_us, per_step, places
from srfa.schema import SPEED_OF_LIGHT_MARGIN
from srfa.units import BYTES_PER_US_PER_GBPS

TOLERANCE = 1e-9
"""A step with more work may be faster by this share: rounding, nothing else."""
SHORTEST_STEP_US = 1e-3
"""No step takes less than a nanosecond: what a rule on a sign says with a tolerance."""
TP_SPEEDUP_LIMIT = 2.2
"""A doubled TP halves a GPU's share of the matrices at best (rounding up to whole heads and tiles only adds), and
latencies stay; a tenth is room for what a fit learns of efficiency by shape."""
TP_SLOWDOWN_LIMIT = 1.3
"""A large prefill keeps every GPU busy, so halving the work must outweigh what smaller matrices lose; beside this
factor the slower server is granted the time of its all-reduces at a third of the link's rate."""
LINK_SHARE = 1.0 / 3.0
_LARGE_PREFILL_TOKENS = (4096, 16_384)
_SIDE_SHARE = 0.2
"""Pairs for a rule on TP or model size, as a share of the batches: fewer dimensions to cover."""

Predict = Callable[[Observations], FloatArray]


def check_physics(
    estimator: Estimator,
    coefficients: Coefficients,
    catalog: Catalog,
    *,
    n_batches: int = 10_000,
    seed: int = 0,
    configurations: Sequence[Configuration] | None = None,
) -> PhysicsReport:
    """Ask a fitted estimator for random batches and compare its answers with physics.

    Parameters
    ----------
    n_batches
        Random batches; each is asked for four times (as it is, with more prefill tokens, more context, one decode
        more), and a fifth as many pairs of parallel sizes and of models.
    configurations
        Where to draw batches. None: the GPUs and models of the coefficients' provenance at every tensor- and
        expert-parallel size that divides the model, and one dense and one mixture-of-experts model of the catalogue.

    Returns
    -------
    PhysicsReport
        One finding a rule. Rules on TP and model size that leave what the estimator was fitted to are not asked of
        one that refuses unknown configurations, and say so.

    Raises
    ------
    CatalogError
        The catalogue lacks a GPU or model of the fit.
    """
    where = tuple(configurations or configurations_of(coefficients, catalog))
    rng = np.random.default_rng(seed)

    def predict(observations: Observations) -> FloatArray:
        return estimator.predict(coefficients, estimator.features(observations, catalog))

    n_pairs = max(1, round(_SIDE_SHARE * n_batches))
    findings = [
        *_on_batches(predict, where, catalog, n_batches, rng),
        *_on_tp(predict, tp_pairs(where, catalog), catalog, n_pairs, rng),
        _on_size(predict, size_pairs(where, catalog), n_pairs, rng),
    ]
    return PhysicsReport(
        estimator=coefficients.estimator,
        coefficients_sha256=coefficients.learned_sha256,
        n_batches=n_batches,
        seed=seed,
        configurations=tuple(place_words(one) for one in where),
        findings=tuple(findings),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """Batches on their configurations: what a finding describes its worst case from."""

    batches: Batches
    configurations: tuple[Configuration, ...]
    index: IntArray

    def words(self, row: int) -> str:
        return f"{place_words(self.configurations[self.index[row]])}: {self.batches.words(row)}"


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule with its limit, and what its finding is said to be about."""

    rule: PhysicsRule
    what: str
    limit: float
    largest: bool = False
    """True where the limit is the most the value may be, else it is the least."""

    def judge(self, values: FloatArray, asked: _Asked, rows: IntArray | None = None) -> PhysicsFinding:
        """Return the finding on ``values``, one each of the asked ``rows`` (all where None)."""
        if values.size == 0:
            return self.unasked("no batch to ask about")
        holds = values <= self.limit if self.largest else values >= self.limit  # a NaN holds neither
        worst = int(np.argmax(values) if self.largest else np.argmin(values))  # and is the first of both
        words = asked.words(worst if rows is None else int(rows[worst]))
        n_broken, value = int(np.sum(~holds)), float(values[worst])
        verdict = "holds" if n_broken == 0 else f"BROKEN by {n_broken}"
        bound = "most" if self.largest else "least"
        return PhysicsFinding(
            rule=self.rule,
            n_checked=len(values),
            n_broken=n_broken,
            value=value,
            limit=self.limit,
            worst=words,
            passed=n_broken == 0,
            sentence=f"{self.rule} {verdict} of {len(values)}: {self.what} {value:.4g}, at {bound} {self.limit:.4g}"
            f" allowed; worst: {words}",
        )

    def unasked(self, reason: str, *, passed: bool = True) -> PhysicsFinding:
        """Return the finding where the rule could not be asked."""
        return PhysicsFinding(
            rule=self.rule,
            n_checked=0,
            n_broken=0,
            value=None,
            limit=self.limit,
            worst="",
            passed=passed,
            sentence=f"{self.rule} was not asked: {reason}",
        )


_POSITIVE = _Rule("positive_and_finite", "shortest step in us", SHORTEST_STEP_US)
_FLOOR = _Rule("roofline_floor", "predicted over roofline floor", SPEED_OF_LIGHT_MARGIN)
_GROWS = "relative change of a step with"
_MONOTONE = (
    _Rule("monotone_in_prefill_tokens", f"{_GROWS} more prefill tokens", -TOLERANCE),
    _Rule("monotone_in_context", f"{_GROWS} more context", -TOLERANCE),
    _Rule("monotone_in_batch", f"{_GROWS} one decode more", -TOLERANCE),
)
_SPEEDUP = _Rule("tp_speedup", "speed-up by doubling TP", TP_SPEEDUP_LIMIT, largest=True)
_SLOWDOWN = _Rule("tp_slowdown", "large prefill at doubled TP over TP", TP_SLOWDOWN_LIMIT, largest=True)
_SIZE = _Rule("monotone_in_model_size", f"{_GROWS} every dimension larger", -TOLERANCE)


def _on_batches(
    predict: Predict, where: tuple[Configuration, ...], catalog: Catalog, n_batches: int, rng: np.random.Generator
) -> Iterator[PhysicsFinding]:
    """Judge single steps, and steps with more work than themselves."""
    batches = random_batches(n_batches, rng)
    index = rng.integers(0, len(where), n_batches)
    grown = [_longer_prefill(batches, rng), _longer_context(batches, rng), _one_decode_more(batches, rng)]
    try:
        observations = batches_on(_joined([batches, *grown]), where, np.tile(index, 1 + len(grown)))
        predicted = predict(observations)
    except UnknownConfigurationError as error:
        for rule in (_POSITIVE, _FLOOR, *_MONOTONE):
            yield rule.unasked(f"{error}; name configurations the fit knows", passed=False)
        return
    asked = _Asked(_joined([batches, *grown]), where, np.tile(index, 1 + len(grown)))
    finite = np.where(np.isfinite(predicted), predicted, np.nan)
    yield _POSITIVE.judge(finite, asked)
    yield _FLOOR.judge(finite / floor_us(observations, catalog), asked)
    base, *more = finite.reshape(1 + len(grown), n_batches)
    has_prefill = np.flatnonzero(batches.prefill_new.lengths > 0)
    every = np.arange(n_batches)
    for rule, rows, times in zip(_MONOTONE, (has_prefill, every, every), more, strict=True):
        yield rule.judge(times[rows] / base[rows] - 1.0, asked, rows)


def _on_tp(
    predict: Predict, pairs: tuple[Pair, ...], catalog: Catalog, n_pairs: int, rng: np.random.Generator
) -> Iterator[PhysicsFinding]:
    """Judge how much faster, and how much slower, a step is on twice as many GPUs."""
    if not pairs:
        for rule in (_SPEEDUP, _SLOWDOWN):
            yield rule.unasked("no model of the fit runs on two tensor-parallel sizes, one twice the other")
        return
    index = rng.integers(0, len(pairs), n_pairs)
    any_batch = random_batches(n_pairs, rng)
    large = prefill_batches(np.rint(log_uniform(rng, *_LARGE_PREFILL_TOKENS, n_pairs)))
    try:
        one, two, asked, _ = _both(predict, pairs, index, any_batch)
        yield _SPEEDUP.judge(one / two, asked)
        one, two, asked, wide = _both(predict, pairs, index, large)
    except UnknownConfigurationError as error:
        yield _SPEEDUP.unasked(str(error))
        yield _SLOWDOWN.unasked(str(error))
        return
    yield _SLOWDOWN.judge((two - _all_reduces_us(wide, catalog)) / one, asked)


def _on_size(predict: Predict, pairs: tuple[Pair, ...], n_pairs: int, rng: np.random.Generator) -> PhysicsFinding:
    """Judge whether a model with every dimension larger is slower."""
    if not pairs:
        return _SIZE.unasked("the catalogue has no two dense models of which one is larger in every dimension")
    index = rng.integers(0, len(pairs), n_pairs)
    try:
        small, large, asked, _ = _both(predict, pairs, index, random_batches(n_pairs, rng))
    except UnknownConfigurationError as error:
        return _SIZE.unasked(str(error))
    return _SIZE.judge(large / small - 1.0, asked)


def _both(
    predict: Predict, pairs: tuple[Pair, ...], index: IntArray, batches: Batches
) -> tuple[FloatArray, FloatArray, _Asked, Observations]:
    """Predict the same batches on both sides of their pair; described, and returned, on the second side."""
    less, more = tuple(pair.less for pair in pairs), tuple(pair.more for pair in pairs)
    wide = batches_on(batches, more, index)
    return predict(batches_on(batches, less, index)), predict(wide), _Asked(batches, more, index), wide


def _all_reduces_us(observations: Observations, catalog: Catalog) -> FloatArray:
    """Return the ring all-reduces of a step: latencies, and 2 (TP - 1) / TP of 16-bit rows at a third of the link."""

    def us_per_token(place: Place) -> float:
        size = place.configuration.tensor_parallel_size
        moved = 2.0 * (size - 1) / size * place.model.hidden_size * 2.0 * _all_reduces(place)
        return moved / (LINK_SHARE * place.gpu.datasheet.link_gbps_per_direction * BYTES_PER_US_PER_GBPS)

    def latency_us(place: Place) -> float:
        return place.gpu.calibration.allreduce_latency_us * _all_reduces(place)

    where = places(observations, catalog)
    tokens = observations.numbers("prefill_tokens") + observations.numbers("decode_tokens")
    return tokens * per_step(observations, where, us_per_token) + per_step(observations, where, latency_us)


def _all_reduces(place: Place) -> int:
    """Two a layer, one after the embedding."""
    return 2 * place.model.num_hidden_layers + 1


def _longer_prefill(batches: Batches, rng: np.random.Generator) -> Batches:
    """Add tokens to the first prefill of each batch that has one."""
    lists = batches.prefill_new
    first = lists.offsets[:-1][lists.lengths > 0]
    longer = lists.values.copy()
    longer[first] += np.ceil(log_uniform(rng, 1, 1024, len(first)))
    return Batches(Ragged(longer, lists.offsets), batches.prefill_context, batches.decode_context)


def _longer_context(batches: Batches, rng: np.random.Generator) -> Batches:
    """Add the same number of tokens to every context of a batch, of prefills and of decodes."""
    more = np.ceil(log_uniform(rng, 1, MAX_CONTEXT_TOKENS, batches.n_batches))

    def longer(lists: Ragged) -> Ragged:
        return Ragged(lists.values + np.repeat(more, lists.lengths), lists.offsets)

    return Batches(batches.prefill_new, longer(batches.prefill_context), longer(batches.decode_context))


def _one_decode_more(batches: Batches, rng: np.random.Generator) -> Batches:
    """Append one decoding request to every batch."""
    lists = batches.decode_context
    more = np.ceil(log_uniform(rng, 1, MAX_CONTEXT_TOKENS, lists.n_rows))
    values = np.insert(lists.values, lists.offsets[1:], more)
    return Batches(batches.prefill_new, batches.prefill_context, ragged(values, lists.lengths + 1))


def _joined(parts: Sequence[Batches]) -> Batches:
    return Batches(*(_stacked([getattr(part, name) for part in parts]) for name in Batches.__slots__))


def _stacked(lists: Sequence[Ragged]) -> Ragged:
    return ragged(
        np.concatenate([one.values for one in lists]), np.concatenate([one.lengths for one in lists]).astype(np.int64)
    )
