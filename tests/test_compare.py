import json
from dataclasses import dataclass, field, replace
from itertools import pairwise

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srfa import compare as module
from srfa.cli import main
from srfa.coefficients import FitConfig
from srfa.compare import compare_files, compare_with_yardsticks, estimators_named
from srfa.errors import FitError, IncompleteError, InputError, UnknownConfigurationError, UsageError, WrongClockError
from srfa.estimators import ESTIMATORS
from srfa.folds import SPLITS
from srfa.leaderboard import read_leaderboard, write_leaderboard
from srfa.leaderboard_figure import draw_leaderboard
from srfa.leaderboard_page import columns_of, left_out_grid, split_grid, summary_grid
from srfa.metrics import mean_interval
from srfa.observations import from_table
from srfa.standings import FEWEST_JOBS, leaderboard_of
from srfa.validate import cross_validate, cross_validate_all
from tests.planted import GPUS, LinearEstimator, planted_observations, planted_table, scaled_labels
from tests.steps import ROOT

CONFIG = FitConfig()
GPU_SPLIT = "leave-one-gpu-out"


@dataclass(frozen=True)
class NoisyEstimator(LinearEstimator):
    """Predicts the planted law, times ``1 + noise`` of one draw a step; ``seed`` is its luck."""

    name: str = "noisy"
    noise: float = 0.2
    seed: int = 0

    def predict(self, coefficients, features):
        luck = np.random.default_rng([self.seed, int(features.job_index[0])])
        drawn = luck.standard_normal(features.n_steps)
        return super().predict(coefficients, features) * (1.0 + self.noise * drawn)


@dataclass(frozen=True)
class PickyEstimator(LinearEstimator):
    """Predicts only GPUs that it was fitted to, like one that learns by configuration."""

    name: str = "picky"
    known: tuple[str, ...] = GPUS[:1]

    def predict(self, coefficients, features):
        gpus = {features.configurations[one].gpu for one in np.unique(features.configuration_index)}
        if unknown := gpus - set(self.known):
            raise UnknownConfigurationError(f"no coefficients for {min(unknown)}")
        return super().predict(coefficients, features)


@dataclass(frozen=True)
class CountingEstimator(LinearEstimator):
    """Counts what is asked of it."""

    name: str = "counting"
    asked: list[str] = field(default_factory=list)

    def features(self, observations, catalog):
        self.asked.append("features")
        return super().features(observations, catalog)

    def fit(self, features, config, *, prior=None):
        self.asked.append("fit")
        return super().fit(features, config, prior=prior)


@dataclass(frozen=True)
class FeaturelessEstimator(LinearEstimator):
    name: str = "featureless"

    def features(self, observations, catalog):
        raise FitError("planted: no features of these steps")


LINEAR, NOISY = LinearEstimator(), NoisyEstimator()


def board_of(observations, catalog, *estimators, splits=(GPU_SPLIT,)):
    (reports,) = cross_validate_all(estimators, [observations], catalog, splits=splits, config=CONFIG)
    return leaderboard_of({"data": reports})


def the_split(board):
    return board.datasets[0].splits[0]


def standings(rows):
    return {row.estimator: row.standing for row in rows}


def test_the_estimator_that_is_truly_better_is_best_on_every_group_and_the_other_surely_worse(planted, shipped):
    split = the_split(board_of(planted, shipped, NOISY, LINEAR))
    assert [(row.estimator, row.rank, row.standing) for row in split.ranking] == [
        ("linear", 1, "best"),
        ("noisy", 2, "worse"),
    ]
    for group in split.groups:
        assert group.best == "linear"
        assert standings(group.entries) == {"linear": "best", "noisy": "worse"}
        (noisy, linear) = group.entries
        assert noisy.gap.mape_pct_points == pytest.approx(noisy.errors.mape_pct - linear.errors.mape_pct)
        assert 0 < noisy.gap.interval_pct_points.low < noisy.gap.mape_pct_points < noisy.gap.interval_pct_points.high


@pytest.mark.parametrize("split", [GPU_SPLIT, "leave-one-job-out"])
def test_two_of_equal_skill_are_tied_but_for_about_one_trial_in_twenty(planted, shipped, split):
    lucky = [NoisyEstimator(name=str(n), seed=n) for n in range(31)]
    (reports,) = cross_validate_all(lucky, [planted], shipped, splits=(split,), config=CONFIG)
    rankings = [the_split(leaderboard_of({"data": pair})).ranking for pair in pairwise(reports)]
    assert sum("worse" in standings(ranking).values() for ranking in rankings) <= 5
    assert sum("tied" in standings(ranking).values() for ranking in rankings) >= 25


