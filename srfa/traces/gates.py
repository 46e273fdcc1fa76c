"""The gates every job's data passes before anything is fitted to it: one finding a rule, each with its evidence.

The rules are those of the trace contract, section 4; :mod:`srfa.traces.saturation` holds the ones about load. A finding
is data: whoever ingests decides what a failed one means (the flow marks the job ``data_gate``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from srfa.schema import SPEED_OF_LIGHT_MARGIN, TOLERATED_SHARE
from srfa.specs import BenchmarkJob, EngineArgs
from srfa.traces.accounting import TokenAccount, account_tokens
from srfa.traces.client import ClientResult
from srfa.traces.findings import GateFinding, JobData
from srfa.traces.requests import UNMATCHED, client_rows
from srfa.traces.saturation import check_failures, check_little_law, check_queue_growth
from srfa.traces.steps import step_entries
from srfa.traces.tables import canonical_dtype
from srfa.units import NS_PER_US

LEAST_VALID_RATIO: Final = 0.8
_LEAST_FLOOR_US: Final = 1.0 / NS_PER_US
ASYNC_SHORT_RATIO: Final = 0.01
"""With asynchronous scheduling ``schedule()`` runs inside the previous step: that share of steps may be shorter."""
COMPLETE_STATUSES: Final = frozenset({"length", "stop", "repetition"})
"""Ends of a request that delivered all its tokens; others (abort, error) are not held to the token rules."""


def check_job(
    data: JobData, client: ClientResult, expected: BenchmarkJob, floor_us: NDArray[np.float64] | None = None
) -> tuple[GateFinding, ...]:
    """Return one finding for each rule.

    Parameters
    ----------
    data
        The job's records and tables.
    client
        What the load generator sent and received.
    expected
        What was asked for.
    floor_us
        The time no step can undercut, one entry a row of ``data.observations``; None where it is not known, which
        leaves the rule ``speed_of_light`` out.
    """
    account = account_tokens(step_entries(data.records.steps), data.requests)
    findings = [
        check_dropped(data),
        check_step_ids(data),
        check_step_totals(data, account),
        check_conservation(data, account),
        check_prefill(data, account),
        check_client_tokens(data, client),
        check_request_order(data),
        check_schedule_time(data),
        check_valid_steps(data),
        check_resolved_config(expected.engine, data.resolved),
        check_failures(client, expected.workload),
        check_little_law(data, expected.workload),
        check_queue_growth(data, expected.workload),
    ]
    return (*findings, *(() if floor_us is None else (check_speed_of_light(data, floor_us),)))


def summarise(findings: Sequence[GateFinding]) -> str:
    """Return one sentence: how many rules passed, and what the failed ones found."""
    failed = [finding for finding in findings if not finding.passed]
    if not failed:
        return f"all {len(findings)} data gates passed"
    reasons = "; ".join(f"{finding.rule}: {finding.sentence}" for finding in failed)
    return f"{len(failed)} of {len(findings)} data gates failed: {reasons}"


def check_dropped(data: JobData) -> GateFinding:
    """Rule ``dropped_records``: the recorder lost nothing."""
    torn = ", and the last line is torn" if data.records.torn else ""
    sentence = f"the recorder lost {data.records.dropped} records{torn}"
    return GateFinding.at_most("dropped_records", data.records.dropped, 0, sentence)


def check_step_ids(data: JobData) -> GateFinding:
    """Rule ``step_ids_contiguous``: each step id is its predecessor's plus one."""
    ids = data.steps["step_id"].to_numpy()
    breaks = np.flatnonzero(np.diff(ids) != 1)
    where = f", first after step {ids[breaks[0]]} comes {ids[breaks[0] + 1]}" if breaks.size else ""
    return GateFinding.at_most("step_ids_contiguous", breaks.size, 0, f"{breaks.size} breaks in the step ids{where}")


def check_step_totals(data: JobData, account: TokenAccount) -> GateFinding:
    """Rule ``tokens_sum_to_steps``: the steps' tokens are exactly those of the requests that have a record."""
    total = int(data.steps["prefill_tokens"].to_numpy().sum() + data.steps["decode_tokens"].to_numpy().sum())
    requests = int(account.scheduled_tokens.sum())
    sentence = f"steps hold {total} tokens, requests with a record {requests} ({account.orphan_tokens} of unknown ones)"
    return GateFinding.at_most("tokens_sum_to_steps", abs(total - requests), 0, sentence)


