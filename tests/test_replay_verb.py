"""``srfa replay`` and ``srfa gate --closed-loop`` from the command line, on tables as ``srfa ingest`` leaves them."""

import json

import pyarrow as pa
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


def write_run(folder, tables, catalog, *, run_id="run", refused=()):
    """Leave what ``srfa ingest --out`` leaves: of jobs that its data gates refused, the tables alone."""
    for job_id, own in tables.by_job().items():
        for name in TABLES:
            path = folder / "tables" / name / f"run_id={run_id}" / f"job_id={job_id}" / "part-0.parquet"
            write_table(getattr(own, name), path)
    observations = observations_table(tables.jobs, tables.steps, catalog.gpus)
    observations = observations.filter(pc.invert(pc.is_in(observations["job_id"], pa.array(refused, pa.string()))))
    write_table(observations, folder / "observations" / f"run_id={run_id}" / "observations.parquet")
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


def test_an_estimator_beside_coefficients_is_refused_as_they_are_of_one(ingested, capsys):
    assert main(["replay", str(ingested), "--coefficients", "c.json", "--estimator", "roofline"]) == 2
    assert "--estimator roofline: the coefficients say which estimator they are of" in capsys.readouterr().err


def test_jobs_that_the_data_gates_refused_are_named_and_neither_replayed_nor_lost(tables, shipped, tmp_path, capsys):
    refused = SOME[0]["job_id"]
    folder = write_run(tmp_path / "ingested", tables, shipped, refused=[refused])
    write_coefficients(law(), tmp_path / "coefficients.json")
    out = tmp_path / "closed_loop.json"
    folds = ["--estimator", "blackbox", "--split", "leave-one-job-out"]
    for given in (folds, ["--coefficients", str(tmp_path / "coefficients.json")]):
        assert main(["replay", str(folder), *given, "--out", str(out)]) == 0
        assert "1 job(s) without observations are left out" in (err := capsys.readouterr().err)
        assert f"  {refused}\n" in err
        report = read_closed_loop(out)
        assert report.job_ids == {row["job_id"] for row in SOME[1:]}
        assert not report.not_replayed


@pytest.fixture
def two_runs(shipped, tmp_path):
    """One matrix measured twice: the same job ids."""
    for seed, run_id in enumerate(("july", "august")):
        rows = [row | {"run_id": run_id} for row in SOME[:2]]
        write_run(tmp_path / "store", simulated_run(law(), rows, seed=seed), shipped, run_id=run_id)
    return tmp_path / "store"


def test_a_job_that_two_runs_measured_is_refused_by_name_until_one_run_is_named(two_runs, tmp_path, capsys):
    replaying = ["replay", str(two_runs), "--estimator", "blackbox", "--split", "leave-one-job-out"]
    assert main(replaying) == 2
    assert f"job {SOME[0]['job_id']} was measured in runs august, july (2 such job(s))" in capsys.readouterr().err
    out = tmp_path / "closed_loop.json"
    for run_id in ("july", "august"):
        assert main([*replaying, "--run-id", run_id, "--out", str(out)]) == 0
        own = read_tables(two_runs, run_id=run_id)
        assert set(own.jobs["run_id"].to_pylist()) == {run_id}
        measured = {one.job_id: one.n_steps.measured for one in read_closed_loop(out).replays}
        assert measured == {job_id: one.steps.num_rows for job_id, one in own.by_job().items()}


def test_a_run_that_is_not_there_ends_with_four(two_runs, capsys):
    assert main(["replay", str(two_runs), "--run-id", "may", "--split", "leave-one-job-out"]) == 4
    assert "no observations/run_id=may/ in it" in capsys.readouterr().err


@pytest.fixture
def judging(two_runs, tmp_path):
    """Ask the gate for a run's report with a run's closed loop, both made by the verbs."""
    split = ["--estimator", "blackbox", "--split", "leave-one-job-out"]
    for run_id in ("july", "august"):
        files = map(str, observation_files(two_runs, run_id=run_id))
        assert main(["validate", *files, *split, "--out", str(tmp_path / run_id / "report.json")]) == 0
        out = ["--out", str(tmp_path / run_id / "closed_loop.json")]
        assert main(["replay", str(two_runs), "--run-id", run_id, *split, *out]) == 0
    (tmp_path / "limits.yaml").write_text(
        "splits: {leave-one-job-out: {}}\nbaseline: {max_regression_pct_points: 50}\n"
        "closed_loop: {max_median_e2e_pct: 50, max_regression_pct_points: 50}\n"
    )

    def ask(reported, replayed, *further):
        given = ["--limits", tmp_path / "limits.yaml", "--closed-loop", tmp_path / replayed / "closed_loop.json"]
        return main(["gate", *map(str, (tmp_path / reported / "report.json", *given, *further))])

    return ask


def test_the_gate_takes_the_replays_of_the_files_that_were_validated_and_no_others(judging, tmp_path, capsys):
    assert judging("july", "july") == 0
    assert judging("july", "july", "--baseline", tmp_path / "august" / "report.json") == 0
    capsys.readouterr()
    assert judging("july", "august") == 2
    assert "the closed loop is of other data (2 jobs, sha256 " in capsys.readouterr().err


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
