import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srfa.errors import UsageError
from srfa.folds import SPLITS, split_folds, split_named, why_impossible
from tests.planted import GPUS, MODELS, WORKLOADS
from tests.steps import catalog, observations, step

CATALOG = catalog()
RUNS = st.lists(
    st.tuples(st.sampled_from(GPUS), st.sampled_from(MODELS), st.sampled_from(WORKLOADS), st.sampled_from([4, 8])),
    min_size=1,
    max_size=12,
)


def jobs(runs, steps_of_each=2, **more):
    """One job a run, its steps scattered among those of the others."""
    rows = [
        step(job_id=f"j{n}", gpu=gpu, model=model, workload=workload, tensor_parallel_size=tp, **more)
        for _ in range(steps_of_each)
        for n, (gpu, model, workload, tp) in enumerate(runs)
    ]
    return observations(rows)


@settings(max_examples=60, deadline=None)
@given(runs=RUNS, split=st.sampled_from(SPLITS))
def test_no_job_is_on_both_sides_and_every_step_is_on_one(runs, split):
    steps = jobs(runs)
    ids = np.array(steps.job_ids)
    for fold in split_folds(steps, CATALOG, split):
        assert set(ids[fold.train]).isdisjoint(ids[fold.test])
        assert sorted([*fold.train, *fold.test]) == list(range(steps.n_steps))
        assert len(fold.train)
        assert len(fold.test)
        assert fold.shared_jobs == 0


@settings(max_examples=60, deadline=None)
@given(runs=RUNS, split=st.sampled_from(SPLITS))
def test_a_split_has_folds_exactly_where_no_reason_is_given(runs, split):
    steps = jobs(runs)
    assert bool(split_folds(steps, CATALOG, split)) == (why_impossible(steps, CATALOG, split) == "")


@settings(max_examples=40, deadline=None)
@given(runs=RUNS, split=st.sampled_from([split for split in SPLITS if split.startswith("leave-one")]))
def test_leaving_one_out_holds_out_every_step_once(runs, split):
    steps = jobs(runs)
    folds = split_folds(steps, CATALOG, split)
    if folds:
        assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(steps.n_steps))


def test_leave_one_gpu_out_names_the_gpus_in_order():
    steps = jobs([(GPUS[1], MODELS[0], "decode", 4), (GPUS[0], MODELS[0], "decode", 4)])
    assert [fold.held_out for fold in split_folds(steps, CATALOG, "leave-one-gpu-out")] == list(GPUS)


def test_dense_to_moe_trains_on_dense_models_alone():
    steps = jobs([(GPUS[0], model, "decode", 4) for model in MODELS])
    (fold,) = split_folds(steps, CATALOG, "dense-to-moe")
    assert {steps.strings("model")[row] for row in fold.test} == {"mistralai/Mixtral-8x7B-v0.1"}
    assert len(fold.train) == 4


@pytest.mark.parametrize(("model", "missing"), [(MODELS[0], "mixture-of-experts"), (MODELS[2], "dense")])
def test_dense_to_moe_with_one_kind_says_which_is_missing(model, missing):
    assert missing in why_impossible(jobs([(GPUS[0], model, "decode", 4)] * 3), CATALOG, "dense-to-moe")


def test_moe_to_dense_trains_on_mixtures_of_experts_alone():
    steps = jobs([(GPUS[0], model, "decode", 4) for model in MODELS])
    (fold,) = split_folds(steps, CATALOG, "moe-to-dense")
    assert fold.held_out == "dense"
    assert {steps.strings("model")[row] for row in fold.train} == {"mistralai/Mixtral-8x7B-v0.1"}
    assert {steps.strings("model")[row] for row in fold.test} == set(MODELS[:2])


@pytest.mark.parametrize(("model", "missing"), [(MODELS[0], "mixture-of-experts"), (MODELS[2], "a dense")])
def test_moe_to_dense_with_one_kind_says_which_is_missing(model, missing):
    reason = why_impossible(jobs([(GPUS[0], model, "decode", 4)] * 3), CATALOG, "moe-to-dense")
    assert missing in reason
    assert reason.startswith("moe-to-dense needs")


def expert_parallel(*sizes):
    return observations(
        [step(job_id=f"j{n}", model=MODELS[2], expert_parallel_size=size) for n, size in enumerate(sizes)]
    )


def test_ep1_to_ep_holds_out_every_size_above_1_and_an_absent_size_counts_as_1():
    (fold,) = split_folds(expert_parallel(8, 1, None, 2), CATALOG, "ep1-to-ep")
    assert (fold.held_out, fold.train.tolist(), fold.test.tolist()) == ("ep>1", [1, 2], [0, 3])


@pytest.mark.parametrize(("sizes", "missing"), [((1, None), "above 1 to hold out"), ((2, 4), "size 1 to train on")])
def test_ep1_to_ep_with_one_kind_says_which_is_missing(sizes, missing):
    assert missing in why_impossible(expert_parallel(*sizes), CATALOG, "ep1-to-ep")
    assert split_folds(expert_parallel(*sizes), CATALOG, "ep1-to-ep") == ()


def test_time_holds_out_the_jobs_that_started_last_by_the_clock():
    starts = {"a": 500, "b": 100, "c": 300, "d": 400, "e": 200}
    rows = [step(job_id=job, t_schedule_start_ns=at + later) for job, at in starts.items() for later in (0, 1000)]
    steps = observations(rows)
    (fold,) = split_folds(steps, CATALOG, "time")
    assert {steps.job_ids[row] for row in fold.test} == {"a"}


def test_time_without_a_clock_goes_by_order_of_appearance():
    rows = [step(job_id=job, t_schedule_start_ns=at) for job, at in (("late", 9), ("early", 1), ("none", None))]
    (fold,) = split_folds(observations(rows), CATALOG, "time")
    assert fold.test.tolist() == [2]


def test_one_group_is_impossible_and_the_reason_names_it():
    steps = jobs([(GPUS[0], MODELS[0], "decode", 4)] * 2)
    assert split_folds(steps, CATALOG, "leave-one-gpu-out") == ()
    assert GPUS[0] in why_impossible(steps, CATALOG, "leave-one-gpu-out")


def test_an_imported_job_that_spans_workloads_is_counted_as_shared():
    steps = observations([step(job_id="j", workload=workload) for workload in WORKLOADS])
    folds = split_folds(steps, CATALOG, "leave-one-workload-out")
    assert [fold.shared_jobs for fold in folds] == [1, 1, 1]


def test_a_missing_workload_is_a_group_of_its_own():
    steps = observations([step(job_id="j", workload=None), step(job_id="k", workload="w")])
    names = [fold.held_out for fold in split_folds(steps, CATALOG, "leave-one-workload-out")]
    assert names == ["(unnamed)", "w"]


def test_a_misspelt_split_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"leave-one-gpus-out.*did you mean 'leave-one-gpu-out'"):
        split_named("leave-one-gpus-out")
