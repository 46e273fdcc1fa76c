"""How long a simulation takes, and what it holds, with the compiled clock of ``srfa``.

Run as ``python -m benchmarks.simulate``. Limits, on one core: 50,000 steps a second at batch 32 and 10,000 at 256; 36
minutes of serving 15,000 requests in 6 s; ten times the requests at the same rate take no more memory but for what
is kept of each that ended.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.planted import catalog, observations
from srfa.coefficients import FitConfig
from srfa.estimators import estimator_named
from srfa.operator_kernels import StepTotals
from srfa.simulate.clock import Clock, clock_of, linear_clock
from srfa.simulate.engine import simulate
from srfa.simulate.load import BlockHashes, RequestLoad
from srfa.simulate.served import Served
from srfa.simulate.server import Server
from srfa.units import US_PER_S

BATCHES = (32, 256, 512)
SERVER = Server(
    max_num_batched_tokens=8192, max_num_seqs=1024, max_model_len=8192, block_size=16, num_gpu_blocks=30_000
)
RATE_PER_S, REQUESTS = 7.0, 15_000
SHARED_PREFIXES, PREFIX_BLOCKS = 20, 16
MEDIAN_PROMPT, MEDIAN_OUTPUT, SPREAD = 120.0, 150.0, 1.1
"""Lengths as in ShareGPT: log-normal, most short, some of thousands of tokens."""
MIB, KIB = 2**20, 2**10


def srfa_clock() -> Clock:
    """Return the clock of srfa fitted to planted steps, on an H100 with a model of 8 billion parameters."""
    steps = observations(2_000)
    estimator = estimator_named("srfa")
    coefficients = estimator.fit(estimator.features(steps, catalog()), FitConfig(huber_delta=(0.1,)))
    where = next(one for one in steps.configurations if "h100" in one.gpu and "Llama" in one.model)
    return clock_of(coefficients, where, catalog())


def steady(batch: int, n_requests: int) -> RequestLoad:
    """Return requests of which a client always keeps ``batch`` in flight: mean output 200 tokens."""
    rng = np.random.default_rng(0)
    prompt, output = rng.integers(16, 513, n_requests), rng.integers(100, 301, n_requests)
    return replace(RequestLoad.of(np.zeros(n_requests), prompt, output), max_concurrency=batch)


def serving(n_requests: int, *, seed: int = 0) -> RequestLoad:
    """Return Poisson arrivals of requests that share one of a few system prompts."""
    rng = np.random.default_rng(seed)
    arrival_us = np.cumsum(rng.exponential(US_PER_S / RATE_PER_S, n_requests))
    fresh = np.clip(rng.lognormal(np.log(MEDIAN_PROMPT), SPREAD, n_requests), 4, 4096).astype(np.int64)
    output = np.clip(rng.lognormal(np.log(MEDIAN_OUTPUT), SPREAD, n_requests), 1, 2048).astype(np.int64)
    prefix = rng.integers(0, SHARED_PREFIXES, n_requests)
    names = (prefix[:, None] * PREFIX_BLOCKS + np.arange(PREFIX_BLOCKS)).reshape(-1)
    hashes = BlockHashes(names, np.arange(n_requests + 1) * PREFIX_BLOCKS)
    prompt = fresh + PREFIX_BLOCKS * SERVER.block_size
    return RequestLoad(arrival_us, prompt, output, np.zeros(n_requests, dtype=np.int64), hashes)


def timed(load: RequestLoad, server: Server, clock: Clock) -> tuple[Served, float]:
    """Return what came of a load, and the seconds of a core it took; the better of two runs."""
    best = np.inf
    for _ in range(2):
        begin = time.process_time()
        served = simulate(load, server, clock)
        best = min(best, time.process_time() - begin)
    return served, best


def peak_mib() -> float:
    """Return the most memory this process has held since :func:`forget_peak`, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * KIB / MIB


def forget_peak() -> None:
    """Let the peak begin at what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def batches(clock: Clock) -> None:
    """Print steps a second by batch, and how the cost of a step grows with it."""
    for scheduling in ("synchronous", "asynchronous"):
        server = replace(SERVER, async_scheduling=scheduling == "asynchronous", num_gpu_blocks=60_000)
        cost_us = {}
        for batch in BATCHES:
            served, seconds = timed(steady(batch, 60 * batch), server, clock)
            cost_us[batch] = seconds * US_PER_S / served.n_steps
            print(
                f"{scheduling}, batch {batch}: {served.n_steps / seconds:,.0f} steps/s, {cost_us[batch]:.1f} us a step"
            )
        print(
            f"  a step at batch {BATCHES[-1]} costs {cost_us[BATCHES[-1]] / cost_us[BATCHES[0]]:.1f} x one at", end=""
        )
        print(f" {BATCHES[0]}, for {BATCHES[-1] // BATCHES[0]} x the requests", flush=True)


def main() -> None:
    """Print every figure; memory is that of processes of their own."""
    begin = time.perf_counter()
    clock = srfa_clock()
    simulate(serving(10), SERVER, clock)
    print(f"first simulation, compilation included where nothing is kept of it: {time.perf_counter() - begin:.1f} s")
    batches(clock)
    load = serving(REQUESTS)
    served, seconds = timed(load, SERVER, clock)
    minutes = served.t_departed_us.max() / US_PER_S / 60.0
    print(f"{minutes:.0f} minutes of {REQUESTS:,} requests: {seconds:.2f} s, {served.n_steps:,} steps,", end="")
    print(f" {served.cached_tokens.sum() / load.prompt_tokens.sum():.0%} of prompts cached", flush=True)
    for count in (REQUESTS, 10 * REQUESTS):
        subprocess.run([sys.executable, "-m", "benchmarks.simulate", "--memory", str(count)], check=True)


def memory(n_requests: int) -> None:
    """Print what serving so many requests adds to this process, and what of it the load and the results are."""
    clock = linear_clock(8_000.0, StepTotals(prefill_tokens=20.0, decode_tokens=60.0))
    simulate(serving(100), SERVER, clock)
    load = serving(n_requests, seed=1)
    forget_peak()
    before = peak_mib()
    served = simulate(load, SERVER, clock)
    arrays = [value for value in (getattr(served, name) for name in served.__slots__) if isinstance(value, np.ndarray)]
    kept = sum(array.nbytes for array in arrays) / MIB
    print(f"{n_requests:,} requests: {peak_mib() - before:.1f} MiB more at the peak, results of {kept:.1f} MiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        memory(int(sys.argv[2]))
    else:
        main()
