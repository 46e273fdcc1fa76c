"""Small observation tables and catalogues for tests, built from plain rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from srfa.catalog import Catalog, load_catalog
from srfa.observations import Observations, from_table

ROOT = Path(__file__).parent.parent


def catalog() -> Catalog:
    return load_catalog(ROOT / "hardware", ROOT / "models")


def step(**changes):
    """One decode step of one request unless told otherwise; the sums follow the lists."""
    row = {
        "job_id": "job",
        "gpu": "h100-sxm-80gb",
        "model": "meta-llama/Llama-3.1-8B",
        "tensor_parallel_size": 1,
        "step_time_us": 10_000.0,
        "workload": "w",
        "prefill_new_tokens": [],
        "prefill_context_tokens": [],
        "decode_context_tokens": [100],
    } | changes
    row.setdefault("num_prefill_reqs", len(row["prefill_new_tokens"]))
    row.setdefault("prefill_tokens", sum(row["prefill_new_tokens"]))
    row.setdefault("num_decode_reqs", len(row["decode_context_tokens"]))
    row.setdefault("decode_tokens", len(row["decode_context_tokens"]))
    return row


def table(rows) -> pa.Table:
    return pa.Table.from_pylist(list(rows))


def observations(rows) -> Observations:
    return from_table(table(rows))


def random_steps(n_steps: int, *, seed: int = 0, **fixed):
    """Random batches on two GPUs, two models, several jobs; labels are placeholders to be planted over."""
    rng = np.random.default_rng(seed)
    for number in range(n_steps):
        prefills, decodes = rng.integers(0, 4), rng.integers(1, 32)
        yield step(
            **{
                "job_id": f"job-{number % 10}",
                "gpu": ("a100-sxm-80gb", "h100-sxm-80gb")[number % 2],
                "model": ("meta-llama/Llama-3.1-8B", "mistralai/Mixtral-8x7B-v0.1")[(number // 2) % 2],
                "tensor_parallel_size": 4,
                "workload": ("chat", "long")[number % 3 == 0],
                "prefill_new_tokens": rng.integers(1, 2048, prefills).tolist(),
                "prefill_context_tokens": rng.integers(0, 2048, prefills).tolist(),
                "decode_context_tokens": rng.integers(1, 4096, decodes).tolist(),
                "step_time_us": float(rng.uniform(5_000, 50_000)),
            }
            | fixed
        )
