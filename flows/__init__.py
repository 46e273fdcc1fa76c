"""Orchestration, what and in which order: every body reads as a sentence."""

import logging
import os

from srfa.errors import SrfaError

# Read when Prefect and Ray are imported, so they are set before any module of this package imports them.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DO_NOT_TRACK", "1")
# The temporary server starts in 10 s on an idle machine; 20 s, Prefect's default, are too few on a busy one.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


def _without_trace(record: logging.LogRecord) -> bool:
    """Keep a refusal's sentence and leave out the stack, which says nothing to whom it is for."""
    if record.exc_info and isinstance(record.exc_info[1], SrfaError):
        record.exc_info = None
    return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_without_trace)
