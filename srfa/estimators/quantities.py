"""What the estimators build their features from: batches, times at datasheet rates, expected routing, engine limits.

Every array has one entry a step and every time is that of the busiest GPU, in microseconds. A column that observations
may leave out counts as what the engine does when nobody says: vLLM's limits, nothing offloaded, no KV pressure known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np

from srfa.catalog import Catalog
from srfa.feasibility import batched_tokens, context_tokens
from srfa.observations import Observations
from srfa.precision import number_bytes
from srfa.ragged import FloatArray, Ragged
from srfa.roofline import (
    Place,
    StepWork,
    bytes_per_us,
    expert_flops_per_token,
    flops_per_us,
    per_step,
    places,
    step_work,
)
from srfa.specs import EngineArgs
from srfa.units import BYTES_PER_GIB, BYTES_PER_US_PER_GBPS

_BLOCK_TOKENS = 16.0
"""Tokens of a KV block where observations do not say: vLLM's default on GPUs."""


@dataclass(frozen=True, slots=True)
class StepQuantities:
    """Steps with their configurations' facts resolved; every property has shape ``(n_steps,)``.

    Parameters
    ----------
    where
        The facts of each configuration.
    work
        Operations and bytes of each step.
    """

    observations: Observations
    where: tuple[Place, ...]
    work: StepWork

    @classmethod
    def of(cls, observations: Observations, catalog: Catalog) -> StepQuantities:
        """Resolve the configurations and count operations and bytes.

        Raises
        ------
        CatalogError
            A GPU or model of the observations is unknown.
        """
        where = places(observations, catalog)
        return cls(observations, where, step_work(observations, where))

    @property
    def n_steps(self) -> int:
        """How many steps there are."""
        return self.observations.n_steps

    @property
    def prefill_tokens(self) -> FloatArray:
        """Tokens of prefills and of chunks of them: what missed the prefix cache."""
        return self.observations.numbers("prefill_tokens")

    @property
    def decode_tokens(self) -> FloatArray:
        """Tokens of decoding requests."""
        return self.observations.numbers("decode_tokens")

    @property
    def tokens(self) -> FloatArray:
        """Tokens of both phases, at least 1."""
        return self.prefill_tokens + self.decode_tokens

    @property
    def prefills(self) -> FloatArray:
        """Requests in prefill."""
        return self.observations.numbers("num_prefill_reqs")

    @property
    def decodes(self) -> FloatArray:
        """Requests in decode."""
        return self.observations.numbers("num_decode_reqs")

    @property
    def batch(self) -> FloatArray:
        """Requests of both phases, counted as at least 1."""
        return np.maximum(self.prefills + self.decodes, 1.0)

    @property
    def longest_prefill(self) -> FloatArray:
        """Tokens of the longest prefilled sequence after the step, its context included; 0 without a prefill."""
        new, context = self.observations.prefill_new_tokens, self.observations.prefill_context_tokens
        return Ragged(new.values + context.values, new.offsets).max()

    @property
    def longest_sequence(self) -> FloatArray:
        """Tokens of the longest sequence after the step."""
        return np.maximum(self.longest_prefill, self.observations.decode_context_tokens.max())

    @property
    def decode_context(self) -> FloatArray:
        """KV entries that the decoding requests attend."""
        return self.observations.decode_context_tokens.sum()

    @property
    def kv_tokens(self) -> FloatArray:
        """KV entries of the batch after the step."""
        return self.prefill_tokens + self.observations.prefill_context_tokens.sum() + self.decode_context

    @property
    def peak_flops_per_us(self) -> FloatArray:
        """Operations in a microsecond at the dense peak."""
        return self.fact(flops_per_us)

    @property
    def peak_bytes_per_us(self) -> FloatArray:
        """Bytes in a microsecond at full bandwidth."""
        return self.fact(bytes_per_us)

    @property
    def prefill_flops_per_us(self) -> FloatArray:
        """Operations in a microsecond at the GPU's stock efficiency in prefill."""
        return self.fact(lambda place: flops_per_us(place) * place.gpu.calibration.mfu_prefill)

    @property
    def decode_flops_per_us(self) -> FloatArray:
        """Operations in a microsecond at the GPU's stock efficiency in decode."""
        return self.fact(lambda place: flops_per_us(place) * place.gpu.calibration.mfu_decode)

    @property
    def bytes_per_us(self) -> FloatArray:
        """Bytes in a microsecond at the GPU's stock efficiency."""
        return self.fact(lambda place: bytes_per_us(place) * place.gpu.calibration.bandwidth_efficiency)

    @property
    def prefill_us(self) -> FloatArray:
        """Operations of the prefill tokens at the stock efficiency."""
        return self.work.prefill_flops / self.prefill_flops_per_us

    @property
    def decode_us(self) -> FloatArray:
        """Operations of the decode tokens at the stock efficiency."""
        return self.work.decode_flops / self.decode_flops_per_us

    @property
    def kv_read_us(self) -> FloatArray:
        """KV cache that decoding requests read, at the stock efficiency."""
        return self.work.decode_kv_bytes / self.bytes_per_us

    @property
    def expert_us(self) -> FloatArray:
        """Operations of the routed experts at the stock efficiencies; 0 in a dense model, contained in the others."""
        tokens = self.prefill_tokens / self.prefill_flops_per_us + self.decode_tokens / self.decode_flops_per_us
        return tokens * self.fact(expert_flops_per_token)

    @property
    def offload_us(self) -> FloatArray:
        """Bytes fetched from the host over PCIe at its datasheet rate: vLLM streams offloaded weights every step."""
        offloaded = self.column("cpu_offload_bytes", self.column("cpu_offload_gb", 0.0) * BYTES_PER_GIB)
        return offloaded / self.fact(lambda place: place.gpu.datasheet.pcie_gbps * BYTES_PER_US_PER_GBPS)

    @property
    def tp_us(self) -> FloatArray:
        """One all-reduce latency a layer; 0 without tensor parallelism."""
        return self.fact(tp_latency_us)

    @property
    def ep_us(self) -> FloatArray:
        """One all-to-all latency a MoE layer; 0 without expert parallelism."""
        return self.fact(ep_latency_us)

    @property
    def expert_spread(self) -> FloatArray:
        """Expected standard deviation over mean of the tokens an expert gets: ``sqrt((E - k) / (k tokens))``.

        From the variance ``tokens k/E (1 - k/E)`` of balanced routing: the configuration alone gives it, where the
        routing itself depends on the data. 0 in a dense model.
        """
        return np.asarray(self.fact(_token_variation) / np.sqrt(self.tokens))

    @property
    def activated_share(self) -> FloatArray:
        """Expected share of experts a step touches under balanced routing, ``1 - (1 - k/E)^tokens``; 0 when dense."""
        return np.asarray(1.0 - self.fact(_untouched_by_one) ** self.tokens)

    @property
    def kv_usage(self) -> FloatArray:
        """Share of the KV cache in use; 0 where it was not recorded."""
        return self.column("kv_usage_ratio", 0.0)

    @property
    def block_tokens(self) -> FloatArray:
        """Tokens of a KV block."""
        return self.column("block_size", _BLOCK_TOKENS)

    @property
    def max_model_len(self) -> FloatArray:
        """The longest sequence the server takes; the model's own limit where it was not recorded."""
        return self.column("max_model_len", self.fact(lambda place: context_tokens(EngineArgs(), place.model)))

    @property
    def max_num_batched_tokens(self) -> FloatArray:
        """Tokens a step may hold; vLLM's choice for a GPU of this size where it was not recorded."""
        return self.column("max_num_batched_tokens", self.fact(lambda place: batched_tokens(EngineArgs(), place.gpu)))

    def fact(self, function: Callable[[Place], float]) -> FloatArray:
        """Return a configuration's fact for every step."""
        return per_step(self.observations, self.where, function)

    def column(self, name: str, otherwise: FloatArray | float) -> FloatArray:
        """Return a column of the observations, ``otherwise`` where it is null."""
        values = self.observations.numbers(name)
        return np.where(np.isnan(values), otherwise, values)


