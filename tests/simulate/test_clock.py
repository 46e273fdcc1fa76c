"""Every estimator tells a simulated step the time it tells a measured one."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from srfa.coefficients import FitConfig
from srfa.errors import CatalogError, UnknownConfigurationError, UsageError
from srfa.estimators import ESTIMATORS, estimator_named
from srfa.observations import Configuration, from_table
from srfa.operator_kernels import StepTotals
from srfa.simulate.clock import clock_of, linear_clock
from srfa.simulate.engine import simulate
from srfa.simulate.load import RequestLoad
from srfa.simulate.server import Server
from tests.planted import planted_observations
from tests.steps import catalog

CATALOG = catalog()
SERVER = Server(max_num_batched_tokens=512, max_num_seqs=4, max_model_len=1024, block_size=16, num_gpu_blocks=100)
LOAD = RequestLoad.of(np.array([0.0, 10.0, 20.0, 30.0]), np.array([100, 700, 30, 40]), np.array([5, 12, 9, 10]))


@cache
def seen():
    return planted_observations(noise=0.02)


@cache
def fitted(name):
    estimator = estimator_named(name)
    return estimator.fit(estimator.features(seen(), CATALOG), FitConfig(huber_delta=(0.1,)))


def observed(served, configuration):
    """The recorded steps as anybody would bring them: a table of observations."""
    log, prompt = served.steps, LOAD.prompt_tokens
    rows = []
    for step in range(log.n_steps):
        part = slice(log.offsets[step], log.offsets[step + 1])
        new, computed = log.new_tokens[part], log.computed_tokens[part]
        first = computed < prompt[log.request[part]]
        row = {field.name: getattr(configuration, field.name) for field in fields(Configuration)}
        rows.append(
            row
            | {
                "job_id": "job",
                "step_time_us": 1.0,
                "num_prefill_reqs": int(first.sum()),
                "num_decode_reqs": int((~first).sum()),
                "prefill_tokens": int(new[first].sum()),
                "decode_tokens": int(new[~first].sum()),
                "prefill_new_tokens": new[first].tolist(),
                "prefill_context_tokens": computed[first].tolist(),
                "decode_context_tokens": (new + computed)[~first].tolist(),
                "cpu_offload_bytes": 0.0,
                "kv_usage_ratio": 1.0 - log.kv_blocks_free[step] / (SERVER.num_gpu_blocks - 1),
                "max_model_len": SERVER.max_model_len,
                "max_num_batched_tokens": SERVER.max_num_batched_tokens,
                "block_size": SERVER.block_size,
            }
        )
    return from_table(pa.Table.from_pylist(rows))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_simulated_step_takes_what_the_estimator_says_of_it(name):
    configuration = seen().configurations[0]
    served = simulate(LOAD, SERVER, clock_of(fitted(name), configuration, CATALOG), record_steps=True)
    estimator = estimator_named(name)
    features = estimator.features(observed(served, configuration), CATALOG)
    expected = estimator.predict(fitted(name), features)
    np.testing.assert_allclose(served.steps.step_time_us, expected, rtol=1e-12)
    assert len(np.unique(expected)) > 1


def test_roofline_needs_no_coefficients_and_others_do():
    configuration = seen().configurations[0]
    assert clock_of(None, configuration, CATALOG, estimator="roofline").estimator == "roofline"
    with pytest.raises(UsageError, match="srfa needs coefficients"):
        clock_of(None, configuration, CATALOG, estimator="srfa")
    with pytest.raises(UsageError, match="coefficients of srfa cannot serve hamm"):
        clock_of(fitted("srfa"), configuration, CATALOG, estimator="hamm")


def test_what_is_unknown_is_refused_by_name_before_anything_runs():
    configuration = seen().configurations[0]
    with pytest.raises(UnknownConfigurationError, match="tp8"):
        clock_of(fitted("blackbox"), replace(configuration, tensor_parallel_size=8), CATALOG)
    with pytest.raises(CatalogError, match="no-such-gpu"):
        clock_of(fitted("srfa"), replace(configuration, gpu="no-such-gpu"), CATALOG)


def test_a_linear_clock_weighs_every_total_and_has_a_least_time():
    """One request of 10 tokens: pairs 10^2 / 2, then a decode that attends 11."""
    load = RequestLoad.of(np.zeros(1), np.array([10]), np.array([2]))
    weights = StepTotals(prefill_tokens=1.0, decodes=2.0, prefill_pairs=3.0, decode_context=4.0, is_measured=5.0)
    served = simulate(load, SERVER, linear_clock(7.0, weights, least_us=60.0), record_steps=True)
    assert served.steps.step_time_us.tolist() == [10.0 + 3.0 * 50.0 + 5.0 + 7.0, 60.0]
