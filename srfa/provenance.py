"""Where a fit came from: data by hash, jobs by id, software by version."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import srfa
from srfa.coefficients import Provenance, Transfer
from srfa.observations import Observations

_LIBRARIES = ("cvxpy", "numpy", "scipy", "pyarrow", "scikit-learn")


def file_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """Return sha256 by file name; where two files share a name, by their paths as given."""
    unique = len({path.name for path in paths}) == len(paths)
    return {path.name if unique else path.as_posix(): _sha256(path) for path in paths}


def provenance_of(
    observations: Observations,
    data_sha256: Mapping[str, str],
    *,
    microbenchmarks: Sequence[Path] = (),
    prior: Path | None = None,
) -> Provenance:
    """Describe observations, the software at hand, and what else was known of the hardware.

    Parameters
    ----------
    microbenchmarks, prior
        The files of a calibrated fit, and of a few-shot one; few-shot is what a fit with both is.
    """
    calibrated: Transfer = "calibrated" if microbenchmarks else "zero-shot"
    return Provenance(
        data_sha256=dict(data_sha256),
        transfer="few-shot" if prior else calibrated,
        transfer_sha256=file_hashes([*microbenchmarks, *([prior] if prior else [])]),
        job_ids=_distinct(observations, "job_id"),
        gpus=_distinct(observations, "gpu"),
        models=_distinct(observations, "model"),
        software_versions=_distinct(observations, "software_version"),
        n_steps=observations.n_steps,
        srfa_version=srfa.__version__,
        code_version=code_version(),
        library_versions={name: version(name) for name in _LIBRARIES},
    )


def calibration_differences(provenance: Provenance, microbenchmarks: Sequence[Path]) -> tuple[str, ...]:
    """Say which microbenchmarks a fit knew and a prediction does not, and the other way round; files are told by hash.

    The last file of a few-shot fit is its prior, which a prediction does not need.
    """
    fitted = list(provenance.transfer_sha256.items())
    known = dict(fitted[:-1] if provenance.transfer == "few-shot" else fitted)
    given = file_hashes(microbenchmarks)
    missing = [name for name, digest in known.items() if digest not in given.values()]
    added = [name for name, digest in given.items() if digest not in known.values()]
    return (
        *(f"the fit knew microbenchmark {name}, which is not given here; add --calibrate {name}" for name in missing),
        *(f"the fit did not know microbenchmark {name}; leave it out, or fit with --calibrate too" for name in added),
    )


def code_version() -> str:
    """Return the first 12 hex digits of sha256 over the package's sources: equal code, equal version."""
    package = Path(srfa.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _distinct(observations: Observations, column: str) -> tuple[str, ...]:
    names, _ = observations.codes(column)
    return tuple(sorted(name for name in names if name))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
