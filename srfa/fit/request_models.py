"""Each design's models of a request: its wait in the queue and what its tokens cost outside the steps.

Linear forms are robust and non-negative; logarithmic ones (``lacm``, ``hamm``) are a ridge, their exponential is
positive. Repairs of what the research document's reviewers found: the share of prefix hits is the measured one, and
where coefficients are non-negative its complement stands, because a hit shortens a wait; a token in ``lacm`` costs
more the longer its context; ``jams``'s admission threshold is a setting; its "resumed after preemption" cannot occur
before the first scheduling, which is what is learned, so the recent preemptions of the server take its place;
``nrrl``'s queue under compute is a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from scipy.special import gammaln

from srfa.coefficients import CoefficientBlock, FitConfig
from srfa.errors import FitError, UsageError
from srfa.features import Block, Columns
from srfa.fit.positive import fit_positive
from srfa.fit.queue import alpha_features, queue_wait_features
from srfa.fit.ridge import exp_us, fit_log_ridge
from srfa.fit.token import token_features
from srfa.ragged import FloatArray, IntArray
from srfa.requests import RequestObservations
from srfa.wording import unknown

_LEAST_WAIT_US = 1.0
"""Shorter waits are left out of a logarithmic fit: they are the resolution of the clock."""

Target = Literal["arrival_to_queued_us", "queue_wait_us", "outside_us"]
"""What a model learns: a field of :class:`~srfa.requests.RequestObservations`."""


Features = Callable[[RequestObservations, FitConfig], Block]


@dataclass(frozen=True, slots=True)
class RequestModel:
    """One model of a request; ``form`` says what its dot product is: microseconds or their logarithm."""

    target: Target
    features: Features
    form: Literal["linear", "logarithm"] = "linear"


def fit_request_models(design: str, requests: RequestObservations, config: FitConfig) -> dict[str, CoefficientBlock]:
    """Fit the request models of a design: ``alpha`` (arrival to queued), ``queue_wait``, ``alpha_token``.

    Raises
    ------
    UsageError
        The design has no request models.
    FitError
        Too few requests for a model, which the text names.
    """
    return {name: _fit(name, model, requests, config) for name, model in request_models(design).items()}


def predict_request_us(
    design: str, name: str, block: CoefficientBlock, requests: RequestObservations, config: FitConfig
) -> FloatArray:
    """Return what the model ``name`` of a design predicts, microseconds, shape ``(n_requests,)``."""
    model = request_models(design)[name]
    product = model.features(requests, config).values @ np.array(block.values)
    return product if model.form == "linear" else exp_us(product)


def request_models(design: str) -> Mapping[str, RequestModel]:
    """Return the request models of a design by name.

    Raises
    ------
    UsageError
        The design has none.
    """
    if design not in REQUEST_MODELS:
        raise UsageError(unknown("design with request models", design, REQUEST_MODELS))
    return REQUEST_MODELS[design]


def _fit(name: str, model: RequestModel, requests: RequestObservations, config: FitConfig) -> CoefficientBlock:
    block, target = model.features(requests, config), getattr(requests, model.target)
    if model.form == "linear":
        return fit_positive(block, target, what=name)
    usable = np.flatnonzero((target >= _LEAST_WAIT_US) & np.isfinite(block.values).all(axis=1))
    if len(usable) < len(block.names):
        raise FitError(
            f"{name}: {len(usable)} requests waited {_LEAST_WAIT_US:g} us or longer, for {len(block.names)}"
            " coefficients; measure more, or under more load"
        )
    return fit_log_ridge(block.take(usable), target[usable], groups=_jobs(requests)[usable], config=config).block


def _jobs(requests: RequestObservations) -> IntArray:
    _, index = np.unique(np.array(requests.job_id), return_inverse=True)
    return np.asarray(index, dtype=np.int64).reshape(-1)


def _whatever_settings(build: Callable[[RequestObservations], Block]) -> Features:
    return lambda requests, _config: build(requests)


def _output_tokens(requests: RequestObservations) -> Block:
    """What every design has at least: a cost a token, so that BLIS's third coefficient exists."""
    return Block.of({("output_tokens", "tokens"): requests.output_tokens}, requests.n_requests)


def _nrrl_queue(requests: RequestObservations) -> Block:
    columns: Columns = {
        ("intercept", "us"): 1.0,
        ("prompt_share", "1"): requests.prompt_tokens / requests.max_model_len,
        ("queue_share", "1"): requests.waiting_at_queue / requests.max_num_seqs,
        ("kv_usage", "1"): requests.kv_usage_at_queue,
        ("running_share", "1"): requests.running_at_queue / requests.max_num_seqs,
        ("chunked_prefill", "1"): requests.chunked_prefill,
        ("queue_compute_time", "us"): requests.waiting_at_queue * requests.prompt_compute_us,
        ("recent_preemptions", "1"): requests.recent_preemptions / requests.max_num_seqs,
    }
    return Block.of(columns, requests.n_requests)


