"""What a data gate looks at, and what it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from srfa.specs import EngineArgs
from srfa.traces.plugin import TraceRecords


@dataclass(frozen=True, slots=True)
class JobData:
    """One job's records and what was made of them.

    Parameters
    ----------
    resolved
        The engine arguments as they ran.
    observations
        The usable steps with the label of the job's GPU.
    """

    records: TraceRecords
    resolved: EngineArgs
    steps: pa.Table
    requests: pa.Table
    observations: pa.Table

    def integers(self, column: str) -> NDArray[np.int64]:
        """Return a column of ``requests`` as int64, null as 0, shape (n_requests,)."""
        return np.asarray(pc.fill_null(self.requests[column], 0).to_numpy(), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class GateFinding:
    """The outcome of one rule.

    Parameters
    ----------
    value, limit
        What was measured and what it may be at most (at least, for ratios of good ones).
    sentence
        The evidence, for people.
    """

    rule: str
    passed: bool
    value: float
    limit: float
    sentence: str

    @classmethod
    def at_most(cls, rule: str, value: float, limit: float, sentence: str) -> GateFinding:
        """Return a finding that passes iff ``value <= limit``."""
        return cls(rule, bool(value <= limit), float(value), float(limit), sentence)
