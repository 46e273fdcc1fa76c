import json
import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from srfa.catalog import load_catalog
from srfa.errors import MatrixError
from srfa.matrix import Matrix, expand, load_matrix
from srfa.specs import BenchmarkJob, content_id

ROOT = Path(__file__).parent.parent
CATALOG = load_catalog(ROOT / "hardware", ROOT / "models")
SMALL = """\
name: small
defaults:
  engine: {max_model_len: 4096}
workloads:
  short: {random_input_len: 64, random_output_len: 32, num_prompts: 10}
  long: {random_input_len: 1024, random_output_len: 8, num_prompts: 10, request_rate: inf}
axes:
  models: [llama-3.1-8b]
  gpus: [h100-sxm-80gb]
  workloads: [short, long]
  knobs:
    max_num_batched_tokens: [512, 2048]
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "matrix.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def expanded(written):
    return lambda text: expand(load_matrix(written(text)), CATALOG)


@pytest.fixture
def refused(written):
    """The error's text without the folder, as a user in that folder sees it."""

    def refuse(text):
        path = written(text)
        with pytest.raises(MatrixError) as caught:
            expand(load_matrix(path), CATALOG)
        return str(caught.value).replace(f"{path.parent}/", "")

    return refuse


def ids(expansion):
    return {job.job_id for job in expansion.jobs}


def test_the_product_of_the_axes_becomes_jobs(expanded):
    jobs = expanded(SMALL).jobs
    assert len(jobs) == 4
    assert {(job.workload.name, job.engine.max_num_batched_tokens) for job in jobs} == {
        (name, tokens) for name in ("short", "long") for tokens in (512, 2048)
    }
    assert {job.model for job in jobs} == {"meta-llama/Llama-3.1-8B"}
    assert {job.engine.max_model_len for job in jobs} == {4096}


def test_a_job_id_is_the_hash_of_its_canonical_json(expanded):
    job = expanded(SMALL).jobs[0]
    assert job.job_id == content_id(job.model_dump(mode="json"))
    server = {"model", "gpu", "engine", "engine_version", "image"}
    assert job.group_id == content_id(job.model_dump(mode="json", include=server))


def test_a_job_survives_json_with_an_infinite_request_rate(expanded):
    for job in expanded(SMALL).jobs:
        assert BenchmarkJob.model_validate_json(job.model_dump_json()) == job
        assert json.loads(job.model_dump_json())["workload"]["request_rate"] == "Infinity"


def test_seeds_and_repeats_multiply_cells(expanded):
    jobs = expanded(SMALL.replace("defaults:", "defaults:\n  seeds: [0, 1, 1]\n  repeats: 3")).jobs
    assert len(jobs) == 4 * 2 * 3 == len({job.job_id for job in jobs})


def test_knobs_win_over_parallelism_over_defaults(expanded):
    text = SMALL.replace(
        "  workloads: [short", "  parallelism: [{tensor_parallel_size: 2, seed: 7}]\n  workloads: [short"
    )
    engine = expanded(text.replace("{max_model_len: 4096}", "{max_model_len: 4096, seed: 3}")).jobs[0].engine
    assert (engine.tensor_parallel_size, engine.seed, engine.max_num_batched_tokens) == (2, 7, 512)


def test_workloads_default_to_all_of_the_file(expanded):
    assert ids(expanded(SMALL.replace("  workloads: [short, long]\n", ""))) == ids(expanded(SMALL))


def test_null_leaves_a_knob_to_the_engine(expanded):
    jobs = expanded(SMALL.replace("[512, 2048]", "[null, 2048]")).jobs
    assert {job.engine.max_num_batched_tokens for job in jobs} == {None, 2048}


def test_zipped_axes_advance_together(expanded):
    text = SMALL.replace(
        "[512, 2048]", "[512, 2048]\n    max_num_seqs: [16, 64]\nzip: [[max_num_batched_tokens, max_num_seqs]]"
    )
    pairs = {(job.engine.max_num_batched_tokens, job.engine.max_num_seqs) for job in expanded(text).jobs}
    assert pairs == {(512, 16), (2048, 64)}