def _lacm_queue(requests: RequestObservations) -> Block:
    columns: Columns = {
        ("intercept", "log(us)"): 1.0,
        ("log_prompt", "log(1 + tokens)"): np.log1p(requests.prompt_tokens),
        ("log_queue", "log(1 + requests)"): np.log1p(requests.waiting_at_queue),
        ("kv_usage", "1"): requests.kv_usage_at_queue,
        ("prefix_hits", "1"): requests.cached_share,
    }
    return Block.of(columns, requests.n_requests)


def _hamm_queue(requests: RequestObservations) -> Block:
    columns: Columns = {
        ("intercept", "log(us)"): 1.0,
        ("log_prompt", "log(1 + tokens)"): np.log1p(requests.prompt_tokens),
        ("log_queue", "log(1 + requests)"): np.log1p(requests.waiting_at_queue),
        ("kv_usage_squared", "1"): requests.kv_usage_at_queue**2,
        ("prefix_hits", "1"): requests.cached_share,
    }
    return Block.of(columns, requests.n_requests)


def _jams_queue(requests: RequestObservations, config: FitConfig) -> Block:
    """The admission cliff sets in halfway between the two thresholds of the settings: 0.8 with the defaults."""
    cliff = sum(config.kv_thresholds) / len(config.kv_thresholds)
    columns: Columns = {
        ("intercept", "us"): 1.0,
        ("prompt_share", "1"): requests.prompt_tokens / requests.max_model_len,
        ("queue_share", "1"): requests.waiting_at_queue / requests.max_num_seqs,
        (f"kv_over_{cliff:g}", "1"): np.maximum(0.0, requests.kv_usage_at_queue - cliff) / (1.0 - cliff),
        ("prefix_misses", "1"): 1.0 - requests.cached_share,
        ("recent_preemptions", "1"): requests.recent_preemptions / requests.max_num_seqs,
    }
    return Block.of(columns, requests.n_requests)


def _lacm_token(requests: RequestObservations) -> Block:
    """Sum over decoded tokens of ``log(1 + context)``, exactly: a ratio of factorials."""
    last = requests.prompt_tokens + requests.decoded_tokens
    logs = gammaln(last + 2.0) - gammaln(requests.prompt_tokens + 2.0)
    columns: Columns = {
        ("output_tokens", "tokens"): requests.output_tokens,
        ("log_context_kv_read", "us log(1 + tokens)"): logs * requests.kv_us_per_token,
    }
    return Block.of(columns, requests.n_requests)


def _hamm_token(requests: RequestObservations) -> Block:
    """Sum over decoded tokens of ``sqrt(context)``, by its integral between midpoints."""
    first, last = requests.prompt_tokens + 0.5, requests.prompt_tokens + requests.decoded_tokens + 0.5
    columns: Columns = {
        ("output_tokens", "tokens"): requests.output_tokens,
        ("sqrt_context", "sqrt(tokens)"): (last**1.5 - first**1.5) / 1.5,
        ("decode_kv_read", "us"): requests.kv_read_us,
    }
    return Block.of(columns, requests.n_requests)


def _jams_token(requests: RequestObservations) -> Block:
    columns: Columns = {
        ("output_tokens", "tokens"): requests.output_tokens,
        ("decode_kv_read", "us"): requests.kv_read_us,
    }
    return Block.of(columns, requests.n_requests)


_ARRIVAL = RequestModel("arrival_to_queued_us", _whatever_settings(alpha_features))
_SEED: Mapping[str, RequestModel] = {
    "alpha": _ARRIVAL,
    "queue_wait": RequestModel("queue_wait_us", queue_wait_features),
    "alpha_token": RequestModel("outside_us", _whatever_settings(token_features)),
}

REQUEST_MODELS: Mapping[str, Mapping[str, RequestModel]] = MappingProxyType(
    {
        "blackbox": {"alpha": _ARRIVAL, "alpha_token": RequestModel("outside_us", _whatever_settings(_output_tokens))},
        "nrrl": {
            "alpha": _ARRIVAL,
            "queue_wait": RequestModel("queue_wait_us", _whatever_settings(_nrrl_queue)),
            "alpha_token": RequestModel("outside_us", _whatever_settings(_output_tokens)),
        },
        "lacm": {
            "alpha": _ARRIVAL,
            "queue_wait": RequestModel("queue_wait_us", _whatever_settings(_lacm_queue), form="logarithm"),
            "alpha_token": RequestModel("outside_us", _whatever_settings(_lacm_token)),
        },
        "hamm": {
            "alpha": _ARRIVAL,
            "queue_wait": RequestModel("queue_wait_us", _whatever_settings(_hamm_queue), form="logarithm"),
            "alpha_token": RequestModel("outside_us", _whatever_settings(_hamm_token)),
        },
        "jams": {
            "alpha": _ARRIVAL,
            "queue_wait": RequestModel("queue_wait_us", _jams_queue),
            "alpha_token": RequestModel("outside_us", _whatever_settings(_jams_token)),
        },
        "srfa-seed": _SEED,
        "srfa": _SEED,
    }
)
"""The models of each design: ``alpha`` is what a simulator adds before its own queue, and is the same for all.

``srfa`` takes those of ``srfa-seed``: what the research document says of queue and tokens stands.
"""
