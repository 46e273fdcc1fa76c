import dataclasses

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from srfa.coefficients import FitConfig
from srfa.errors import CoefficientsError
from srfa.estimators import estimator_named
from srfa.estimators.forest import Trees
from tests.steps import catalog, observations, random_steps, step

CATALOG = catalog()
FOREST = estimator_named("forest")
CONFIG = FitConfig(winsorise_quantile=1.0)


def planted(n_steps, seed=0):
    features = FOREST.features(observations(random_steps(n_steps, seed=seed)), CATALOG)
    batch = dict(zip(features.blocks["step"].names, features.blocks["step"].values.T, strict=True))
    label = (3_000 + 10 * batch["prefill_tokens"] + 0.2 * batch["decode_context"]) / batch["bandwidth"]
    return dataclasses.replace(features, step_time_us=label)


@pytest.mark.parametrize("seed", range(3))
def test_stored_nodes_predict_what_scikit_learns_forest_predicts(seed):
    rng = np.random.default_rng(seed)
    seen, target = rng.normal(size=(300, 5)) * 1e3, rng.normal(size=300)
    unseen = rng.normal(size=(5_000, 5)) * 2e3
    forest = RandomForestRegressor(n_estimators=7, min_samples_leaf=1, random_state=seed).fit(seen, target)
    trees = Trees.from_arrays(Trees.of(forest.estimators_).arrays())
    assert trees.mean(unseen) == pytest.approx(forest.predict(unseen), rel=1e-12)


def test_trees_of_one_leaf_predict_the_mean():
    forest = RandomForestRegressor(n_estimators=3, bootstrap=False).fit(np.zeros((9, 2)), np.arange(9.0))
    assert Trees.of(forest.estimators_).mean(np.ones((4, 2))) == pytest.approx(np.full(4, 4.0))


def test_no_rows_are_predicted_as_no_rows():
    forest = RandomForestRegressor(n_estimators=3).fit(np.arange(8.0).reshape(4, 2), np.arange(4.0))
    assert Trees.of(forest.estimators_).mean(np.empty((0, 2))).shape == (0,)


def test_it_learns_a_planted_law_within_its_data():
    learned = FOREST.fit(planted(1_500), CONFIG)
    unseen = planted(300, seed=9)
    assert np.abs(FOREST.predict(learned, unseen) / unseen.step_time_us - 1).mean() < 0.1


def test_beyond_its_data_it_repeats_what_it_measured():
    features = planted(300)
    learned = FOREST.fit(features, CONFIG)
    far = step(prefill_new_tokens=[100_000], prefill_context_tokens=[0], tensor_parallel_size=4)
    predicted = FOREST.predict(learned, FOREST.features(observations([far]), CATALOG))
    assert predicted[0] < features.step_time_us.max()


def test_equal_seeds_grow_equal_trees_and_others_do_not():
    features = planted(100)
    one, same, other = (FOREST.fit(features, CONFIG.model_copy(update={"seed": seed})) for seed in (1, 1, 2))
    assert one == same
    assert one.arrays != other.arrays


def test_importances_name_what_the_trees_split_on():
    block = FOREST.fit(planted(400), CONFIG).blocks["importance"]
    assert sum(block.values) == pytest.approx(1.0)
    assert block["prefill_tokens"] == max(block.values)


def test_missing_arrays_are_named():
    features = planted(60)
    learned = FOREST.fit(features, CONFIG)
    fewer = {name: values for name, values in learned.arrays.items() if name != "right"}
    with pytest.raises(CoefficientsError, match="arrays right missing"):
        FOREST.predict(learned.model_copy(update={"arrays": fewer}), features)