def test_named_axes_zip_with_knobs(expanded):
    text = SMALL + "zip: [[workloads, max_num_batched_tokens]]\n"
    jobs = expanded(text).jobs
    assert {(job.workload.name, job.engine.max_num_batched_tokens) for job in jobs} == {("short", 512), ("long", 2048)}


def test_an_excluded_cell_is_skipped_with_rule_place_and_why(expanded):
    expansion = expanded(SMALL + "exclude:\n  - {workload: long, max_num_batched_tokens: 512, why: too slow}\n")
    (skipped,) = expansion.skipped
    assert skipped.reason.endswith("matrix.yaml:14): too slow")
    assert skipped.reason.startswith("excluded by rule 1 (")
    assert (skipped.job.workload.name, skipped.job.engine.max_num_batched_tokens) == ("long", 512)
    assert len(expansion.jobs) == 3


def test_all_fields_of_a_rule_must_match_and_a_list_is_any_of(expanded):
    fields = "model: LLAMA-3.1-8B, gpu: h100-sxm-80gb, workload: short, max_num_batched_tokens: [512, 2048]"
    rules = f"exclude:\n  - {{{fields}}}\n"
    expansion = expanded(SMALL + rules)
    assert {job.workload.name for job in expansion.jobs} == {"long"}
    assert len(expanded(SMALL + "exclude: [{workload: short, max_num_batched_tokens: 9}]\n").skipped) == 0


def test_a_rule_matches_what_defaults_set(expanded):
    with pytest.raises(MatrixError, match=r"all 4 cells are skipped, 4 because: excluded by rule 1"):
        expanded(SMALL + "exclude: [{max_model_len: 4096}]\n")


def test_an_included_cell_is_added_to_the_product(expanded):
    added = (
        "include:\n  - {model: qwen3-32b, gpu: h100-sxm-80gb, workload: short, tensor_parallel_size: 2, why: scale}\n"
    )
    extra = [job for job in expanded(SMALL + added).jobs if job.model == "Qwen/Qwen3-32B"]
    assert [(job.engine.tensor_parallel_size, job.engine.max_model_len) for job in extra] == [(2, 4096)]


def test_an_included_cell_of_the_product_collapses_with_it(expanded):
    same = "include: [{model: llama-3.1-8b, gpu: H100-SXM-80GB, workload: short, max_num_batched_tokens: 512}]\n"
    assert ids(expanded(SMALL + same)) == ids(expanded(SMALL))
    assert len(expanded(SMALL + same).jobs) == 4


def test_include_takes_back_what_exclude_left_out(expanded):
    rules = "exclude: [{workload: short}]\n"
    back = "include: [{model: llama-3.1-8b, gpu: h100-sxm-80gb, workload: short, max_num_batched_tokens: 512}]\n"
    expansion = expanded(SMALL + rules + back)
    assert len(expansion.jobs) == 3
    assert len(expansion.skipped) == 1
    assert not ids(expansion) & {cell.job.job_id for cell in expansion.skipped}


def test_an_infeasible_cell_is_skipped_with_its_reason(expanded):
    text = SMALL.replace("  workloads: [short", "  parallelism: [{}, {tensor_parallel_size: 3}]\n  workloads: [short")
    expansion = expanded(text)
    assert len(expansion.jobs) == len(expansion.skipped) == 4
    assert all("tensor_parallel_size=3 does not divide" in cell.reason for cell in expansion.skipped)


def test_an_infeasible_included_cell_is_skipped_too(expanded):
    text = SMALL + "include: [{model: llama-3.1-70b, gpu: h100-sxm-80gb, workload: short}]\n"
    (skipped,) = expanded(text).skipped
    assert "meta-llama/Llama-3.1-70B needs" in skipped.reason


def test_a_matrix_of_included_cells_alone_needs_no_axes(expanded):
    text = SMALL[: SMALL.index("axes:")] + "include: [{model: llama-3.1-8b, gpu: h100-sxm-80gb, workload: short}]\n"
    assert len(expanded(text).jobs) == 1


