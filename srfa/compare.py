"""All estimators on the same rows and folds of one or more data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from srfa.catalog import Catalog
from srfa.coefficients import FitConfig
from srfa.errors import IncompleteError, SrfaError
from srfa.estimators import ESTIMATORS, Estimator, estimator_named
from srfa.folds import SPLITS, Split
from srfa.leaderboard import Leaderboard
from srfa.observations import Observations, load_observations
from srfa.provenance import file_hashes, provenance_of
from srfa.speed_of_light import possible_steps
from srfa.standings import leaderboard_of
from srfa.validate import Progress, cross_validate_all
from srfa.validation_report import ValidationReport

YARDSTICKS = ("roofline", "nrrl", "forest", "blackbox")
"""What a release is compared with, as far as it is registered: a fit takes a second at most, and each says something.

Physics without a fit, the best linear design, interpolation, and what measuring each configuration alone would give.
``srfa compare`` has them all; the iterated searches of ``srfa-seed`` and ``jams`` cost as much as the candidate's own.
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A leaderboard, and the data sets that were refused, by name."""

    board: Leaderboard
    refusals: Mapping[str, SrfaError]

    @property
    def is_empty(self) -> bool:
        """True where every data set was refused."""
        return len(self.refusals) == len(self.board.datasets)

    def require_complete(self) -> None:
        """Do nothing where every data set could be used.

        Raises
        ------
        IncompleteError
            Some were refused; the text has the reason of each.
        SrfaError
            All were refused: the first one's own error.
        """
        if self.is_empty:
            raise next(iter(self.refusals.values()))
        if self.refusals:
            reasons = "\n".join(f"  {reason}" for reason in self.refusals.values())
            raise IncompleteError(
                f"{len(self.refusals)} of {len(self.board.datasets)} data sets were refused:\n{reasons}"
            )


def estimators_named(names: str) -> tuple[Estimator, ...]:
    """Return the estimators of a list with commas, each once; all that are registered where it is empty.

    Raises
    ------
    UsageError
        There is none of some name.

    Examples
    --------
    >>> [one.name for one in estimators_named("roofline, srfa-seed, roofline")]
    ['roofline', 'srfa-seed']
    """
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    return tuple(estimator_named(name) for name in dict.fromkeys(chosen or ESTIMATORS))


def compare_files(
    paths: Sequence[Path],
    estimators: Sequence[Estimator],
    catalog: Catalog,
    *,
    splits: Sequence[Split] = SPLITS,
    config: FitConfig,
    n_jobs: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Validate every estimator on every split of every observation file, each file a data set by itself.

    Parameters
    ----------
    paths
        Observation files; named by file name, or by the path as given where two share one.
    n_jobs
        Processes that share the folds of all files, estimators and splits; they change no figure.

    Returns
    -------
    Comparison
        A file that cannot be used is an entry with its reason, a split that it does not allow likewise.
    """
    paths = list(dict.fromkeys(paths))
    data_sets: dict[str, Observations] = {}
    hashes: dict[str, str] = {}
    refusals: dict[str, SrfaError] = {}
    for name, path in zip(_names(paths), paths, strict=True):
        try:
            data_sets[name] = _usable(path, catalog)
        except SrfaError as error:
            refusals[name] = error
        else:
            hashes[name] = next(iter(file_hashes([path]).values()))
    found = cross_validate_all(
        estimators,
        list(data_sets.values()),
        catalog,
        splits=splits,
        config=config,
        n_jobs=n_jobs,
        progress=progress,
    )
    reports = {
        name: _with_origin(some, data_sets[name], {name: hashes[name]})
        for name, some in zip(data_sets, found, strict=True)
    }
    return Comparison(leaderboard_of(reports, {name: str(error) for name, error in refusals.items()}), refusals)


def compare_with_yardsticks(
    name: str,
    reports: Sequence[ValidationReport],
    observations: Observations,
    catalog: Catalog,
    *,
    n_jobs: int = 1,
) -> Leaderboard:
    """Compare an estimator that was validated already with :data:`YARDSTICKS`, on the splits of its reports.

    Parameters
    ----------
    name
        What the board calls the data.
    reports
        Of one estimator on one or more splits; they are not made anew.
    observations
        What they were made from.

    Raises
    ------
    InputError
        The reports are not of these observations.
    """
    validated = {report.estimator for report in reports}
    others = [ESTIMATORS[one] for one in YARDSTICKS if one in ESTIMATORS and one not in validated]
    (found,) = cross_validate_all(
        others,
        [observations],
        catalog,
        splits=[report.split for report in reports],
        config=reports[0].config,
        n_jobs=n_jobs,
    )
    return leaderboard_of({name: [*reports, *found]})


def _names(paths: Sequence[Path]) -> list[str]:
    unique = len({path.name for path in paths}) == len(paths)
    return [path.name if unique else path.as_posix() for path in paths]


def _usable(path: Path, catalog: Catalog) -> Observations:
    """Read a file and refuse now what a validation would refuse, so that one file cannot end the others."""
    observations = load_observations([path])
    possible_steps(observations, catalog)
    return observations


def _with_origin(
    reports: Sequence[ValidationReport], observations: Observations, data_sha256: Mapping[str, str]
) -> tuple[ValidationReport, ...]:
    origin = provenance_of(observations, data_sha256)
    return tuple(report.model_copy(update={"provenance": origin}) for report in reports)
