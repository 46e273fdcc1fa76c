"""Options and fixtures that all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.planted import planted_observations
from tests.steps import catalog as load_shipped_catalog

ROOT = Path(__file__).parent.parent
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


def pytest_addoption(parser):
    parser.addoption(
        "--shared-data",
        default=os.environ.get("SRFA_SHARED_DATA", str(ROOT.parent / "shared" / "data")),
        help="folder with public step-time measurements; tests that need it are skipped where it is absent",
    )


@pytest.fixture(scope="session")
def shared_data(request) -> Path:
    folder = Path(request.config.getoption("--shared-data"))
    if not folder.is_dir():
        pytest.skip(f"no public measurements at {folder}; name them with --shared-data or SRFA_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def shipped():
    """The catalogue of ``hardware/`` and ``models/``."""
    return load_shipped_catalog()


@pytest.fixture(scope="session")
def planted():
    """Observations of 18 jobs: two GPUs, two dense models and a MoE model; labels follow a planted law exactly."""
    return planted_observations()
