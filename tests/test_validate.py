import numpy as np
import pyarrow as pa
import pytest

from srfa.coefficients import FitConfig
from srfa.errors import DataInvalidError, InputError
from srfa.estimators import estimator_named
from srfa.observations import from_table
from srfa.validate import cross_predict, cross_validate, fold_summaries, read_reports, write_reports
from tests.planted import GPUS, LinearEstimator, planted_observations, planted_table, scaled_labels

CONFIG = FitConfig()
SPLITS = ("leave-one-gpu-out", "leave-one-model-out", "dense-to-moe", "leave-one-workload-out", "time")


@pytest.mark.parametrize("split", SPLITS)
def test_a_law_the_estimator_can_express_transfers_to_every_held_out_group(split, planted, shipped):
    report = cross_validate(LinearEstimator(), planted, shipped, split=split, config=CONFIG)
    assert report.folds
    assert all(fold.errors.mape_pct < 1e-4 for fold in report.folds)


def test_noise_of_the_labels_comes_back_as_error(shipped):
    noisy = planted_observations(noise=0.05, steps_per_job=60)
    report = cross_validate(LinearEstimator(), noisy, shipped, split="leave-one-gpu-out", config=CONFIG)
    expected = 100 * 0.05 * np.sqrt(2 / np.pi)
    for fold in report.folds:
        assert fold.errors.mape_pct == pytest.approx(expected, rel=0.1)
        assert fold.errors.mape_interval_pct.low < expected < fold.errors.mape_interval_pct.high


def test_a_group_that_breaks_the_law_is_the_one_with_the_error(shipped):
    table = planted_table()
    slow = np.where(np.array(table["gpu"].to_pylist()) == GPUS[1], 1.3, 1.0)
    report = cross_validate(
        LinearEstimator(), from_table(scaled_labels(table, slow)), shipped, split="leave-one-gpu-out", config=CONFIG
    )
    held_out = {fold.held_out: fold.errors.bias_pct for fold in report.folds}
    assert held_out[GPUS[0]] > 20
    assert held_out[GPUS[1]] == pytest.approx(100 * (1 / 1.3 - 1), abs=0.1)


def test_permuting_the_rows_changes_nothing(shipped):
    table = planted_table(noise=0.1)
    order = np.random.default_rng(0).permutation(table.num_rows)
    one, other = (
        cross_validate(LinearEstimator(), from_table(rows), shipped, split="leave-one-model-out", config=CONFIG)
        for rows in (table, table.take(order))
    )
    assert one == other


def test_taking_every_row_twice_leaves_the_mape(shipped):
    table = planted_table(noise=0.1)
    twice = table.take(np.repeat(np.arange(table.num_rows), 2))
    once, doubled = (
        cross_validate(LinearEstimator(), from_table(rows), shipped, split="leave-one-gpu-out", config=CONFIG)
        for rows in (table, twice)
    )
    for a, b in zip(once.folds, doubled.folds, strict=True):
        assert b.errors.mape_pct == pytest.approx(a.errors.mape_pct)
        assert b.errors.n_steps == 2 * a.errors.n_steps
        assert b.errors.mape_interval_pct.low == pytest.approx(a.errors.mape_interval_pct.low)


def test_partitions_of_a_kind_add_up_to_their_fold(shipped):
    noisy = planted_observations(noise=0.1)
    report = cross_validate(LinearEstimator(), noisy, shipped, split="leave-one-gpu-out", config=CONFIG)
    for fold in report.folds:
        for kind in ("workload", "model", "gpu", "phase"):
            parts = [part.errors for part in fold.partitions if part.kind == kind]
            assert sum(part.n_steps for part in parts) == fold.errors.n_steps
            mean = sum(part.mape_pct * part.n_steps for part in parts) / fold.errors.n_steps
            assert mean == pytest.approx(fold.errors.mape_pct)


def test_errors_that_cancel_in_a_fold_show_in_its_partitions(shipped):
    table = planted_table()
    model = np.array(table["model"].to_pylist())
    rows = scaled_labels(
        table, np.where(model == "Qwen/Qwen3-8B", 1.25, np.where(model == "meta-llama/Llama-3.1-8B", 0.8, 1))
    )
    report = cross_validate(LinearEstimator(), from_table(rows), shipped, split="leave-one-gpu-out", config=CONFIG)
    bias = {part.name: part.errors.bias_pct for part in report.folds[0].partitions if part.kind == "model"}
    assert bias["Qwen/Qwen3-8B"] < -10
    assert bias["meta-llama/Llama-3.1-8B"] > 10
    assert abs(report.folds[0].errors.bias_pct) < 8


def test_phases_follow_from_the_tokens(planted, shipped):
    report = cross_validate(LinearEstimator(), planted, shipped, split="leave-one-gpu-out", config=CONFIG)
    phases = {part.name for part in report.folds[0].partitions if part.kind == "phase"}
    assert phases == {"prefill-only", "decode-only", "mixed"}


def test_processes_give_what_one_process_gives(planted, shipped):
    roofline = estimator_named("roofline")
    told = []
    one, two = (
        cross_validate(
            roofline,
            planted,
            shipped,
            split="leave-one-model-out",
            config=CONFIG,
            n_jobs=n,
            progress=lambda *a: told.append(a),
        )
        for n in (1, 2)
    )
    assert one == two
    assert told == [(1, 3), (2, 3), (3, 3)] * 2