def test_equal_cells_collapse(expanded):
    assert ids(expanded(SMALL.replace("[512, 2048]", "[512, 2048, 512]"))) == ids(expanded(SMALL))
    assert len(expanded(SMALL.replace("[llama-3.1-8b]", "[llama-3.1-8b, meta-llama/Llama-3.1-8B]")).jobs) == 4


def test_anchors_and_merges_are_understood(expanded):
    text = """\
        name: merged
        workloads:
          short: &short {random_input_len: 64, num_prompts: 10}
          burst: {<<: *short, burstiness: 0.5, num_prompts: 20}
        axes: {models: [llama-3.1-8b], gpus: [h200-sxm-141gb]}
    """
    jobs = {job.workload.name: job.workload for job in expanded(text).jobs}
    assert (jobs["burst"].random_input_len, jobs["burst"].num_prompts, jobs["short"].num_prompts) == (64, 20, 10)


PLANTED = [
    ("name: small", "nmae: small", "matrix.yaml:1: unknown key 'nmae'; did you mean 'name'?"),
    ("max_model_len: 4096", "max_modellen: 4096", "matrix.yaml:3: unknown key in defaults.engine 'max_modellen'; did"),
    (
        "num_prompts: 10}",
        "num_prompt: 10}",
        "matrix.yaml:5: unknown key in workloads.short 'num_prompt'; did you mean 'num_p",
    ),
    ("  knobs:", "  knobz:", "matrix.yaml:11: unknown key in axes 'knobz'; did you mean 'knobs'?"),
    (
        "max_num_batched_tokens",
        "max_batched_tokens",
        "matrix.yaml:12: unknown knob 'max_batched_tokens'; did you mean 'max",
    ),
    (
        "[llama-3.1-8b]",
        "[llama-3.1-9b]",
        "matrix.yaml:8: unknown model 'llama-3.1-9b'; did you mean 'meta-llama/Llama-3.1-8B'",
    ),
    ("h100-sxm-80gb", "h100-smx-80gb", "matrix.yaml:9: unknown GPU 'h100-smx-80gb'; did you mean 'h100-sxm-80gb'?"),
    (
        "[short, long]",
        "[short, lnog]",
        "matrix.yaml:10: unknown workload 'lnog'; did you mean 'long'? Known: long, short",
    ),
    ("[512, 2048]", "[512, 2k]", "matrix.yaml:12: axes.knobs.max_num_batched_tokens[1]='2k' should be a whole number"),
    (
        "[512, 2048]",
        "[512, true]",
        "matrix.yaml:12: axes.knobs.max_num_batched_tokens[1]=True should be a whole number",
    ),
    ("[512, 2048]", "[0]", "matrix.yaml:12: axes.knobs.max_num_batched_tokens[0]=0 should be greater than 0"),
    ("[512, 2048]", "[]", "matrix.yaml:12: axes.knobs.max_num_batched_tokens=() holds too few items"),
    ("[512, 2048]", "512", "matrix.yaml:12: axes.knobs.max_num_batched_tokens=512 should be a list"),
    ("[h100-sxm-80gb]", "[]", "matrix.yaml:9: axes.gpus=() holds too few items; add one"),
    ("[h100-sxm-80gb]", "h100-sxm-80gb", "matrix.yaml:9: axes.gpus='h100-sxm-80gb' should be a list"),
    ("4096}", "4096, dtype: bf16}", "matrix.yaml:3: unknown dtype 'bf16'; did you mean 'bfloat16'?"),
    ("4096}", "4096, kv_cache_dtype: fp9}", "matrix.yaml:3: unknown kv_cache_dtype 'fp9'; did you mean 'fp8'?"),
    ("4096}", "4096, enforce_eager: 1}", "matrix.yaml:3: defaults.engine.enforce_eager=1 should be true or false"),
    (
        "{random_input_len: 64,",
        "{dataset_name: randm,",
        "matrix.yaml:5: workloads.short.dataset_name='randm' should be 'random'",
    ),
    ("request_rate: inf", "request_rate: -1", "matrix.yaml:6: workloads.long.request_rate=-1 should be greater than 0"),
    ("request_rate: inf", "name: other", "matrix.yaml:6: name='other' repeats the key 'long' differently"),
    ("name: small", "name: small\nname: again", "matrix.yaml:2: key 'name' stands in line 1 already; remove one"),
    ("name: small", "name: small\n1: one", "matrix.yaml:2: key '1' should be text; put it in quotes"),
    (
        "defaults:",
        "defaults:\n  engine_version: 0.32",
        "matrix.yaml:3: defaults.engine_version=0.32 should be text; put it in quo",
    ),
    ("defaults:", "defaults:\n  seeds: []", "matrix.yaml:3: defaults.seeds=() holds too few items"),
    ("[512, 2048]", "[512, 2048", "matrix.yaml:13: not YAML"),
    ("axes:", "axes: &loop\n  self: *loop", "matrix.yaml:7: an alias refers to what it stands in"),
]


