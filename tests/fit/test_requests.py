import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.errors import FitError
from srfa.fit.queue import queue_wait_features
from srfa.fit.request_models import fit_request_models
from srfa.requests import RequestObservations


def requests(seed: int = 0, n: int = 500, **changes) -> RequestObservations:
    rng = np.random.default_rng(seed)
    columns = {
        "job_id": ("job",) * n,
        "prompt_tokens": rng.integers(1, 4000, n).astype(float),
        "output_tokens": rng.integers(1, 500, n).astype(float),
        "max_model_len": np.full(n, 8192.0),
        "max_num_seqs": np.full(n, 64.0),
        "max_num_batched_tokens": np.full(n, 2048.0),
        "running_at_queue": rng.integers(0, 64, n).astype(float),
        "waiting_at_queue": rng.integers(0, 128, n).astype(float),
        "kv_usage_at_queue": rng.uniform(0, 1, n),
        "recent_preemptions": rng.integers(0, 8, n).astype(float),
        "kv_read_us": rng.uniform(0, 100_000, n),
        "kv_us_per_token": np.full(n, 0.04),
        "prompt_compute_us": rng.uniform(10, 50_000, n),
        "cached_share": rng.uniform(0, 1, n),
        "chunked_prefill": rng.integers(0, 2, n).astype(float),
        "arrived_ns": np.zeros(n, dtype=np.int64),
        "arrival_to_queued_us": np.zeros(n),
        "handover_least_us": np.zeros(n),
        "queue_wait_us": np.zeros(n),
        "outside_us": np.zeros(n),
        "first_outside_us": np.zeros(n),
    }
    return RequestObservations(**(columns | changes))


def test_thresholds_of_kv_pressure_are_configurable_and_named():
    block = queue_wait_features(requests(), FitConfig(kv_thresholds=(0.5, 0.8)))
    assert block.names[3:5] == ("kv_over_0.5", "kv_over_0.8")
    assert block.values[:, 3].max() == pytest.approx(0.5, abs=0.01)


def test_a_designs_queueing_costs_are_recovered_under_outliers():
    drawn = requests()
    truth = np.array([50.0, 2_000.0, 30_000.0, 0.0, 90_000.0, 400_000.0])
    wait = queue_wait_features(drawn, FitConfig()).values @ truth
    wait[::25] += 5e6
    block = fit_request_models("srfa-seed", requests(queue_wait_us=wait), FitConfig())["queue_wait"]
    assert block["queue_share"] == pytest.approx(30_000.0, rel=0.15)
    assert block["recent_preemptions"] == pytest.approx(400_000.0, rel=0.15)


def test_a_designs_token_model_recovers_its_cost_a_token():
    drawn = requests()
    outside = 40.0 * drawn.output_tokens + 900.0
    block = fit_request_models("srfa-seed", requests(outside_us=outside), FitConfig())["alpha_token"]
    assert block["output_tokens"] == pytest.approx(40.0, rel=0.05)
    assert block["prefills"] == pytest.approx(900.0, rel=0.1)


def test_requests_without_the_clients_view_are_a_named_error():
    with pytest.raises(FitError, match="alpha_token: 0 usable requests for 3 coefficients"):
        fit_request_models("srfa-seed", requests(outside_us=np.full(500, np.nan)), FitConfig())
