"""What can be refused is refused before a server starts; what a node is told is enough to run."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from srfa.errors import CatalogError, CoefficientsError, MatrixError, StoreError, UsageError
from tasks.campaign import Site, generated_run_id, prepare_campaign
from tasks.rehearsal import RehearsalSettings
from tests.flows.recorded import jobs, record_run, write_inputs
from tests.steps import ROOT

NOW = datetime(2026, 11, 23, 15, 4, 5, tzinfo=UTC)
HERE = Site(hardware=ROOT / "hardware", models=ROOT / "models")


@pytest.fixture
def matrix(tmp_path):
    return write_inputs(tmp_path) / "matrix.yaml"


ROOFLINE = RehearsalSettings(latency_mode="roofline", step_noise=0.1)


def prepared(matrix, store, run_id=None, *, resume=False, site=HERE, rehearsal=None):
    return prepare_campaign(matrix, str(store), site, run_id=run_id, resume=resume, now=NOW, rehearsal=rehearsal)


def test_a_server_starts_once_for_all_its_workloads(matrix, tmp_path):
    campaign = prepared(matrix, tmp_path / "s")
    assert len(campaign.jobs) == 8
    assert len(campaign.groups) == 4
    assert sorted(job.job_id for group in campaign.groups for job in group.jobs) == sorted(
        job.job_id for job in campaign.jobs
    )


def test_a_generated_run_id_is_the_date_and_the_content_of_the_matrix(matrix, tmp_path):
    campaign = prepared(matrix, tmp_path / "s")
    assert campaign.run_id == generated_run_id(campaign.jobs, NOW)
    assert campaign.run_id == generated_run_id(tuple(reversed(campaign.jobs)), NOW)
    assert campaign.run_id != generated_run_id(campaign.jobs[1:], NOW)
    assert campaign.run_id.startswith("20261123T150405-")


def test_a_node_is_told_its_gpu_and_the_model_it_has_to_write(matrix, tmp_path):
    campaign = prepared(matrix, tmp_path / "s")
    requests = [campaign.request(group) for group in campaign.groups]
    assert {request.gpu.name for request in requests} == {"cpu-1t", "cpu-1t-lite"}
    assert all(request.hf_config and "architectures" in request.hf_config for request in requests)
    assert {request.first_core for request in requests} == {0, 1}
    assert {request.store_uri for request in requests} == {(tmp_path / "s").as_uri()}


def test_a_model_with_real_weights_is_found_by_its_id(tmp_path):
    matrix = tmp_path / "m.yaml"
    matrix.write_text(
        "name: real\nworkloads: {w: {}}\naxes: {models: [Qwen/Qwen3-8B], gpus: [h100-sxm-80gb], workloads: [w]}\n"
    )
    campaign = prepared(matrix, tmp_path / "s")
    assert campaign.request(campaign.groups[0]).hf_config is None
    rehearsed = prepared(matrix, tmp_path / "s", rehearsal=ROOFLINE)
    assert rehearsed.request(rehearsed.groups[0]).hf_config, "a simulator needs the facts of any model"


def test_a_rehearsal_is_named_so_and_every_node_is_told(matrix, tmp_path):
    campaign = prepared(matrix, tmp_path / "s", rehearsal=ROOFLINE)
    assert campaign.run_id == f"rehearsal-{generated_run_id(campaign.jobs, NOW)}"
    requests = [campaign.request(group) for group in campaign.groups]
    assert {(one.rehearsal.latency_mode, one.rehearsal.step_noise) for one in requests} == {("roofline", 0.1)}
    assert all(one.rehearsal is None for one in map(prepared(matrix, tmp_path / "s").request, campaign.groups))


def test_neither_a_rehearsal_nor_a_measurement_can_go_on_with_the_other_s_run(matrix, tmp_path):
    with pytest.raises(UsageError, match=r"run_id=r1: a rehearsal's name begins with rehearsal-; take rehearsal-r1"):
        prepared(matrix, tmp_path / "s", "r1", resume=True, rehearsal=ROOFLINE)
    for run_id in ("rehearsal", "rehearsal-r1"):
        with pytest.raises(UsageError, match="such runs are rehearsals"):
            prepared(matrix, tmp_path / "s", run_id, resume=True)
        assert prepared(matrix, tmp_path / "s", run_id, rehearsal=ROOFLINE).run_id == run_id


def test_a_rehearsal_without_a_clock_is_refused_before_the_store_is_made(matrix, tmp_path):
    with pytest.raises(UsageError, match="needs coefficients"):
        prepared(matrix, tmp_path / "s", rehearsal=RehearsalSettings())
    with pytest.raises(CoefficientsError, match=r"nowhere\.json"):
        prepared(matrix, tmp_path / "s", rehearsal=RehearsalSettings(coefficients=Path("nowhere.json")))
    assert not (tmp_path / "s").exists()


def test_a_run_that_is_there_is_gone_on_with_only_on_request(matrix, tmp_path):
    record_run(str(tmp_path / "s"), "r1", jobs(matrix)[:1])
    with pytest.raises(UsageError, match=r"run_id=r1: .* holds that run already .* resume"):
        prepared(matrix, tmp_path / "s", "r1")
    assert prepared(matrix, tmp_path / "s", "r1", resume=True).run_id == "r1"


@pytest.mark.parametrize("run_id", ["a/b", "../x", ".hidden", "a b", "-x"])
def test_a_run_id_that_is_no_name_is_refused(matrix, tmp_path, run_id):
    with pytest.raises(UsageError, match="run_id="):
        prepared(matrix, tmp_path / "s", run_id)


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("name: [", "m.yaml"),
        ("name: x\nworkloads: {w: {}}\naxes: {models: [srfa/tiny-dens], gpus: [cpu-1t]}\n", "did you mean"),
        ("name: x\nworkloads: {w: {}}\naxes: {models: [srfa/tiny-dense], gpus: [cpu-9t]}\n", "did you mean"),
        (
            "name: x\nworkloads: {w: {}}\n"
            "axes: {models: [srfa/tiny-dense], gpus: [cpu-1t]}\nexclude: [{gpu: cpu-1t}]\n",
            "expansion is empty",
        ),
    ],
)
def test_a_matrix_that_is_none_makes_no_store(tmp_path, text, finding):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(MatrixError, match=finding):
        prepared(tmp_path / "m.yaml", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_missing_catalogue_is_named(matrix, tmp_path):
    with pytest.raises(CatalogError, match="nowhere"):
        prepared(matrix, tmp_path / "s", site=HERE.model_copy(update={"hardware": Path("nowhere")}))


def test_a_store_that_cannot_be_written_is_refused_before_anything_runs(matrix, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file"):
        prepared(matrix, tmp_path / "file")
