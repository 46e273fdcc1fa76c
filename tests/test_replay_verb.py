"""``srfa replay`` and ``srfa gate --closed-loop`` from the command line, on tables as ``srfa ingest`` leaves them."""

import json

import pyarrow.compute as pc
import pytest

from srfa.cli import main
from srfa.closed_loop_report import read_closed_loop
from srfa.closed_loop_summary import closed_loop_report
from srfa.coefficients import write_coefficients
from srfa.errors import InputError, NothingMeasuredError
from srfa.run_tables import Tables, observation_files, read_tables
from srfa.traces.tables import observations_table, write_table
from tests.replays import replay
from tests.simulated_jobs import MODELS, ROWS, law, simulated_run

TABLES = ("jobs", "steps", "requests")
SOME = [row for row in ROWS if row["model"] == MODELS[0]]


def write_run(folder, tables, catalog):
    """Leave what ``srfa ingest --out`` leaves."""
    for job_id, own in tables.by_job().items():
        for name in TABLES:
            write_table(
                getattr(own, name), folder / "tables" / name / "run_id=run" / f"job_id={job_id}" / "part-0.parquet"
            )
    observations = observations_table(tables.jobs, tables.steps, catalog.gpus)
    write_table(observations, folder / "observations" / "run_id=run" / "observations.parquet")
    return folder


@pytest.fixture(scope="module")
def tables():
    return simulated_run(law(), SOME)


@pytest.fixture(scope="module")
def ingested(tables, shipped, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("ingested"), tables, shipped)


def said(capsys):
    return capsys.readouterr().out


def test_jobs_are_replayed_on_fits_that_never_saw_them(ingested, tmp_path, capsys):
    out, plot = tmp_path / "closed_loop.json", tmp_path / "loop.png"
    arguments = ["replay", str(ingested), "--estimator", "blackbox", "--split", "leave-one-job-out"]
    assert main([*arguments, "--out", str(out), "--plot", str(plot)]) == 0
    text = said(capsys)
    assert "6 jobs replayed on coefficients that never saw them: median error of E2E 0." in text
    report = read_closed_loop(out)
    assert report.job_ids == {row["job_id"] for row in SOME}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_given_coefficients_are_replayed_as_they_are(ingested, tmp_path, capsys):
    write_coefficients(law(), tmp_path / "coefficients.json")
    assert main(["replay", str(ingested), "--coefficients", str(tmp_path / "coefficients.json"), "--json"]) == 0
    report = json.loads(said(capsys))
    assert report["estimator"] == "blackbox"
    assert report["headline"]["metrics"]["e2e"]["median_pct"] < 1.0


def test_a_job_that_cannot_be_replayed_ends_the_call_with_three_and_is_written(tables, shipped, tmp_path, capsys):
    lost = SOME[0]["job_id"]
    requests = tables.requests.filter(pc.not_equal(tables.requests["job_id"], lost))
    folder = write_run(tmp_path / "ingested", Tables(tables.jobs, tables.steps, requests), shipped)
    out = tmp_path / "closed_loop.json"
    arguments = ["replay", str(folder), "--estimator", "blackbox", "--split", "leave-one-job-out", "--out", str(out)]
    assert main(arguments) == 3
    assert f"1 of 6 jobs could not be replayed:\n  {lost}: " in capsys.readouterr().err
    assert [one.job_id for one in read_closed_loop(out).lost] == [lost]


def test_a_split_that_is_not_possible_replays_nothing_and_ends_with_four(ingested, capsys):
    assert main(["replay", str(ingested), "--estimator", "blackbox", "--split", "leave-one-gpu-out"]) == 4
    assert "leave-one-gpu-out needs at least two values of gpu" in capsys.readouterr().err


@pytest.mark.parametrize("further", [[], ["--split", "time", "--coefficients", "c.json"]])
def test_either_a_split_or_coefficients_are_wanted(ingested, further, capsys):
    assert main(["replay", str(ingested), *further]) == 2
    assert "give either --coefficients, or --split" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    assert main(["replay", "--help"]) == 0
    assert "Example: srfa replay runs --split" in said(capsys)


def test_the_tables_of_a_folder_are_those_that_were_written(ingested, tables):
    read = read_tables(ingested)
    for name in TABLES:
        ours, theirs = (getattr(one, name).sort_by("job_id") for one in (tables, read))
        assert theirs.num_rows == ours.num_rows
        assert pc.all(pc.equal(theirs["job_id"], ours["job_id"])).as_py()
    assert [path.name for path in observation_files(ingested)] == ["observations.parquet"]


def test_each_job_has_its_own_rows_and_jobs_without_steps_have_none(tables):
    without = Tables(tables.jobs, tables.steps.slice(0, 0), tables.requests)
    for job_id, own in without.by_job().items():
        assert set(own.requests["job_id"].to_pylist()) == {job_id}
        assert own.steps.num_rows == 0
    assert list(without.by_job()) == sorted(row["job_id"] for row in SOME)
    chosen = tables.of_jobs([SOME[0]["job_id"]])
    assert chosen.steps.num_rows == tables.by_job()[SOME[0]["job_id"]].steps.num_rows


def test_a_folder_without_tables_is_refused_with_its_remedy(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_tables(tmp_path / "none")
    with pytest.raises(NothingMeasuredError, match="no tables/jobs in it"):
        read_tables(tmp_path)
    with pytest.raises(NothingMeasuredError, match="no observations/ in it"):
        observation_files(tmp_path)


def test_tables_of_another_version_are_refused_by_name(tables, tmp_path):
    old = tables.jobs.drop_columns(["max_num_seqs"])
    write_table(old, tmp_path / "tables" / "jobs" / "part-0.parquet")
    with pytest.raises(InputError, match=r"part-0\.parquet: columns differ"):
        read_tables(tmp_path)


@pytest.fixture
def gate_files(planted, shipped, tmp_path):
    from srfa.closed_loop_report import write_closed_loop
    from srfa.coefficients import FitConfig
    from srfa.validate import cross_validate, write_reports
    from tests.planted import LinearEstimator

    validated = cross_validate(LinearEstimator(), planted, shipped, split="time", config=FitConfig())
    (tmp_path / "before").mkdir()
    for folder, error in ((tmp_path, 30.0), (tmp_path / "before", 2.0)):
        write_reports((validated,), folder / "report.json")
        loop = closed_loop_report("linear", [replay("a", e2e=error), replay("b", e2e=error)])
        write_closed_loop(loop, folder / "closed_loop.json")
    (tmp_path / "limits.yaml").write_text("splits: {time: {}}\nclosed_loop: {max_median_e2e_pct: 50}\n")
    return tmp_path


def test_the_gate_judges_a_closed_loop_and_the_one_beside_its_baseline(gate_files, capsys):
    given = ["gate", str(gate_files / "report.json"), "--limits", str(gate_files / "limits.yaml")]
    assert main(given) == 1
    assert "closed loop: is required and was not made" in capsys.readouterr().err
    loop = ["--closed-loop", str(gate_files / "closed_loop.json")]
    assert main([*given, *loop]) == 0
    assert main([*given, *loop, "--baseline", str(gate_files / "before" / "report.json")]) == 1
    assert "median error of E2E 2.0 -> 30.0 %" in capsys.readouterr().err