@pytest.mark.parametrize(("old", "new", "said"), PLANTED, ids=[said for *_, said in PLANTED])
def test_a_planted_fault_is_refused_with_file_line_value_and_nearest_name(refused, old, new, said):
    assert old in SMALL
    assert any(line.startswith(said) for line in refused(SMALL.replace(old, new, 1)).splitlines())


APPENDED = [
    ("exclude: [{modle: llama-3.1-8b}]", "matrix.yaml:13: unknown field 'modle'; did you mean 'model'?"),
    ("exclude:\n  - {workload: short}\n  - {gpu: h10}", "matrix.yaml:15: unknown GPU 'h10'; did you mean"),
    ("exclude: [{workload: shrt}]", "matrix.yaml:13: unknown workload 'shrt'; did you mean 'short'?"),
    (
        "exclude: [{tensor_parallel_size: two}]",
        "matrix.yaml:13: exclude[0].tensor_parallel_size[0]='two' should be a whole",
    ),
    ("exclude: [{model: 3}]", "matrix.yaml:13: exclude[0].model=3 should be text"),
    ("exclude: [{why: because}]", "matrix.yaml:13: a rule without fields would exclude everything"),
    ("exclude: [{workload: []}]", "matrix.yaml:13: exclude[0].workload=() holds too few items"),
    ("exclude: [short]", "matrix.yaml:13: exclude[0]='short' should be a mapping"),
    ("include: [{model: llama-3.1-8b, workload: short}]", "matrix.yaml:13: missing key 'gpu' in include[0]; add it"),
    (
        "include:\n  - {model: llama-3.1-8b, gpu: l4-24gb, workload: short, tensor_paralel_size: 2}",
        "matrix.yaml:14: unknown key in include[0] 'tensor_paralel_size'; did you mean 'tensor_parallel_size'?",
    ),
    ("include: [{model: nope, gpu: l4-24gb, workload: short}]", "matrix.yaml:13: unknown model 'nope'"),
    ("zip: [[gpus, knobz]]", "matrix.yaml:13: unknown axis 'knobz'"),
    ("zip: [[gpus]]", "matrix.yaml:13: zip[0]=('gpus',) holds too few items"),
    ("zip: [[gpus, workloads]]", "matrix.yaml:13: zipped axes must be equally long: gpus has 1, workloads has 2"),
    ("zip: [[gpus, models], [models, gpus]]", "matrix.yaml:13: axis 'models' is zipped twice; name it once"),
]


@pytest.mark.parametrize(("more", "said"), APPENDED, ids=[said for _, said in APPENDED])
def test_a_planted_fault_in_rules_is_refused_with_its_place(refused, more, said):
    assert refused(SMALL + more + "\n").startswith(said)


def test_a_knob_that_parallelism_sets_too_is_refused(refused):
    text = SMALL.replace(
        "  knobs:", "  parallelism: [{tensor_parallel_size: 2}]\n  knobs:\n    tensor_parallel_size: [4]"
    )
    assert refused(text).startswith("matrix.yaml:13: knob 'tensor_parallel_size' is also set by axes.parallelism[0]")


def test_all_findings_are_reported_at_once(refused):
    text = SMALL.replace("[512, 2048]", "[a, b]").replace("name: small", "name: small\nzip: [[gpus, workloads]]")
    assert len(refused(text).splitlines()) == 3


