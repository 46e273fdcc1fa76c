"""Everything srfa refuses, as one tree; each class carries the exit code of the command line.

::

    SrfaError                     2
      UsageError                  2   a wrong argument or combination of arguments
      InputError                  2   a file that cannot be used: file, place, value, remedy
        MatrixError                   matrix.yaml
        CatalogError                  hardware/ or models/
        ObservationsError             an observation table
        CoefficientsError             coefficients.json
        LimitsError                   the gate's limits
      StoreError                  2   the trace store cannot be reached or refuses
      GateFailed                  1   the verdict is no
      IncompleteError             3   jobs failed
      NothingMeasuredError        4   no usable step at all
      DataInvalidError            5   the data breaks physics or its own contract
        WrongClockError               a column that is not a step time was offered as one
      FitError                    5   the data cannot carry the fit that was asked for
      UnknownConfigurationError   5   coefficients that exist by configuration were asked for one they do not have
      EngineError                 3   one engine group failed; becomes a JobOutcome, never ends a campaign
"""

from __future__ import annotations

from typing import ClassVar


class SrfaError(Exception):
    """Base of every error that srfa raises on purpose; its text says what to do."""

    exit_code: ClassVar[int] = 2


class UsageError(SrfaError):
    """A wrong argument or combination of arguments."""


class InputError(SrfaError):
    """A file that cannot be used. The text starts with ``FILE[:LINE]:``."""


class MatrixError(InputError):
    """``matrix.yaml`` does not describe an experiment."""


class CatalogError(InputError):
    """A file under ``hardware/`` or ``models/`` is missing, malformed or implausible."""


class ObservationsError(InputError):
    """An observation table lacks a column, names an unknown GPU or model, or holds an impossible value."""


class CoefficientsError(InputError):
    """``coefficients.json`` has an unknown field, a missing one or an unknown estimator."""


class LimitsError(InputError):
    """The file with the gate's limits cannot be used."""


class StoreError(SrfaError):
    """The trace store cannot be reached, or refuses what was asked."""


class GateFailed(SrfaError):  # noqa: N818 - a verdict, not a fault
    """The gate's verdict is no; the text names every limit that was broken."""

    exit_code: ClassVar[int] = 1


class IncompleteError(SrfaError):
    """Some jobs of a campaign failed; what was measured is kept."""

    exit_code: ClassVar[int] = 3


class NothingMeasuredError(SrfaError):
    """No job of a campaign left a usable step."""

    exit_code: ClassVar[int] = 4


class DataInvalidError(SrfaError):
    """Data that breaks physics or its own contract; it never reaches a fit."""

    exit_code: ClassVar[int] = 5


class WrongClockError(DataInvalidError):
    """A column that does not measure the busy-loop cycle was offered as a step time."""


class FitError(SrfaError):
    """The observations cannot carry the fit that was asked for."""

    exit_code: ClassVar[int] = 5


class UnknownConfigurationError(SrfaError):
    """An estimator that learns by configuration was asked for one it has no measurements of."""

    exit_code: ClassVar[int] = 5


class EngineError(SrfaError):
    """One engine group failed. Recorded as the outcome of its jobs; the campaign goes on.

    Parameters
    ----------
    reason
        The class of failure, one of :data:`srfa.specs.FailureReason`.
    message
        What happened, with the evidence.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[EngineError], tuple[str, str]]:
        """Pickle with both arguments: the error crosses process borders."""
        return (type(self), (self.reason, str(self)))
