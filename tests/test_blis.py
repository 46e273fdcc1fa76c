import numpy as np
import pyarrow as pa
import pytest

from srfa.blis import BETAS, alpha_us, blis_basis, fitted_alphas_us, project
from srfa.coefficients import CoefficientBlock
from srfa.errors import CoefficientsError
from tests.planted import planted_observations
from tests.steps import observations, step

NAMES = [name for name, _ in BETAS]


def basis_of(row, shipped):
    return dict(zip(NAMES, blis_basis(observations([row]), shipped)[0], strict=True))


def test_the_basis_of_a_dense_decode_step_by_hand(shipped):
    """Llama-3.1-8B on an H100: 32 layers, hidden 4096, 1024 KV width, MLP 14336; two requests at 1000 tokens."""
    found = basis_of(step(decode_context_tokens=[1000, 1000]), shipped)
    h100 = shipped.resolve_gpu("h100-sxm-80gb").datasheet
    parameters = 32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336)
    attention = 4 * 4096 * 32 * 2000
    kv = 2 * 1024 * 2 * 32
    assert found["decode_compute"] == pytest.approx((2 * parameters * 2 + attention) / h100.bf16_tflops / 1e6)
    assert found["weights"] == pytest.approx(2 * parameters / h100.memory_bandwidth_tbps / 1e6)
    assert found["decode_kv"] == pytest.approx(kv * 2002 / h100.memory_bandwidth_tbps / 1e6)
    assert (found["layer"], found["request"], found["step"]) == (32, 2, 1)
    assert found["prefill_compute"] == found["prefill_kv"] == found["tp_communication"] == found["ep_dispatch"] == 0


def test_reductions_move_two_activations_a_layer_and_token_around_the_ring(shipped):
    found = basis_of(step(tensor_parallel_size=4, prefill_new_tokens=[100], prefill_context_tokens=[0]), shipped)
    bandwidth = shipped.resolve_gpu("h100-sxm-80gb").datasheet.memory_bandwidth_tbps
    moved = 2 * 32 * 101 * 4096 * 2 * 2 * 3 / 4
    assert found["tp_communication"] == pytest.approx(moved / bandwidth / 1e6)


def test_experts_pay_either_the_reduction_or_the_dispatch(shipped):
    moe = {"model": "mistralai/Mixtral-8x7B-v0.1", "tensor_parallel_size": 4}
    tensor, expert = (basis_of(step(**moe, expert_parallel_size=ep), shipped) for ep in (1, 4))
    assert tensor["ep_dispatch"] == 0
    assert expert["ep_dispatch"] > 0
    assert expert["tp_communication"] == pytest.approx(tensor["tp_communication"] / 2)


def test_a_law_within_the_basis_is_recovered(shipped):
    steps = planted_observations(steps_per_job=40)
    basis = blis_basis(steps, shipped)
    planted = np.array([1.2, 0.4, 1.3, 0.7, 30.0, 4.0, 120.0, 0.0, 0.0, 1.9, 0.0])
    position = steps.table.column_names.index("step_time_us")
    labelled = observations(steps.table.set_column(position, "step_time_us", pa.array(basis @ planted)).to_pylist())
    found = project(labelled, shipped, basis @ planted)
    assert found.mape_pct < 0.01
    used = basis.any(axis=0)
    assert np.array(found.beta)[used] == pytest.approx(planted[used], rel=0.05, abs=0.05)
    assert set(found.unidentified) == {"interleaved_moe_layer", "ep_dispatch"}


def test_the_projection_states_both_errors(planted, shipped):
    found = project(planted, shipped, 1.1 * planted.step_time_us)
    assert found.estimator_mape_pct == pytest.approx(10)
    assert found.mape_pct < 20
    assert all(value >= 0 for value in found.beta)


def requests(**columns):
    names = ("t_arrived_ns", "t_queued_ns", "t_finished_ns", "t_departed_ns", "output_tokens")
    rows = len(next(iter(columns.values())))
    return pa.table({name: pa.array(columns.get(name, [None] * rows), pa.int64()) for name in names})


def test_alphas_of_requests_by_hand():
    table = requests(
        t_arrived_ns=[0, 0, 0],
        t_queued_ns=[1_000_000, 2_000_000, 3_000_000],
        t_finished_ns=[0, 0, 0],
        t_departed_ns=[1_000_000, 1_500_000, 2_000_000],
        output_tokens=[10, 20, 30],
    )
    assert alpha_us(table) == pytest.approx((2000.0, 500.0, 50.0))


def test_alphas_that_nothing_measured_are_zero():
    assert alpha_us(requests(output_tokens=[1, 2])) == (0.0, 0.0, 0.0)


def test_alphas_of_fitted_models_are_those_of_a_prompt_of_mean_length():
    def block(**values):
        count = len(values)
        parts = {"units": ("us",) * count, "lower": (0.0,) * count, "upper": (None,) * count}
        given = {"names": tuple(values), "values": tuple(values.values()), "at_bound": (False,) * count}
        return CoefficientBlock(**parts, **given, scales=(1.0,) * count)

    blocks = {
        "alpha": block(intercept=300.0, prompt_tokens=0.5),
        "post": block(intercept=70.0),
        "alpha_token": block(output_tokens=2.0),
    }
    table = pa.table({"prompt_tokens": pa.array([100, 300], pa.int64())})
    assert fitted_alphas_us(blocks, table) == pytest.approx((400.0, 70.0, 2.0))
    assert fitted_alphas_us(blocks, None) == pytest.approx((300.0, 70.0, 2.0))
    assert fitted_alphas_us({"alpha": blocks["alpha"]}, table) is None
    seed = blocks | {"alpha_token": block(output_tokens=2.0, prefills=1.0)}
    with pytest.raises(CoefficientsError, match=r"'alpha_token' has features .'prefills'"):
        fitted_alphas_us(seed, table)