def test_few_jobs_never_make_a_lead_sure(planted, shipped):
    split = the_split(board_of(planted, shipped, LINEAR, NOISY, splits=("time",)))
    assert split.groups[0].n_jobs < FEWEST_JOBS
    gap = split.ranking[1].gap
    assert (gap.n_jobs, gap.interval_pct_points.low > 0) == (split.groups[0].n_jobs, True)
    assert standings(split.ranking) == {"linear": "best", "noisy": "untested"}


def test_a_job_that_spans_several_groups_counts_once(shipped):
    table = planted_table()
    one_id = pa.array(
        [f"{gpu} {model}" for gpu, model in zip(table["gpu"].to_pylist(), table["model"].to_pylist(), strict=True)]
    )
    steps = from_table(table.set_column(table.column_names.index("job_id"), "job_id", one_id))
    split = the_split(board_of(steps, shipped, LINEAR, NOISY, splits=("leave-one-workload-out",)))
    gap = split.ranking[1].gap
    assert [group.n_jobs for group in split.groups] == [6, 6, 6]
    assert gap.n_jobs == 6
    assert gap.mape_pct_points == pytest.approx(split.ranking[1].mean_mape_pct - split.ranking[0].mean_mape_pct)


def test_equal_predictions_share_a_rank(planted, shipped):
    split = the_split(board_of(planted, shipped, LINEAR, replace(LINEAR, name="twin")))
    assert [row.rank for row in split.ranking] == [1, 1]
    assert standings(split.ranking) == {"linear": "best", "twin": "tied"}


def test_the_gap_of_a_split_is_the_difference_of_the_mean_mapes(planted, shipped):
    first, second = the_split(board_of(planted, shipped, NOISY, LINEAR, splits=("leave-one-model-out",))).ranking
    assert second.gap.mape_pct_points == pytest.approx(second.mean_mape_pct - first.mean_mape_pct)
    assert second.mean_mape_pct == pytest.approx(
        np.mean(
            [
                fold.errors.mape_pct
                for fold in cross_validate(NOISY, planted, shipped, split="leave-one-model-out", config=CONFIG).folds
            ]
        )
    )


def test_the_interval_of_a_group_is_the_bootstrap_of_differences_job_by_job(planted, shipped):
    one, other = (
        cross_validate(estimator, planted, shipped, split=GPU_SPLIT, config=CONFIG).folds[0]
        for estimator in (LINEAR, NOISY)
    )
    rises = [b.mape_pct - a.mape_pct for a, b in zip(one.jobs, other.jobs, strict=True)]
    expected = mean_interval(rises, [job.n_steps for job in one.jobs])
    found = the_split(board_of(planted, shipped, LINEAR, NOISY)).groups[0].entries[1].gap.interval_pct_points
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_held_out_job_leaves_a_lead_untested(shipped):
    steps = planted_observations()
    split = the_split(board_of(steps, shipped, LINEAR, NOISY, splits=("leave-one-job-out",)))
    assert {entry.standing for group in split.groups for entry in group.entries} == {"best", "untested"}
    assert split.ranking[1].standing == "worse"  # all jobs together do tell


def test_who_refuses_half_ranks_behind_whom_it_beats_on_the_other_half(planted, shipped):
    split = the_split(board_of(planted, shipped, PickyEstimator(), NOISY))
    noisy, picky = split.ranking
    assert (noisy.estimator, noisy.rank, noisy.n_predicted, noisy.n_folds) == ("noisy", 1, 2, 2)
    assert (picky.estimator, picky.rank, picky.n_predicted, picky.n_folds) == ("picky", 2, 1, 2)
    assert picky.mean_mape_pct < noisy.mean_mape_pct
    assert picky.standing == "better"
    refused = [(group.held_out, entry.refused) for group in split.groups for entry in group.entries if entry.refused]
    assert refused == [(GPUS[1], f"no coefficients for {GPUS[1]}")]


def test_who_refuses_everything_is_last_on_the_board_and_still_there(planted, shipped):
    board = board_of(planted, shipped, LinearEstimator(name="none", fits=False), NOISY, LINEAR)
    assert columns_of(board) == ("linear", "noisy", "none")
    last = the_split(board).ranking[-1]
    assert (last.rank, last.n_predicted, last.mean_mape_pct, last.standing) == (3, 0, None, "refused")
    assert [group.best for group in the_split(board).groups] == ["linear", "linear"]


