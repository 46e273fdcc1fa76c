from dataclasses import dataclass, field

import numpy as np
import pytest

from srfa.batches import batches_on, prefill_batches, random_batches
from srfa.coefficients import FitConfig
from srfa.errors import GateFailed, InputError, UnknownConfigurationError
from srfa.estimators import ESTIMATORS
from srfa.gate import Limits, check_gate
from srfa.physics import check_physics
from srfa.physics_places import configurations_of, size_pairs, tp_pairs
from srfa.physics_report import read_physics, write_physics
from srfa.provenance import provenance_of
from srfa.roofline import floor_us
from tests.planted import GPUS, MODELS, LinearEstimator

RULES = {
    "positive_and_finite",
    "monotone_in_prefill_tokens",
    "monotone_in_context",
    "monotone_in_batch",
    "roofline_floor",
    "tp_speedup",
    "tp_slowdown",
    "monotone_in_model_size",
}


@dataclass(frozen=True)
class Lawful:
    """1.5 x floor + 800 us, unless a planted fault of the given name bends it."""

    fault: str = ""
    knows: frozenset[str] = field(default_factory=lambda: frozenset(MODELS))
    name: str = "lawful"

    def features(self, observations, catalog):
        if self.fault == "refuses" and {one.model for one in observations.configurations} - self.knows:
            raise UnknownConfigurationError("planted: learned by configuration")
        return observations, catalog

    def fit(self, features, config, *, prior=None):
        return LinearEstimator().fit(LinearEstimator().features(*features), config)

    def predict(self, coefficients, features):
        observations, catalog = features
        times = 1.5 * floor_us(observations, catalog) + 800.0
        tokens, decodes = observations.numbers("prefill_tokens"), observations.numbers("decode_tokens")
        tp = observations.numbers("tensor_parallel_size")
        context = observations.decode_context_tokens.sum() + observations.prefill_context_tokens.sum()
        hidden = np.array([catalog.resolve_model(one.model).hidden_size for one in observations.configurations])
        bent = {
            "negative": lambda: times - 5_000.0,
            "nan": lambda: np.where(decodes > 100, np.nan, times),
            "fast": lambda: 0.5 * times,
            "prefill": lambda: times + 900_000 / (1 + tokens),
            "context": lambda: times + 900_000 / (1 + context),
            "batch": lambda: times + 900_000 / (1 + decodes),
            "superlinear": lambda: times * (9.0 - tp),
            "slow tp": lambda: times * tp**2,
            "size": lambda: times + 1e9 / hidden[observations.configuration_index],
        }
        return bent[self.fault]() if self.fault in bent else times


@pytest.fixture(scope="module")
def fitted(planted, shipped):
    return Lawful().fit((planted, shipped), FitConfig()).model_copy(update={"provenance": provenance_of(planted, {})})


def checked(fitted, shipped, estimator, **settings):
    return check_physics(estimator, fitted, shipped, **({"n_batches": 1500} | settings))


def broken(report):
    return {finding.rule for finding in report.broken}


def test_a_law_of_physics_breaks_no_rule_and_every_rule_was_asked(fitted, shipped):
    report = checked(fitted, shipped, Lawful())
    assert report.passed
    assert {finding.rule for finding in report.findings} == RULES
    assert all(finding.n_checked for finding in report.findings)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("negative", "positive_and_finite"),
        ("nan", "positive_and_finite"),
        ("fast", "roofline_floor"),
        ("prefill", "monotone_in_prefill_tokens"),
        ("context", "monotone_in_context"),
        ("batch", "monotone_in_batch"),
        ("superlinear", "tp_speedup"),
        ("slow tp", "tp_slowdown"),
        ("size", "monotone_in_model_size"),
    ],
)
def test_a_planted_fault_breaks_its_rule_and_the_worst_case_is_in_words(fault, rule, fitted, shipped):
    report = checked(fitted, shipped, Lawful(fault))
    assert rule in broken(report)
    finding = next(one for one in report.broken if one.rule == rule)
    assert any(gpu in finding.worst for gpu in GPUS)
    assert "TP " in finding.worst
    assert "tokens" in finding.worst
    assert finding.worst in finding.sentence
    assert 0 < finding.n_broken <= finding.n_checked


@pytest.mark.parametrize(
    ("fault", "also"),
    [
        ("prefill", set()),
        ("context", {"monotone_in_batch"}),  # one decode more brings its context
        ("batch", set()),
    ],
)
def test_a_fault_in_one_direction_leaves_the_other_directions_alone(fault, also, fitted, shipped):
    rules = {name for name in broken(checked(fitted, shipped, Lawful(fault))) if name.startswith("monotone_in")}
    assert rules == {f"monotone_in_{'prefill_tokens' if fault == 'prefill' else fault}"} | also


def test_the_value_is_that_of_the_worst_case(fitted, shipped):
    """Half of 1.5 floors and 800 us: large batches come down to 0.75 floors, small ones stay above."""
    finding = next(one for one in checked(fitted, shipped, Lawful("fast")).findings if one.rule == "roofline_floor")
    assert finding.value == pytest.approx(0.75, abs=0.01)
    assert 0 < finding.n_broken < finding.n_checked


