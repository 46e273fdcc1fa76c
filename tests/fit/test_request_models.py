import dataclasses

import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.errors import FitError, UsageError
from srfa.fit.request_models import REQUEST_MODELS, fit_request_models, predict_request_us, request_models
from tests.fit.test_requests import requests

CONFIG = FitConfig(lambda_beta=(1e-10,))
QUEUES = {name: models for name, models in REQUEST_MODELS.items() if "queue_wait" in models}


def drawn(seed=0, n=600, **changes):
    jobs = tuple(f"job-{number % 6}" for number in range(n))
    return requests(seed, n, **{"job_id": jobs, "queue_wait_us": np.full(n, 500.0), "outside_us": np.ones(n)} | changes)


def block_of(design, model, seen):
    return request_models(design)[model].features(seen, CONFIG)


def planted(design, seed=0):
    """Waits and costs made of each design's own features, every coefficient above zero."""
    seen, targets = drawn(seed), {}
    for model in request_models(design).values():
        block = model.features(seen, CONFIG)
        scale = np.maximum(np.abs(block.values).max(axis=0), 1e-12)
        product = block.values @ (np.linspace(1.0, 2.0, len(block.names)) / scale)
        targets[model.target] = np.exp(3.0 + product) if model.form == "logarithm" else 4_000.0 * product
    return dataclasses.replace(seen, **targets)


def test_every_design_has_the_dimensions_of_the_research_document():
    seen = drawn()
    found = {
        name: tuple(len(model.features(seen, CONFIG).names) for model in models.values())
        for name, models in REQUEST_MODELS.items()
    }
    assert found == {
        "blackbox": (2, 1),
        "nrrl": (2, 8, 1),
        "lacm": (2, 5, 2),
        "hamm": (2, 5, 3),
        "jams": (2, 6, 2),
        "srfa-seed": (2, 6, 3),
        "srfa": (2, 6, 3),
    }


@pytest.mark.parametrize("design", sorted(REQUEST_MODELS))
def test_planted_costs_are_predicted_for_unseen_requests(design):
    blocks = fit_request_models(design, planted(design), CONFIG)
    assert set(blocks) == set(request_models(design))
    unseen = planted(design, seed=9)
    for name, block in blocks.items():
        target = getattr(unseen, request_models(design)[name].target)
        assert predict_request_us(design, name, block, unseen, CONFIG) == pytest.approx(target, rel=0.1)


@pytest.mark.parametrize("design", sorted(QUEUES))
def test_whatever_was_measured_a_wait_is_never_negative_and_finite(design):
    rng = np.random.default_rng(3)
    noisy = drawn(queue_wait_us=rng.lognormal(6, 3, 600), outside_us=rng.lognormal(6, 1, 600))
    block = fit_request_models(design, noisy, CONFIG)["queue_wait"]
    predicted = predict_request_us(design, "queue_wait", block, drawn(seed=5), CONFIG)
    assert np.isfinite(predicted).all()
    assert (predicted >= 0).all()


def test_blackbox_is_a_constant_and_a_cost_a_token():
    seen = drawn()
    seen = dataclasses.replace(
        seen, arrival_to_queued_us=300 + 0.5 * seen.prompt_tokens, outside_us=40.0 * seen.output_tokens
    )
    blocks = fit_request_models("blackbox", seen, CONFIG)
    assert blocks["alpha"].values == pytest.approx((300.0, 0.5), rel=0.05)
    assert blocks["alpha_token"].values == pytest.approx((40.0,), rel=0.01)


def test_jams_cliff_stands_halfway_between_the_thresholds_of_the_settings():
    seen = drawn(kv_usage_at_queue=np.full(600, 0.9))
    block = block_of("jams", "queue_wait", seen)
    assert block.names[3] == "kv_over_0.8"
    assert block.values[0, 3] == pytest.approx(0.5)
    other = request_models("jams")["queue_wait"].features(seen, FitConfig(kv_thresholds=(0.4, 0.6)))
    assert other.names[3] == "kv_over_0.5"


def test_hits_of_the_prefix_cache_shorten_a_wait():
    """Linear forms are non-negative, so they carry the share that missed."""
    seen = drawn()
    waits = 10_000.0 - 8_000.0 * seen.cached_share
    for design in ("jams", "lacm", "hamm"):
        block = fit_request_models(design, dataclasses.replace(seen, queue_wait_us=waits), CONFIG)["queue_wait"]
        few, many = (dataclasses.replace(seen, cached_share=np.full(600, share)) for share in (0.1, 0.9))
        shorter = predict_request_us(design, "queue_wait", block, many, CONFIG)
        assert (shorter < predict_request_us(design, "queue_wait", block, few, CONFIG)).all()


def test_sums_over_a_requests_tokens_equal_loops_over_them():
    seen = drawn(n=20)
    contexts = [
        int(prompt) + 1 + np.arange(int(output) - 1)
        for prompt, output in zip(seen.prompt_tokens, seen.output_tokens, strict=True)
    ]
    logs = np.array([np.log1p(context).sum() for context in contexts])
    roots = np.array([np.sqrt(context).sum() for context in contexts])
    assert block_of("lacm", "alpha_token", seen).values[:, 1] == pytest.approx(logs * 0.04)
    assert block_of("hamm", "alpha_token", seen).values[:, 1] == pytest.approx(roots, rel=1e-3)


def test_nrrls_queue_under_compute_is_a_time():
    block = block_of("nrrl", "queue_wait", drawn())
    assert block.units[block.names.index("queue_compute_time")] == "us"


def test_a_logarithm_needs_requests_that_waited():
    with pytest.raises(FitError, match="queue_wait: 0 requests waited 1 us or longer, for 5 coefficients"):
        fit_request_models("lacm", drawn(queue_wait_us=np.zeros(600)), CONFIG)


def test_a_design_without_request_models_is_named_with_those_that_have_them():
    with pytest.raises(UsageError, match="unknown design with request models 'forest'"):
        fit_request_models("forest", drawn(), CONFIG)