def check_conservation(data: JobData, account: TokenAccount) -> GateFinding:
    """Rule ``tokens_conserved``: prompt + output - 1 = scheduled + cached - recomputed, for each finished request.

    The last output token is sampled, never computed. Tokens are computed twice only after a preemption, so a request
    falls back at most as often as it was preempted, and never jumps ahead. With asynchronous scheduling a request that
    stopped by itself may have been scheduled further, up to one token for each further batch in flight.
    """
    wanted = data.integers("prompt_tokens") + data.integers("output_tokens") - 1
    surplus = account.last_computed_tokens - wanted
    broken = _complete(data) & (
        (surplus < 0)
        | (surplus > _tokens_in_flight(data))
        | (account.first_computed_tokens != data.integers("cached_tokens"))
        | (account.skipped_tokens > 0)
        | (account.falls > data.integers("num_preemptions"))
    )
    return _for_each_request(data, "tokens_conserved", broken, lambda row: _equation(data, account, row))


def check_prefill(data: JobData, account: TokenAccount) -> GateFinding:
    """Rule ``prefill_tokens``: what was scheduled as prefill is prompt - cached, where nothing was preempted."""
    wanted = data.integers("prompt_tokens") - data.integers("cached_tokens")
    broken = _complete(data) & (data.integers("num_preemptions") == 0) & (account.prefill_tokens != wanted)

    def evidence(row: int) -> str:
        return f"{account.prefill_tokens[row]} prefill tokens, expected prompt - cached = {wanted[row]}"

    return _for_each_request(data, "prefill_tokens", broken, evidence)


def check_client_tokens(data: JobData, client: ClientResult) -> GateFinding:
    """Rule ``client_tokens``: the server computed what the client sent and delivered what it received.

    Request by request where the client keeps its ids; else as two collections of (prompt, output) lengths.
    """
    if client.request_ids is None:
        wrong, sentence = _compare_collections(data, client), "prompt and output lengths that differ as collections"
    else:
        wrong, sentence = _compare_by_id(data, client), "requests unknown to one side, or of other lengths there"
    return GateFinding.at_most("client_tokens", wrong, 0, f"{wrong} {sentence} (client against server)")


def check_request_order(data: JobData) -> GateFinding:
    """Rule ``request_order``: queued <= first scheduled <= first token <= finished, for each finished request."""
    names = ("t_queued_ns", "t_first_scheduled_ns", "t_first_token_ns", "t_finished_ns")
    times = np.stack([data.requests[name].to_numpy().astype(np.float64) for name in names])
    broken = _complete(data) & ~(np.diff(times, axis=0) >= 0).all(axis=0)

    def evidence(row: int) -> str:
        return ", ".join(f"{name}={value:.0f}" for name, value in zip(names, times[:, row], strict=True))

    return _for_each_request(data, "request_order", broken, evidence)


def check_schedule_time(data: JobData) -> GateFinding:
    """Rule ``step_not_shorter_than_schedule``: step_time_us >= sched_time_us."""
    step_us, sched_us = data.steps["step_time_us"].to_numpy(), data.steps["sched_time_us"].to_numpy()
    shorter = int((step_us < sched_us).sum())
    limit = ASYNC_SHORT_RATIO * step_us.size if data.records.engine.async_scheduling else 0.0
    sentence = f"{shorter} of {step_us.size} steps are shorter than their schedule() call"
    return GateFinding.at_most("step_not_shorter_than_schedule", shorter, limit, sentence)


def check_valid_steps(data: JobData) -> GateFinding:
    """Rule ``valid_steps``: at least 80 % of the steps may be used, and there are some."""
    valid = data.steps["valid"].to_numpy()
    ratio = float(valid.mean()) if valid.size else 0.0
    reasons = Counter(reason for reason in data.steps["invalid_reason"].to_pylist() if reason)
    listed = "".join(f", {count} {reason}" for reason, count in reasons.most_common())
    sentence = f"{int(valid.sum())} of {valid.size} steps are valid{listed}"
    return GateFinding("valid_steps", ratio >= LEAST_VALID_RATIO, ratio, LEAST_VALID_RATIO, sentence)


def check_resolved_config(requested: EngineArgs, resolved: EngineArgs) -> GateFinding:
    """Rule ``config_mismatch``: the engine runs with the arguments asked for; None and ``auto`` leave it the choice."""
    wanted = requested.model_copy(update={"dtype": canonical_dtype(requested.dtype)}).model_dump()
    found = resolved.model_dump()
    differing = [name for name, value in wanted.items() if value not in (None, "auto") and found[name] != value]
    named = "; ".join(f"{name}: asked {wanted[name]!r}, runs with {found[name]!r}" for name in differing)
    return GateFinding.at_most("config_mismatch", len(differing), 0, named or "the engine runs as asked")