def test_refused_features_refuse_every_fold_of_that_estimator_alone(planted, shipped):
    split = the_split(board_of(planted, shipped, FeaturelessEstimator(), LINEAR))
    assert standings(split.ranking) == {"linear": "best", "featureless": "refused"}
    assert {entry.refused for group in split.groups for entry in group.entries} == {
        "",
        "planted: no features of these steps",
    }


def test_a_fit_that_did_not_converge_is_shown_as_such(planted, shipped):
    board = board_of(planted, shipped, replace(LINEAR, name="lost", converges=False), NOISY)
    assert all(row[3].endswith("* !") for row in split_grid(the_split(board), columns_of(board)).rows)
    assert the_split(board).ranking[0].n_converged == 0


def test_every_group_says_its_steps_and_jobs(planted, shipped):
    groups = the_split(board_of(planted, shipped, LINEAR, NOISY)).groups
    assert [(group.held_out, group.n_steps, group.n_jobs) for group in groups] == [(gpu, 108, 9) for gpu in GPUS]
    assert all(entry.errors.n_steps == 108 for group in groups for entry in group.entries)


def test_all_share_one_code_path_with_a_validation_by_itself(planted, shipped):
    splits = (GPU_SPLIT, "time")
    (reports,) = cross_validate_all((LINEAR, NOISY), [planted], shipped, splits=splits, config=CONFIG)
    alone = [
        cross_validate(estimator, planted, shipped, split=split, config=CONFIG)
        for estimator in (LINEAR, NOISY)
        for split in splits
    ]
    assert list(reports) == alone


def test_processes_change_no_figure(planted, shipped):
    told = []
    one, two = (
        cross_validate_all(
            [ESTIMATORS["roofline"]],
            [planted, planted_observations(noise=0.1)],
            shipped,
            splits=("time", GPU_SPLIT),
            config=CONFIG,
            n_jobs=n,
            progress=lambda *done: told.append(done),
        )
        for n in (1, 2)
    )
    assert one == two
    assert told == [(n, 6) for n in range(1, 7)] * 2


def test_features_are_computed_once_a_data_set_and_not_once_a_fold(planted, shipped):
    counting = CountingEstimator()
    cross_validate_all([counting], [planted, planted], shipped, splits=(GPU_SPLIT, "time"), config=CONFIG)
    assert counting.asked.count("features") == 2
    assert counting.asked.count("fit") == 2 * (2 + 1)


def test_reports_of_other_steps_cannot_be_compared(planted, shipped):
    shorter = planted_observations(steps_per_job=10)
    reports = [
        cross_validate(LINEAR, planted, shipped, split="time", config=CONFIG),
        cross_validate(NOISY, shorter, shipped, split="time", config=CONFIG),
    ]
    with pytest.raises(InputError, match="data, time: the reports of linear and noisy are not of the same steps"):
        leaderboard_of({"data": reports})


def test_a_missing_report_is_refused_rather_than_left_unranked(planted, shipped):
    reports = [
        cross_validate(LINEAR, planted, shipped, split="time", config=CONFIG),
        cross_validate(LINEAR, planted, shipped, split=GPU_SPLIT, config=CONFIG),
        cross_validate(NOISY, planted, shipped, split=GPU_SPLIT, config=CONFIG),
    ]
    with pytest.raises(InputError, match="data, time: reports of linear; expected one of each of linear, noisy"):
        leaderboard_of({"data": reports})


def test_a_leaderboard_comes_back_from_its_file(planted, shipped, tmp_path):
    board = board_of(planted, shipped, LINEAR, NOISY, PickyEstimator(), splits=(GPU_SPLIT, "leave-one-job-out"))
    write_leaderboard(board, tmp_path / "new" / "leaderboard.json")
    assert read_leaderboard(tmp_path / "new" / "leaderboard.json") == board
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["leaderboard.json"]


def test_a_leaderboard_with_an_unknown_field_is_refused(tmp_path):
    (tmp_path / "l.json").write_text(
        '{"schema_version": 1, "estimators": [], "datasets": [], "overall": [], "note": 1}'
    )
    with pytest.raises(InputError, match=r"l\.json: note: .*srfa compare"):
        read_leaderboard(tmp_path / "l.json")
    with pytest.raises(InputError, match="srfa compare"):
        read_leaderboard(tmp_path / "none.json")


def test_the_summary_shows_rank_mean_and_coverage(planted, shipped):
    board = board_of(planted, shipped, PickyEstimator(), NOISY, LINEAR)
    grid = summary_grid(board)
    row = dict(zip(grid.heads, grid.rows[0], strict=True))
    assert row["linear"] == "1. 0.0 *"
    assert row["noisy"].startswith("2. ")
    assert row["picky"].endswith("[1/2]")
    assert grid.rows[-1] == ("all", "mean rank", "2", "1.0", "2.0", "3.0 [1/2]")