def test_an_unknown_name_is_reported_once_where_it_first_stands(refused):
    text = SMALL.replace("[llama-3.1-8b]", "[nope, nope]") + "exclude: [{model: nope}]\n"
    assert refused(text).count("unknown model") == 1


def test_an_expansion_without_a_job_says_why(refused):
    said = refused(SMALL.replace("[llama-3.1-8b]", "[llama-3.1-70b]"))
    assert said.startswith(
        "matrix.yaml:7: the expansion is empty: all 4 cells are skipped, 2 because: meta-llama/Llama-"
    )
    assert "needs 133.9 GiB on each h100-sxm-80gb" in said


def test_a_matrix_without_axes_and_cells_says_so(refused):
    assert "neither axes nor included cells; add axes" in refused(SMALL[: SMALL.index("axes:")])


@pytest.mark.parametrize(("text", "said"), [("", "should hold a mapping"), ("- 1\n", "should hold a mapping")])
def test_a_file_that_is_no_mapping_is_refused(refused, text, said):
    assert said in refused(text)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(MatrixError, match=r"nowhere.yaml: cannot be read"):
        load_matrix(tmp_path / "nowhere.yaml")


def test_a_matrix_made_in_code_is_checked_like_a_file():
    axes = {"models": ("llama-3.1-8b",), "gpus": ("h100",)}
    matrix = Matrix(name="m", workloads={"w": {}}, axes=axes)
    with pytest.raises(MatrixError, match=r"^matrix: unknown GPU 'h100'"):
        expand(matrix, CATALOG)


@pytest.mark.parametrize("name", ["matrix.yaml", "examples/local.yaml"])
def test_a_shipped_matrix_expands_without_an_infeasible_cell(name):
    expansion = expand(load_matrix(ROOT / name), CATALOG)
    unwanted = [cell for cell in expansion.skipped if not cell.reason.startswith("excluded by rule")]
    assert unwanted == []


def test_the_embedded_default_starts_three_servers_on_each_profile():
    jobs = expand(load_matrix(ROOT / "examples/local.yaml"), CATALOG).jobs
    assert len(jobs) == 18
    assert len({job.group_id for job in jobs}) == 6
    assert {job.gpu for job in jobs} == {"cpu-1t", "cpu-1t-lite"}


AXES = {
    "models": ["llama-3.1-8b", "llama-3.1-70b", "mixtral-8x7b-v0.1"],
    "gpus": ["h100-sxm-80gb", "l4-24gb"],
    "parallelism": [{"tensor_parallel_size": 1}, {"tensor_parallel_size": 4, "enable_expert_parallel": True}],
    "workloads": ["w0", "w1"],
}
KNOBS = {"max_num_batched_tokens": [512, 1024], "enable_prefix_caching": [True, False], "cpu_offload_gb": [0, 8]}
RULES = [{"model": ["llama-3.1-8b"], "workload": "w1"}, {"cpu_offload_gb": 8, "gpu": "l4-24gb"}]


@given(data=st.data())
def test_reordering_a_matrix_changes_neither_jobs_nor_skips_and_loses_no_cell(tmp_path_factory, data):
    def shuffled(values):
        return data.draw(st.permutations(values))

    def reordered(mapping):
        return {
            key: shuffled(mapping[key]) if isinstance(mapping[key], list) else mapping[key]
            for key in shuffled(list(mapping))
        }

    document = {
        "name": "m",
        "defaults": {"engine": {"max_model_len": 2048}},
        "workloads": {"w0": {"num_prompts": 5}, "w1": {"num_prompts": 6}},
        "axes": {**AXES, "knobs": KNOBS},
        "exclude": RULES,
    }
    changed = reordered({**document, "axes": {**reordered(AXES), "knobs": reordered(KNOBS)}})
    first, second = (expand(load_matrix(_saved(tmp_path_factory, d)), CATALOG) for d in (document, changed))
    assert ids(first) == ids(second)
    assert {cell.job.job_id for cell in first.skipped} == {cell.job.job_id for cell in second.skipped}
    assert len(first.jobs) + len(first.skipped) == 3 * 2 * 2 * 2 * 2 * 2 * 2


def _saved(factory, document):
    path = factory.mktemp("matrix") / "m.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
