from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from srfa.operator_kernels import StepTotals
from srfa.simulate.clock import AskedStep, linear_clock
from srfa.simulate.engine import simulate
from srfa.simulate.load import RequestLoad
from srfa.simulate.noise import Noise, exact_us, noisy_clock
from srfa.simulate.server import Server

SERVER = Server(max_num_batched_tokens=256, max_num_seqs=8, max_model_len=512, block_size=16, num_gpu_blocks=200)
CLOCK = linear_clock(1000.0, StepTotals(prefill_tokens=10.0, decodes=100.0, is_measured=0.0))

ASKED = AskedStep(StepTotals(), np.zeros(0), np.zeros(0), np.zeros(0), 0.0, SERVER)


def load():
    return RequestLoad.of(np.arange(20) * 5000.0, np.full(20, 100), np.full(20, 12))


def test_equal_seeds_give_equal_factors_and_others_do_not():
    first, second = (list(islice(Noise(log_sd=0.1, seed=3).factors(), 5000)) for _ in range(2))
    assert first == second
    assert first != list(islice(Noise(log_sd=0.1, seed=4).factors(), 5000))


def test_factors_have_the_spread_and_the_outliers_asked_for():
    factors = np.array(list(islice(Noise(log_sd=0.05, slow_share=0.1, slow_factor=8.0).factors(), 20_000)))
    assert np.mean(factors > 4.0) == pytest.approx(0.1, abs=0.01)
    usual = np.log(factors[factors < 4.0])
    assert usual.std() == pytest.approx(0.05, rel=0.05)
    assert np.median(usual) == pytest.approx(0.0, abs=0.002)


def test_a_clock_without_noise_is_the_clock_itself():
    assert noisy_clock(CLOCK, None) is CLOCK


def test_noise_of_no_width_changes_nothing():
    exact, noisy = (simulate(load(), SERVER, clock) for clock in (CLOCK, noisy_clock(CLOCK, Noise())))
    np.testing.assert_array_equal(exact.t_departed_us, noisy.t_departed_us)


def test_a_step_takes_its_noisy_time_and_the_run_follows():
    noise = Noise(log_sd=0.3, seed=1)
    log = simulate(load(), SERVER, noisy_clock(CLOCK, noise), record_steps=True).steps
    exact = [exact_us(CLOCK, replace(ASKED, totals=StepTotals(*totals))) for totals in log.totals.tolist()]
    np.testing.assert_allclose(log.step_time_us / exact, list(islice(noise.factors(), log.n_steps)), rtol=1e-12)
    took = log.t_output_us - np.maximum(log.t_start_us, np.concatenate([[0.0], log.t_output_us[:-1]]))
    np.testing.assert_allclose(took, log.step_time_us)