def test_the_columns_of_a_table_are_the_estimators_and_its_rows_the_groups(planted, shipped):
    board = board_of(planted, shipped, PickyEstimator(), NOISY, LINEAR)
    grid = split_grid(the_split(board), columns_of(board))
    assert grid.heads == ("held out", "steps", "jobs", "linear", "noisy", "picky")
    assert grid.rows[1] == (GPUS[1], "108", "9", "0.0 (0.0-0.0) *", grid.rows[1][4], "refused")
    errors = the_split(board).groups[1].entries[1].errors
    interval = errors.mape_interval_pct
    assert grid.rows[1][4] == f"{errors.mape_pct:.1f} ({interval.low:.1f}-{interval.high:.1f})"


def test_many_refusals_for_one_reason_are_one_row(planted, shipped):
    board = board_of(planted, shipped, LinearEstimator(name="none", fits=False), LINEAR, splits=("leave-one-job-out",))
    assert left_out_grid(board).rows == (
        (
            "data",
            "leave-one-job-out",
            "none",
            "job-00, job-01, job-02 and 15 more",
            "planted: this estimator refuses to fit",
        ),
    )


@pytest.mark.parametrize("splits", [(GPU_SPLIT,), (GPU_SPLIT, "leave-one-job-out", "time", "ep1-to-ep")])
def test_the_picture_is_written_with_ink(planted, shipped, tmp_path, splits):
    board = board_of(planted, shipped, LINEAR, NOISY, PickyEstimator(), splits=splits)
    draw_leaderboard(board, tmp_path / "l.png")
    picture = matplotlib.image.imread(tmp_path / "l.png")
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.01
    assert picture[:, [0, -1], :3].min() == 1.0, "text runs over the sides"


def test_a_board_without_a_possible_split_is_still_drawn(planted, shipped, tmp_path):
    board = board_of(planted, shipped, LINEAR, splits=("ep1-to-ep",))
    assert board.overall == ()
    draw_leaderboard(board, tmp_path / "l.png")
    assert (tmp_path / "l.png").stat().st_size


def test_a_validated_estimator_is_compared_without_a_second_fit(planted, shipped, monkeypatch):
    counting = CountingEstimator()
    reports = [cross_validate(counting, planted, shipped, split=split, config=CONFIG) for split in (GPU_SPLIT, "time")]
    counting.asked.clear()
    monkeypatch.setattr(module, "YARDSTICKS", ("counting", "roofline", "not registered"))
    monkeypatch.setitem(ESTIMATORS, "counting", counting)
    board = compare_with_yardsticks("data", reports, planted, shipped)
    assert counting.asked == []
    assert board.estimators == ("counting", "roofline")
    assert [split.split for split in board.datasets[0].splits] == [GPU_SPLIT, "time"]
    entry = board.datasets[0].splits[0].groups[0].entries[0]
    assert entry.errors == reports[0].folds[0].errors


