"""Request records and the client's view -> the ``requests`` table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from srfa.schema import REQUESTS
from srfa.specs import BenchmarkJob
from srfa.traces.client import ClientResult
from srfa.traces.plugin import TraceRecords
from srfa.units import NS_PER_US

UNMATCHED: Final = -1
_SERVER_PREFIXES: Final = ("", "cmpl-", "chatcmpl-")
"""What vLLM's completion and chat servers put before the id a client sent."""


def requests_table(records: TraceRecords, client: ClientResult | None, job: BenchmarkJob) -> pa.Table:
    """Return the ``requests`` table (schema :data:`srfa.schema.REQUESTS`) of one job, one row a request record.

    ``ttft_us``, ``e2e_us``, ``itl_us`` and ``t_departed_ns`` are the client's; they are null where the client did not
    send the request, keeps no ids, or saw it fail. ``t_departed_ns`` is also null where the client's clock is not the
    server's (another machine).
    """
    n_requests = records.requests.num_rows
    columns: dict[str, Any] = {name: records.requests[name] for name in records.requests.column_names}
    columns["job_id"] = pa.repeat(job.job_id, n_requests)
    columns |= _client_columns(records.requests, client)
    return pa.table({name: columns[name] for name in REQUESTS.names}, schema=REQUESTS)


def match_requests(server_ids: Iterable[str], client_ids: Sequence[str]) -> NDArray[np.int64]:
    """Return for each server id the position of the client's id it was made from, -1 where there is none.

    vLLM turns a client's ``ID`` into ``cmpl-ID-INDEX-RANDOM``: the longest client id that the server's starts with, up
    to a hyphen, is its origin. Where several server ids have one origin (a trial request with the first id), the last
    one is the request that was measured.

    >>> match_requests(["cmpl-b-1-0-99e2", "cmpl-b-12-0-4f1a", "other"], ["b-1", "b-12"])
    array([ 0,  1, -1])
    """
    positions = {client_id: position for position, client_id in enumerate(client_ids)}
    origins = [_origin(server_id, positions) for server_id in server_ids]
    last = {origin: row for row, origin in enumerate(origins)}
    return np.asarray(
        [origin if last[origin] == row else UNMATCHED for row, origin in enumerate(origins)], dtype=np.int64
    )


def _origin(server_id: str, positions: dict[str, int]) -> int:
    for prefix in _SERVER_PREFIXES:
        candidate = server_id.removeprefix(prefix)
        while candidate:
            if candidate in positions:
                return positions[candidate]
            candidate = candidate.rpartition("-")[0]
    return UNMATCHED


def client_rows(requests: pa.Table, client: ClientResult) -> NDArray[np.int64]:
    """Return for each row of a table with ``request_id`` the client's row, -1 where there is none."""
    if client.request_ids is None:
        return np.full(requests.num_rows, UNMATCHED, dtype=np.int64)
    return match_requests(requests["request_id"].to_pylist(), client.request_ids)


def _client_columns(requests: pa.Table, client: ClientResult | None) -> dict[str, Any]:
    names = ("t_departed_ns", "ttft_us", "e2e_us", "itl_us")
    if client is None:
        return {name: pa.nulls(requests.num_rows, REQUESTS.field(name).type) for name in names}
    rows = client_rows(requests, client)
    seen = (rows != UNMATCHED) & client.succeeded[rows] if rows.size and client.succeeded.size else rows != UNMATCHED
    taken = pa.array(rows, mask=~seen)
    return {
        "t_departed_ns": _departed_ns(requests, client, taken),
        "ttft_us": pc.take(pa.array(client.ttft_us), taken),
        "e2e_us": pc.take(pa.array(client.e2e_us), taken),
        "itl_us": pc.take(client.itl_us, taken),
    }


def _departed_ns(requests: pa.Table, client: ClientResult, taken: pa.Int64Array) -> Any:
    """Return when the client had the last token, on the server's clock; all null where the clocks differ."""
    sent_ns = pc.take(pa.array(client.start_us * NS_PER_US), taken)
    departed_ns = pc.take(pa.array((client.start_us + client.e2e_us) * NS_PER_US), taken)
    in_order = pc.and_(
        pc.less_equal(sent_ns, requests["t_queued_ns"]), pc.greater_equal(departed_ns, requests["t_first_token_ns"])
    )
    if pc.all(in_order, min_count=0).as_py():
        return pc.cast(pc.round(departed_ns), pa.int64())
    return pa.nulls(requests.num_rows, pa.int64())
