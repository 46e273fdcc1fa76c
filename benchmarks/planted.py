"""Steps of realistic batches, a million of them in seconds, timed by smooth rooflines with overhead and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from srfa.catalog import Catalog, load_catalog
from srfa.observations import Observations, from_table
from srfa.operators import constants, operator_times, step_totals
from srfa.ragged import IntArray
from srfa.roofline import places
from srfa.smooth_roofline import smooth_roofline

ROOT = Path(__file__).parent.parent
GPUS = np.array(["a100-sxm-80gb", "h100-sxm-80gb"])
MODELS = np.array(["meta-llama/Llama-3.1-8B", "mistralai/Mixtral-8x7B-v0.1", "Qwen/Qwen3-30B-A3B"])
WORKLOADS = np.array(["chat", "code", "summaries"])
N_JOBS = 60
MEMORY_FACTOR, COMPUTE_FACTOR, OVERHEAD_US, NOISE = 1.1, 1.5, 2_500.0, 0.05


def catalog() -> Catalog:
    """Return the catalogue of this checkout."""
    return load_catalog(ROOT / "hardware", ROOT / "models")


def observations(n_steps: int, *, seed: int = 0) -> Observations:
    """Return steps of 60 jobs on two GPUs and three models; two of three steps prefill beside up to 63 decodes."""
    return from_table(table(n_steps, seed=seed))


def table(n_steps: int, *, seed: int = 0) -> pa.Table:
    """Return the same as a table; every job has its GPU, model, TP and workload."""
    batches = _batches(n_steps, np.random.default_rng(seed))
    untimed = from_table(batches)
    times = operator_times(step_totals(untimed), untimed.configuration_index, constants(places(untimed, catalog())))
    rooflines = smooth_roofline(MEMORY_FACTOR * times.memory_us, COMPUTE_FACTOR * times.compute_us)
    labels = rooflines.sum(axis=1) + OVERHEAD_US
    labels *= np.random.default_rng(seed + 1).normal(1.0, NOISE, n_steps)
    return batches.set_column(batches.column_names.index("step_time_us"), "step_time_us", pa.array(labels))


def _batches(n_steps: int, rng: np.random.Generator) -> pa.Table:
    job = np.sort(rng.integers(0, N_JOBS, n_steps))
    prefills, decodes = rng.integers(0, 3, n_steps), rng.integers(1, 64, n_steps)
    offsets = np.concatenate([[0], np.cumsum(prefills)])
    new = np.minimum(rng.lognormal(5.5, 1.0, offsets[-1]).astype(np.int32) + 1, 4096)
    columns = {
        "job_id": _named(np.array([f"job-{number:02d}" for number in range(N_JOBS)]), job),
        "gpu": _named(GPUS, job % len(GPUS)),
        "model": _named(MODELS, (job // 2) % len(MODELS)),
        "workload": _named(WORKLOADS, (job // 6) % len(WORKLOADS)),
        "tensor_parallel_size": np.array([2, 4])[(job // 18) % 2],
        "step_time_us": np.ones(n_steps),
        "step_time_method": _named(np.array(["output"]), np.zeros(n_steps, dtype=np.int64)),
        "num_prefill_reqs": prefills,
        "num_decode_reqs": decodes,
        "prefill_tokens": np.diff(np.concatenate([[0], np.cumsum(new, dtype=np.int64)])[offsets]),
        "decode_tokens": decodes,
        "prefill_new_tokens": _lists(new, prefills),
        "prefill_context_tokens": _lists(rng.integers(0, 2048, offsets[-1], dtype=np.int32), prefills),
        "decode_context_tokens": _lists(rng.integers(1, 4096, int(decodes.sum()), dtype=np.int32), decodes),
    }
    return pa.table(columns)


def _named(names: NDArray[np.str_], index: IntArray) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(index, pa.int32()), pa.array(names)).cast(pa.string())


def _lists(values: NDArray[np.int32], lengths: IntArray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