def tp_latency_us(place: Place) -> float:
    """Return one all-reduce latency a layer, 0 on one GPU."""
    if place.configuration.tensor_parallel_size == 1:
        return 0.0
    return place.model.num_hidden_layers * place.gpu.calibration.allreduce_latency_us


def ep_latency_us(place: Place) -> float:
    """Return one all-to-all latency a MoE layer, 0 without expert parallelism."""
    if place.configuration.expert_parallel_size == 1:
        return 0.0
    return place.model.moe_layers * place.gpu.calibration.alltoall_latency_us


def base_overhead_us(place: Place) -> float:
    """Return launch and scheduler overhead of a step."""
    return place.gpu.calibration.launch_overhead_us + place.gpu.calibration.scheduler_overhead_us


def router_flops_per_token(place: Place) -> float:
    """Return the operations of the routers for one token, ``2 hidden E`` a MoE layer; 0 in a dense model."""
    return 2.0 * place.model.hidden_size * place.model.num_experts * place.model.moe_layers


def routed_bytes_per_token(place: Place) -> float:
    """Return the activations sent to the experts and back for one token, over all MoE layers; 0 in a dense model."""
    model = place.model
    routed = model.num_experts_per_tok * model.hidden_size * number_bytes(model, place.configuration.dtype)
    return 2.0 * routed * model.moe_layers


def architecture_imbalance(place: Place) -> float:
    """Return ``sqrt((E - k) / (E k))``: how uneven a token's experts are, from the architecture; 0 when dense."""
    return _token_variation(place) / sqrt(place.model.num_experts) if place.model.is_moe else 0.0


def _token_variation(place: Place) -> float:
    experts, chosen = place.model.num_experts, place.model.num_experts_per_tok
    return sqrt((experts - chosen) / chosen) if place.model.is_moe else 0.0


def _untouched_by_one(place: Place) -> float:
    return 1.0 - place.model.num_experts_per_tok / place.model.num_experts if place.model.is_moe else 1.0