def test_the_yardsticks_hold_the_one_that_fits_nothing():
    assert "roofline" in module.YARDSTICKS
    assert len(set(module.YARDSTICKS)) == len(module.YARDSTICKS)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A good file, one with one GPU alone, and one whose clock is wrong."""
    monkeypatch.chdir(tmp_path)
    table = planted_table(noise=0.02)
    pq.write_table(table, "good.parquet")
    pq.write_table(table.filter([gpu == GPUS[0] for gpu in table["gpu"].to_pylist()]), "one-gpu.parquet")
    pq.write_table(
        table.rename_columns([n.replace("step_time_us", "step.duration_us") for n in table.column_names]),
        "clock.parquet",
    )
    return tmp_path


def run(*arguments):
    return main(
        [str(part) for part in ("compare", *arguments, "--gpus", ROOT / "hardware", "--models", ROOT / "models")]
    )


def test_files_are_never_pooled_and_the_refused_one_is_named(files, shipped):
    paths = [files / name for name in ("good.parquet", "clock.parquet", "one-gpu.parquet", "good.parquet")]
    found = compare_files(paths, [LINEAR, NOISY], shipped, splits=(GPU_SPLIT, "time"), config=CONFIG)
    boards = {board.name: board for board in found.board.datasets}
    assert list(boards) == ["good.parquet", "one-gpu.parquet", "clock.parquet"]
    assert [boards["good.parquet"].n_jobs, boards["one-gpu.parquet"].n_jobs] == [18, 9]
    assert "step.duration_us" in boards["clock.parquet"].refused
    assert GPUS[0] in boards["one-gpu.parquet"].splits[0].impossible
    assert list(boards["one-gpu.parquet"].provenance.data_sha256) == ["one-gpu.parquet"]
    assert boards["good.parquet"].provenance.gpus == GPUS
    with pytest.raises(IncompleteError, match=r"1 of 3 data sets were refused:\n.*clock\.parquet"):
        found.require_complete()


def test_where_all_files_are_refused_the_error_is_the_first_ones_own(files, shipped):
    found = compare_files([files / "clock.parquet", files / "none.parquet"], [LINEAR], shipped, config=CONFIG)
    assert found.is_empty
    with pytest.raises(WrongClockError):
        found.require_complete()


def test_labels_faster_than_light_refuse_their_file_alone(files, shipped):
    pq.write_table(scaled_labels(planted_table(), 1e-3), "fast.parquet")
    found = compare_files(
        [files / "fast.parquet", files / "good.parquet"], [LINEAR], shipped, splits=("time",), config=CONFIG
    )
    assert list(found.refusals) == ["fast.parquet"]
    assert found.board.datasets[0].splits[0].ranking[0].standing == "best"


def test_files_that_share_a_name_go_by_their_paths(files, shipped, tmp_path):
    (tmp_path / "other").mkdir()
    pq.write_table(planted_table(), tmp_path / "other" / "good.parquet")
    paths = [files / "good.parquet", files / "other" / "good.parquet"]
    found = compare_files(paths, [LINEAR], shipped, splits=("time",), config=CONFIG)
    assert [board.name for board in found.board.datasets] == [path.as_posix() for path in paths]


def test_the_verb_shows_tables_writes_the_file_and_draws(files, capsys, monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "linear", LINEAR)
    more = ["--split", GPU_SPLIT, "--split", "time", "--estimators", "roofline,linear"]
    assert run("good.parquet", *more, "--out", "out/l.json", "--plot", "l.png") == 0
    shown = capsys.readouterr()
    board = read_leaderboard(files / "out" / "l.json")
    assert board.estimators == ("roofline", "linear")
    for text in (f"good.parquet, {GPU_SPLIT}", "summary", "mean rank", *GPUS):
        assert text in shown.out
    assert "wrote out/l.json" in shown.err
    assert matplotlib.image.imread(files / "l.png").std() > 0.01


def test_by_default_every_split_and_estimator_is_there(files, capsys, monkeypatch):
    monkeypatch.delitem(ESTIMATORS, "srfa-seed")
    assert run("good.parquet", "--out", "l.json", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [split["split"] for split in document["datasets"][0]["splits"]] == list(SPLITS)
    assert document["estimators"] == list(ESTIMATORS)
    impossible = {split["split"] for split in document["datasets"][0]["splits"] if split["impossible"]}
    assert impossible == {"ep1-to-ep"}


def test_a_refused_file_among_good_ones_ends_with_3_and_the_board_is_written(files, capsys):
    arguments = ("--split", "time", "--estimators", "roofline", "--out", "l.json")
    assert run("clock.parquet", "good.parquet", *arguments) == 3
    shown = capsys.readouterr()
    assert "clock.parquet" in shown.out
    assert "step.duration_us" in shown.err
    assert [board.name for board in read_leaderboard(files / "l.json").datasets] == ["good.parquet", "clock.parquet"]


@pytest.mark.parametrize(("name", "code"), [("clock.parquet", 5), ("none.parquet", 2)])
def test_only_refused_files_end_with_their_own_code_and_write_nothing(files, name, code, capsys):
    assert run(name, "--split", "time", "--estimators", "roofline", "--out", "l.json", "--plot", "l.png") == code
    assert name in capsys.readouterr().err
    assert not (files / "l.json").exists()
    assert not (files / "l.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--estimators", "roofline,rooflin"], "did you mean 'roofline'"),
        (["--split", "leave-one-gpu"], "did you mean 'leave-one-gpu-out'"),
        (["--plot", "l.bmp"], "ends in .png, .svg, .pdf"),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_is_fitted(files, arguments, says, capsys):
    assert run("good.parquet", "--out", "l.json", *arguments) == 2
    assert says in capsys.readouterr().err
    assert not (files / "l.json").exists()


def test_names_of_estimators_may_have_spaces_and_count_once():
    assert [one.name for one in estimators_named(" roofline ,, roofline")] == ["roofline"]
    with pytest.raises(UsageError, match="unknown estimator 'foo'"):
        estimators_named("foo")
