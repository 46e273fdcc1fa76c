import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srfa.errors import ObservationsError, WrongClockError
from srfa.observations import from_table, load_observations, load_unlabelled
from tests.steps import observations, random_steps, step, table


def test_lists_and_configurations_are_read():
    seen = observations([step(decode_context_tokens=[5, 7]), step(gpu="a100-sxm-80gb", job_id="other")])
    assert seen.decode_context_tokens.sum().tolist() == [12.0, 100.0]
    assert [seen.configurations[i].gpu for i in seen.configuration_index] == ["h100-sxm-80gb", "a100-sxm-80gb"]


def test_rows_marked_invalid_are_left_out():
    assert observations([step(valid=True), step(valid=False, step_time_us=-1.0)]).n_steps == 1


def test_sums_stand_in_for_lists():
    row = step(num_decode_reqs=4, decode_tokens=4, sum_decode_context_tokens=400.0)
    for name in ("prefill_new_tokens", "prefill_context_tokens", "decode_context_tokens"):
        del row[name]
    seen = observations([row])
    assert seen.decode_context_tokens.values.tolist() == [100.0] * 4


def test_files_with_and_without_lists_can_be_read_together(tmp_path):
    bare = step(num_decode_reqs=2, decode_tokens=2, sum_decode_context_tokens=50.0)
    del bare["decode_context_tokens"]
    pq.write_table(table([step(decode_context_tokens=[9])]), tmp_path / "a.parquet")
    pq.write_table(table([bare]), tmp_path / "b.parquet")
    seen = load_observations([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert seen.decode_context_tokens.sum().tolist() == [9.0, 50.0]


def test_take_equals_selecting_the_rows_first():
    rows = list(random_steps(50))
    picks = np.array([3, 40, 3, 7])
    taken, direct = observations(rows).take(picks), observations([rows[i] for i in picks])
    assert taken.decode_context_tokens.sum().tolist() == direct.decode_context_tokens.sum().tolist()
    assert taken.step_time_us.tolist() == direct.step_time_us.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_time_us": -1.0}, r"step_time_us is -1.0 in row 1 \(1 such rows\)"),
        ({"step_time_us": float("nan")}, "step_time_us is nan in row 1"),
        ({"step_time_us": float("inf")}, "step_time_us is inf"),
        ({"num_decode_reqs": 7}, "another number of requests than num_decode_reqs in row 1"),
        (
            {"prefill_new_tokens": [5], "prefill_context_tokens": [0], "prefill_tokens": 9},
            "does not sum to prefill_tokens",
        ),
        ({"prefill_new_tokens": [5], "prefill_context_tokens": []}, "prefill_context_tokens is not parallel"),
        ({"decode_context_tokens": [], "decode_tokens": 0}, r"no token is scheduled in row 1 \(1 such rows\)"),
        ({"gpu": None}, r"column gpu is null in row 1 \(1 such rows\); fill or drop them"),
        ({"step_time_us": None}, r"column step_time_us is null in row 1 \(1 such rows\)"),
        ({"num_decode_reqs": -1}, r"column num_decode_reqs is -1 in row 1 .*, expected a whole number of at least 0"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0 in row 1 .*, expected a whole number of at least 1"),
    ],
)
def test_an_impossible_row_is_refused_by_column_and_place(change, message):
    with pytest.raises(ObservationsError, match=message):
        observations([step(), step(**change)])


def test_missing_columns_are_all_named():
    with pytest.raises(ObservationsError, match=re.escape("required column(s) gpu, model missing (1 rows")):
        from_table(table([step()]).drop_columns(["gpu", "model"]))


def test_a_column_of_the_wrong_type_is_refused():
    words = table([step()]).set_column(4, "step_time_us", pa.array(["fast"]))
    with pytest.raises(ObservationsError, match="column step_time_us is string, expected double"):
        from_table(words)


def test_time_inside_schedule_is_refused_as_a_label():
    raw = pa.table({"step.duration_us": [700.0], "step.id": [1]})
    with pytest.raises(WrongClockError, match="not the busy-loop cycle"):
        from_table(raw)
    with pytest.raises(WrongClockError, match=re.escape("step_time_method='step.duration_us'")):
        observations([step(step_time_method="step.duration_us")])


def test_a_missing_file_and_a_file_of_another_kind_are_named(tmp_path):
    with pytest.raises(ObservationsError, match=r"absent\.parquet: no such file"):
        load_observations([tmp_path / "absent.parquet"])
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ObservationsError, match=r"text\.parquet: not a Parquet file"):
        load_observations([tmp_path / "text.parquet"])


def test_no_valid_row_at_all_is_refused():
    with pytest.raises(ObservationsError, match="no valid step"):
        observations([step(valid=False)])


def test_tokens_without_a_request_are_refused_with_their_row():
    with pytest.raises(ObservationsError, match="tokens and no request in row 1"):
        observations([step(), step(num_decode_reqs=0, decode_tokens=3, decode_context_tokens=[])])


def test_a_bad_row_is_told_by_its_own_file_and_its_row_there(tmp_path):
    pq.write_table(table([step()] * 3), tmp_path / "a.parquet")
    rows = [step(valid=False), step(valid=True), step(valid=True, step_time_us=0.0), step(valid=True, step_time_us=0.0)]
    pq.write_table(table(rows), tmp_path / "b.parquet")
    with pytest.raises(ObservationsError, match=r"b\.parquet: column step_time_us is 0\.0 in row 2 \(2 such rows\)"):
        load_observations([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_taken_steps_keep_their_place():
    seen = observations([step(job_id=name) for name in "abc"]).take(np.array([2, 0]))
    assert seen.origin.row_of(np.array([True, False])) == "row 2 (1 such rows)"


def test_a_folder_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(ObservationsError, match=r"is a folder; name the Parquet files in it"):
        load_observations([tmp_path])


def test_steps_to_predict_need_no_label_and_nothing_else_is_forgiven(tmp_path):
    path = tmp_path / "planned.parquet"
    pq.write_table(table([step(sched_time_us=1.0)] * 2).drop_columns(["step_time_us"]), path)
    assert np.isnan(load_unlabelled([path]).step_time_us).all()
    pq.write_table(table([step(step_time_us=None), step()]), path)
    assert load_unlabelled([path]).step_time_us.tolist()[1:] == [10_000.0]
    for change in ({"gpu": None}, {"step_time_us": -1.0}, {"step_time_us": float("inf")}, {"prefill_tokens": -1}):
        pq.write_table(table([step(), step(**change)]), path)
        with pytest.raises(ObservationsError, match=r"planned\.parquet: column \w+ is .* in row 1 \(1 such rows\)"):
            load_unlabelled([path])


def test_dtypes_and_no_quantisation_are_understood_as_people_write_them():
    rows = [step(dtype=dtype, quantization=none) for dtype in ("torch.bfloat16", "BF16") for none in (None, "none")]
    assert {(one.dtype, one.quantization) for one in observations(rows).configurations} == {("bfloat16", None)}