def test_equal_seeds_give_equal_reports_and_other_seeds_other_batches(fitted, shipped):
    one, same, other = (checked(fitted, shipped, Lawful(), seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.findings != other.findings


def test_the_roofline_estimator_without_provenance_is_asked_about_every_gpu(shipped):
    roofline = ESTIMATORS["roofline"]
    coefficients = roofline.fit(None, FitConfig())
    report = check_physics(roofline, coefficients, shipped, n_batches=500)
    assert report.passed
    gpus = {name for name, gpu in shipped.gpus.items() if gpu.datasheet.kind == "cuda"}
    assert {gpu for gpu in gpus if any(f" {gpu}," in one for one in report.configurations)} == gpus


def test_the_seed_form_breaks_the_floor_because_it_reads_no_weights(planted, shipped):
    seed = ESTIMATORS["srfa-seed"]
    fit = seed.fit(seed.features(planted, shipped), FitConfig(huber_delta=(0.1,), lambda_gamma=(0.01,)))
    fit = fit.model_copy(update={"provenance": provenance_of(planted, {})})
    assert "roofline_floor" in broken(check_physics(seed, fit, shipped, n_batches=1000))


def test_one_that_refuses_unknown_configurations_is_asked_on_those_it_knows(fitted, shipped, planted):
    refusing = Lawful("refuses")
    report = checked(fitted, shipped, refusing)
    assert report.passed  # the planted models hold a dense and a MoE model: nothing unknown but for the model sizes
    sizes = next(one for one in report.findings if one.rule == "monotone_in_model_size")
    assert (sizes.n_checked, sizes.passed) == (0, True)
    assert "learned by configuration" in sizes.sentence
    narrow = Lawful("refuses", knows=frozenset(MODELS[:1]))
    assert not checked(fitted, shipped, narrow).passed
    where = [one for one in planted.configurations if one.model == MODELS[0]]
    assert checked(fitted, shipped, narrow, configurations=where).passed


def test_configurations_cover_every_dividing_size_and_both_kinds_of_model(fitted, shipped):
    where = configurations_of(fitted, shipped)
    assert {one.gpu for one in where} == set(GPUS)
    assert {(one.tensor_parallel_size, one.expert_parallel_size) for one in where if "Mixtral" in one.model} == {
        (1, 1),
        (2, 1),
        (4, 1),
        (8, 1),
        (2, 2),
        (4, 4),
        (8, 8),
    }
    for pair in tp_pairs(where, shipped):
        assert pair.more.tensor_parallel_size == 2 * pair.less.tensor_parallel_size
        assert pair.more.gpu == pair.less.gpu
    names = {
        (pair.less.model.rpartition("/")[2], pair.more.model.rpartition("/")[2]) for pair in size_pairs(where, shipped)
    }
    assert {("Llama-3.1-8B", "Llama-3.1-70B"), ("Qwen3-8B", "Qwen3-14B"), ("Qwen3-14B", "Qwen3-32B")} <= names
    assert not {(large, small) for small, large in names} & names


def test_random_batches_are_batches_a_server_can_run():
    batches = random_batches(3000, np.random.default_rng(0))
    requests = batches.prefill_new.lengths + batches.decode_context.lengths
    assert (requests > 0).all()
    assert (batches.prefill_new.sum() <= 8192 + 4).all()
    assert batches.decode_context.lengths.max() <= 256
    for share in (batches.prefill_new.lengths == 0, batches.decode_context.lengths == 0):
        assert 0.25 < share.mean() < 0.42


def test_batches_keep_their_lists_on_their_configuration(planted):
    batches = prefill_batches(np.array([10.0, 20.0, 30.0]))
    observations = batches_on(batches, planted.configurations, np.array([2, 0, 2]))
    assert observations.numbers("prefill_tokens").tolist() == [10, 20, 30]
    placed = [observations.configurations[index] for index in observations.configuration_index]
    assert placed == [planted.configurations[index] for index in (2, 0, 2)]


SPLITS = {"leave-one-gpu-out": {"required": False}}


@pytest.mark.parametrize(
    ("section", "fault", "passes"),
    [
        ({}, "fast", False),
        ({"physics": {}}, "fast", False),
        ({"physics": {"required": False}}, "fast", True),
        ({"physics": {"required": True}}, "", True),
        ({"physics": {"required": True}}, None, False),
        ({"physics": {"required": False}}, None, True),
        ({}, None, True),
    ],
)
def test_the_gate_refuses_broken_physics_unless_the_limits_say_to_tell_it_only(section, fault, passes, fitted, shipped):
    limits = Limits.model_validate({"splits": SPLITS, **section})
    report = None if fault is None else checked(fitted, shipped, Lawful(fault))
    decision = check_gate([], limits, physics=report)
    assert decision.passed == passes
    if fault == "fast":
        told = [one.sentence for one in decision.findings if "roofline_floor BROKEN" in one.sentence]
        assert told
        assert ("told, not required" in told[0]) == passes
    if fault == "fast" and not passes:
        with pytest.raises(GateFailed, match="roofline_floor BROKEN"):
            decision.require_passed()


def test_a_report_is_read_back_as_it_was_written_nan_included(fitted, shipped, tmp_path):
    report = checked(fitted, shipped, Lawful("nan"))
    write_physics(report, tmp_path / "new" / "physics.json")
    again = read_physics(tmp_path / "new" / "physics.json")
    assert repr(again) == repr(report)
    assert "nan" in repr(again)


def test_a_file_that_is_no_report_is_refused_with_the_verb_that_makes_one(tmp_path):
    (tmp_path / "physics.json").write_text('{"estimator": "x"}')
    for name in ("physics.json", "none.json"):
        with pytest.raises(InputError, match="srfa physics --out"):
            read_physics(tmp_path / name)