def test_an_impossible_split_is_a_report_with_its_reason(shipped):
    table = planted_table()
    one_gpu = table.filter([gpu == GPUS[0] for gpu in table["gpu"].to_pylist()])
    report = cross_validate(LinearEstimator(), from_table(one_gpu), shipped, split="leave-one-gpu-out", config=CONFIG)
    assert report.folds == ()
    assert report.pooled is None
    assert GPUS[0] in report.impossible


def test_a_refused_fit_is_a_failed_fold_with_its_reason(planted, shipped):
    report = cross_validate(LinearEstimator(fits=False), planted, shipped, split="leave-one-gpu-out", config=CONFIG)
    assert [fold.failure for fold in report.folds] == ["planted: this estimator refuses to fit"] * 2
    assert report.pooled is None


def test_predictions_that_are_not_finite_fail_their_fold(planted, shipped):
    report = cross_validate(
        LinearEstimator(slower=np.nan, slower_from_us=0), planted, shipped, split="time", config=CONFIG
    )
    assert "not finite" in report.folds[0].failure


def test_a_fit_that_did_not_converge_still_has_its_errors(planted, shipped):
    report = cross_validate(LinearEstimator(converges=False), planted, shipped, split="time", config=CONFIG)
    assert not report.folds[0].converged
    assert report.folds[0].errors


def test_labels_faster_than_light_are_left_out_and_counted(shipped):
    table = planted_table(steps_per_job=200)
    torn = np.ones(table.num_rows)
    torn[0] = 0.01
    report = cross_validate(
        LinearEstimator(), from_table(scaled_labels(table, torn)), shipped, split="time", config=CONFIG
    )
    assert report.n_impossible_labels == 1
    assert report.n_steps == table.num_rows - 1


def test_labels_in_the_wrong_unit_are_refused(shipped):
    with pytest.raises(DataInvalidError, match="faster than light"):
        cross_validate(
            LinearEstimator(), from_table(scaled_labels(planted_table(), 1e-3)), shipped, split="time", config=CONFIG
        )


def test_held_out_predictions_belong_to_their_rows(planted, shipped):
    kept = cross_predict(LinearEstimator(), planted, shipped, split="leave-one-gpu-out", config=CONFIG)
    table = kept.held_out
    assert table.num_rows == planted.n_steps
    assert table["held_out"].to_pylist() == table["gpu"].to_pylist()
    assert np.allclose(table["step_time_us"].to_numpy(), table["predicted_step_time_us"].to_numpy(), rtol=1e-6)
    assert np.allclose(table["step_time_us"].to_numpy(), 1.5 * table["linear.floor"].to_numpy() + 800)


def test_a_report_comes_back_from_its_file(planted, shipped, tmp_path):
    reports = tuple(
        cross_validate(LinearEstimator(), planted, shipped, split=split, config=CONFIG)
        for split in ("time", "dense-to-moe")
    )
    write_reports(reports, tmp_path / "new" / "report.json")
    assert read_reports(tmp_path / "new" / "report.json") == reports
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.json"]


def test_a_report_with_an_unknown_field_is_refused(tmp_path):
    (tmp_path / "r.json").write_text('{"schema_version": 1, "reports": [], "note": 1}')
    with pytest.raises(InputError, match=r"r\.json: note: "):
        read_reports(tmp_path / "r.json")


def test_a_missing_report_is_refused_with_the_verb_that_makes_one(tmp_path):
    with pytest.raises(InputError, match="srfa validate"):
        read_reports(tmp_path / "none.json")


def test_summaries_hold_every_fold_that_succeeded(planted, shipped):
    report = cross_validate(LinearEstimator(), planted, shipped, split="leave-one-gpu-out", config=CONFIG)
    assert [(one.held_out, one.n_steps) for one in fold_summaries(report)] == [(gpu, 108) for gpu in GPUS]


def test_each_folds_fit_is_the_one_that_made_its_held_out_predictions(shipped):
    linear, noisy = LinearEstimator(), planted_observations(noise=0.05)
    kept = cross_predict(linear, noisy, shipped, split="leave-one-workload-out", config=CONFIG)
    features, jobs = linear.features(noisy, shipped), np.array(noisy.job_ids)
    predicted = np.array(kept.held_out["predicted_step_time_us"])
    assert [fit.held_out for fit in kept.fits] == [fold.held_out for fold in kept.report.folds]
    for fit in kept.fits:
        again = linear.predict(fit.coefficients, features.take(np.flatnonzero(np.isin(jobs, fit.job_ids))))
        assert np.array_equal(again, predicted[np.isin(kept.held_out["job_id"], fit.job_ids)])
        assert fit.n_train_steps + len(again) == noisy.n_steps


def test_a_fold_that_fails_has_no_fit(planted, shipped):
    kept = cross_predict(LinearEstimator(fits=False), planted, shipped, split="time", config=CONFIG)
    assert kept.fits == ()


def test_a_job_with_steps_on_both_sides_is_not_among_the_unseen(planted, shipped):
    table = planted.table
    one_id = pa.array(
        [
            "imported" if w == "decode" else j
            for w, j in zip(table["workload"].to_pylist(), table["job_id"].to_pylist(), strict=True)
        ]
    )
    imported = from_table(table.set_column(table.column_names.index("job_id"), "job_id", one_id))
    kept = cross_predict(LinearEstimator(), imported, shipped, split="leave-one-gpu-out", config=CONFIG)
    assert all(fit.job_ids and "imported" not in fit.job_ids for fit in kept.fits)
