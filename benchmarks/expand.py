"""How long 10,000 cells take: ``python -m benchmarks.expand``. Limit: 1 s without the interpreter's start.

Timed as ``srfa expand --json`` needs it: reading the file, expansion with feasibility, and the id of every job.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import yaml

from srfa.catalog import load_catalog
from srfa.matrix import expand, load_matrix
from srfa.plan import group_jobs

CELLS = 10_000
LIMIT_S = 1.0
ROOT = Path(__file__).resolve().parent.parent


def matrix_text() -> str:
    """Return a matrix of 5 models x 4 GPUs x 5 parallelisms x 10 workloads x 10 chunk sizes."""
    workloads = {f"w{i}": {"random_input_len": 100 + i, "num_prompts": 10} for i in range(10)}
    axes = {
        "models": ["llama-3.1-8b", "llama-3.1-70b", "qwen3-32b", "mixtral-8x7b-v0.1", "qwen3-30b-a3b"],
        "gpus": ["a100-sxm-80gb", "h100-sxm-80gb", "h200-sxm-141gb", "l40s-48gb"],
        "parallelism": [{"tensor_parallel_size": n} for n in (1, 2, 4, 8)]
        + [{"tensor_parallel_size": 8, "enable_expert_parallel": True}],
        "knobs": {"max_num_batched_tokens": [512 * i for i in range(1, 11)]},
    }
    exclude = [{"model": "qwen3-32b", "tensor_parallel_size": [1, 2], "why": "an example"}]
    defaults = {"engine": {"max_model_len": 4096}}
    return yaml.safe_dump(
        {"name": "big", "defaults": defaults, "workloads": workloads, "axes": axes, "exclude": exclude}
    )


def main() -> None:
    """Print seconds by part."""
    started = time.perf_counter()
    catalog = load_catalog(ROOT / "hardware", ROOT / "models")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrix.yaml"
        path.write_text(matrix_text())
        loaded = time.perf_counter()
        expansion = expand(load_matrix(path), catalog)
    expanded = time.perf_counter()
    ids = {job.job_id for job in (*expansion.jobs, *(cell.job for cell in expansion.skipped))}
    named = time.perf_counter()
    groups = group_jobs(expansion.jobs)
    grouped = time.perf_counter()
    assert len(ids) == CELLS, len(ids)
    print(f"{CELLS} cells: {len(expansion.jobs)} jobs on {len(groups)} servers, {len(expansion.skipped)} skipped")
    print(f"catalogue {loaded - started:.3f} s, expansion {expanded - loaded:.3f} s, job ids {named - expanded:.3f} s")
    print(f"grouping {grouped - named:.3f} s")
    total = named - started
    print(
        f"catalogue + expansion + ids: {total:.3f} s (limit {LIMIT_S:g} s): {'ok' if total < LIMIT_S else 'TOO SLOW'}"
    )


if __name__ == "__main__":
    main()