def check_speed_of_light(data: JobData, floor_us: NDArray[np.float64]) -> GateFinding:
    """Rule ``speed_of_light``: hardly a label is under 0.8 x the time the hardware needs at its peak rates.

    Up to one label in a hundred is taken for a torn pair of clock readings; a fit leaves those out.
    """
    label_us = data.observations["step_time_us"].to_numpy()
    if not label_us.size:
        return GateFinding("speed_of_light", True, 0.0, TOLERATED_SHARE, "no usable step to check")
    ratio = label_us / np.maximum(floor_us, _LEAST_FLOOR_US)
    worst, count = int(np.argmin(ratio)), int((ratio < SPEED_OF_LIGHT_MARGIN).sum())
    sentence = f"{count} of {label_us.size} labels are under {SPEED_OF_LIGHT_MARGIN} x their floor"
    if count:
        sentence += (
            f"; step {data.observations['step_id'][worst]}: {label_us[worst]:.6g} us against {floor_us[worst]:.6g} us. "
            "Suspects: a clock that is not the busy-loop cycle (schedule() alone, a wrong lag), a wrong unit, "
            "or a with-sparsity TFLOPS figure in the datasheet"
        )
    return GateFinding.at_most("speed_of_light", count / label_us.size, TOLERATED_SHARE, sentence)


def _complete(data: JobData) -> NDArray[np.bool_]:
    return np.asarray([status in COMPLETE_STATUSES for status in data.requests["finish_status"].to_pylist()], np.bool_)


def _tokens_in_flight(data: JobData) -> NDArray[np.int64]:
    """Return how many tokens too many may have been scheduled, one entry a request."""
    engine = data.records.engine
    further = max(engine.batch_queue_size - 1, 0) if engine.async_scheduling else 0
    stopped = np.asarray([status != "length" for status in data.requests["finish_status"].to_pylist()], np.int64)
    return further * stopped


def _equation(data: JobData, account: TokenAccount, row: int) -> str:
    terms = {name: int(data.integers(name)[row]) for name in ("prompt_tokens", "output_tokens", "cached_tokens")}
    return (
        f"prompt {terms['prompt_tokens']} + output {terms['output_tokens']} - 1 against scheduled "
        f"{account.scheduled_tokens[row]} + cached {account.first_computed_tokens[row]} (its record says "
        f"{terms['cached_tokens']}) - recomputed {account.recomputed_tokens[row]} + skipped "
        f"{account.skipped_tokens[row]}, {data.integers('num_preemptions')[row]} preemptions, "
        f"{account.falls[row]} falls"
    )


def _for_each_request(
    data: JobData, rule: str, broken: NDArray[np.bool_], evidence: Callable[[int], str]
) -> GateFinding:
    rows = np.flatnonzero(broken)
    sentence = f"{rows.size} of {broken.size} requests break it"
    if rows.size:
        first = int(rows[0])
        sentence += f"; {data.requests['request_id'][first]}: {evidence(first)}"
    return GateFinding.at_most(rule, rows.size, 0, sentence)


def _compare_by_id(data: JobData, client: ClientResult) -> int:
    """Count what one side knows alone: delivered requests without an equal on the server, and requests nobody sent."""
    rows = client_rows(data.requests, client)
    known = rows != UNMATCHED
    prompt, output = data.integers("prompt_tokens")[known], data.integers("output_tokens")[known]
    sent = rows[known]
    equal = (client.prompt_tokens[sent] == prompt) & (client.output_tokens[sent] == output)
    delivered = np.zeros(client.succeeded.size, dtype=np.bool_)
    delivered[sent[equal]] = True
    return int((client.succeeded & ~delivered).sum() + (_complete(data) & ~known).sum())


def _compare_collections(data: JobData, client: ClientResult) -> int:
    """Count lengths one side has alone; the server may have finished requests whose delivery failed."""
    done, got = _complete(data), client.succeeded
    pairs = zip(data.integers("prompt_tokens")[done], data.integers("output_tokens")[done], strict=True)
    server = Counter((int(prompt), int(output)) for prompt, output in pairs)
    pairs = zip(client.prompt_tokens[got], client.output_tokens[got], strict=True)
    received = Counter((int(prompt), int(output)) for prompt, output in pairs)
    undelivered = int((~got).sum())
    return (received - server).total() + max(0, (server - received).total() - undelivered)
