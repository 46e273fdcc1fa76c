import copy
import json
import math

import pytest
import yaml

from srfa.blis import BETAS, BlisProjection
from srfa.coefficients import FitConfig, Provenance
from srfa.errors import InputError
from srfa.estimators import estimator_named
from srfa.export import check_blis, hardware_config, projection_of, write_blis

GOOD = {"trained_physics_coefficients": {"alpha_coeffs": [1.0, 2.0, 3.0], "beta_coeffs": [0.5] * 11}}
PROVENANCE = Provenance(data_sha256={"a: {b}.parquet": "00"}, gpus=("g",), models=("m\nn",), srfa_version="0.1.0")


def projection(**changes):
    given = {"alpha_us": (0.0, 0.0, 0.0), "beta": (1e-05, *[1.25] * 10), "unidentified": ("ep_dispatch",)}
    return BlisProjection(**given | {"n_steps": 9, "estimator_mape_pct": 8.0, "mape_pct": 9.5} | changes)


def test_what_is_written_has_exactly_the_keys_blis_allows(tmp_path, shipped):
    defaults, hardware = write_blis(projection(), PROVENANCE, shipped.gpus.values(), tmp_path / "export")
    document = yaml.safe_load(defaults.read_text())
    check_blis(document)
    assert list(document) == ["trained_physics_coefficients"]
    assert document["trained_physics_coefficients"]["beta_coeffs"] == [1e-05, *[1.25] * 10]
    entry = json.loads(hardware.read_text())["h100-sxm-80gb"]
    assert set(entry) == {"TFlopsPeak", "TFlopsFP8", "BwPeakTBs", "mfuPrefill", "mfuDecode", "MemoryGiB"}
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["defaults.yaml", "hardware_config.json"]


def test_provenance_and_cost_stand_in_comments_alone(tmp_path, shipped):
    defaults, _ = write_blis(projection(), PROVENANCE, [], tmp_path)
    text = defaults.read_text()
    assert "estimator 8.00 %, this projection 9.50 % (+1.50 points)" in text
    assert "# data sha256 00 a: {b}.parquet" in text
    assert "m n" in text
    assert all(line.startswith("#") for line in text.split("trained_physics_coefficients:")[0].strip().splitlines())


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_a_coefficient_blis_would_refuse_is_never_written(value, tmp_path):
    with pytest.raises(InputError):
        write_blis(projection(beta=(value, *[1.0] * 10)), PROVENANCE, [], tmp_path / "export")
    assert not (tmp_path / "export").exists()


def faulty(change):
    document = copy.deepcopy(GOOD)
    change(document, document["trained_physics_coefficients"])
    return document


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda top, _: top.update(version="1"), "unknown key 'version'"),
        (lambda _, block: block.update(note="x"), "unknown key 'note'"),
        (lambda _, block: block.pop("alpha_coeffs"), "missing key 'alpha_coeffs'"),
        (lambda _, block: block.update(alpha_coeffs=[1, 2]), "list of 3 numbers, got 2"),
        (lambda _, block: block.update(beta_coeffs=[1] * 6), "list of 7 to 11 numbers, got 6"),
        (lambda _, block: block.update(beta_coeffs=[1] * 12), "list of 7 to 11 numbers, got 12"),
        (lambda _, block: block.update(beta_coeffs="1"), "list of 7 to 11 numbers, got str"),
        (
            lambda _, block: block["beta_coeffs"].__setitem__(3, -0.1),
            r"beta_coeffs\[3\]=-0.1 should be a finite number",
        ),
        (lambda _, block: block["beta_coeffs"].__setitem__(3, math.nan), r"beta_coeffs\[3\]=nan"),
        (lambda _, block: block["beta_coeffs"].__setitem__(3, math.inf), r"beta_coeffs\[3\]=inf"),
        (lambda _, block: block["alpha_coeffs"].__setitem__(0, "1"), r"alpha_coeffs\[0\]='1'"),
        (lambda _, block: block["alpha_coeffs"].__setitem__(0, True), r"alpha_coeffs\[0\]=True"),
        (lambda top, _: top.update(trained_physics_coefficients=[]), "should be a mapping, not list"),
    ],
)
def test_the_check_refuses_what_blis_refuses(change, complaint):
    with pytest.raises(InputError, match=complaint):
        check_blis(faulty(change))


@pytest.mark.parametrize("length", range(7, len(BETAS) + 1))
def test_seven_to_eleven_betas_are_allowed(length):
    check_blis(faulty(lambda _, block: block.update(beta_coeffs=[1] * length)))


def test_hardware_without_fp8_says_zero(shipped):
    assert hardware_config([shipped.resolve_gpu("a100-sxm-80gb")])["a100-sxm-80gb"]["TFlopsFP8"] == 0.0


def test_a_fitted_estimator_projects_onto_the_basis(planted, shipped, tmp_path):
    roofline = estimator_named("roofline")
    fitted = roofline.fit(roofline.features(planted, shipped), FitConfig())
    found = projection_of(fitted, planted, shipped)
    assert found.n_steps == planted.n_steps
    write_blis(found, fitted.provenance, [], tmp_path)
