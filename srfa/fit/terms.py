"""The parameters of ``srfa`` and what is known of them before any measurement.

Each prior is a log-normal. Means are what kernels of this kind reach in general: dense products 80-90 % of peak rates,
streaming 80 % of the bandwidth, flash attention half of the dense rate, a kernel launch in a CUDA graph 2 us, an NVLink
all-reduce 10-15 us, six to ten kernels around the experts of a layer. Spreads say how far GPUs and engines differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Term:
    """One parameter: its name, the prior's mean, and the prior's standard deviation as a logarithm."""

    name: str
    mean: float
    log_sd: float


MEMORY: Final = (
    Term("gemm", 1.05, 0.08),
    Term("prefill_attention", 1.1, 0.4),
    Term("decode_attention", 1.1, 0.25),
    Term("experts", 1.05, 0.12),
    Term("experts_untuned", 1.1, 0.12),
)
"""Time at the datasheet's bandwidth is multiplied with these; where nothing is computed the roofline adds 15 %."""
COMPUTE: Final = (
    Term("gemm", 1.2, 0.12),
    Term("prefill_attention", 2.0, 0.4),
    Term("decode_attention", 2.0, 0.4),
    Term("experts", 1.6, 0.2),
    Term("experts_untuned", 2.0, 0.4),
)
"""Time at the dense rate is multiplied with these."""
LINEAR_TERMS: Final = (
    Term("kernel_latency", 3500.0, 0.4),
    Term("moe_latency", 30_000.0, 0.5),
    Term("collective_latency", 20_000.0, 0.5),
    Term("moe_traffic", 1.3, 0.7),
    Term("collective_traffic", 1.5, 0.7),
    Term("elementwise_traffic", 1.3, 0.7),
    Term("offload_traffic", 1.2, 0.7),
    Term("host_layer", 5.0, 0.7),
    Term("host_step", 300.0, 0.7),
    Term("host_request", 8.0, 0.7),
)
"""Cycles for latencies, multiples of datasheet time for traffic, microseconds for the host."""
DEVIATION_LOG_SD: Final = 0.12
"""How far one GPU's memory (compute) factors lie from those of GPUs in general."""
SOFTWARE_LOG_SD: Final = 0.7
"""How far the host's cost of one software version lies from that of others."""
