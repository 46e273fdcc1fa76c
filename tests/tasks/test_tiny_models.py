"""The folders that vLLM serves in the embedded default: facts kept, and a tokenizer in which a word is a token."""

import json
import random
from pathlib import Path

import pytest

from srfa.errors import CatalogError
from tasks.tiny_models import write_tiny_model

REPOSITORY = Path(__file__).parents[2]
TINY = ("tiny-dense", "tiny-moe")


def facts(name):
    return json.loads((REPOSITORY / "models" / "srfa" / name / "config.json").read_text())


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """The shipped models' tokenizers, loaded by the library itself."""
    from tokenizers import Tokenizer

    folder = tmp_path_factory.mktemp("models")
    return {
        name: Tokenizer.from_file(str(write_tiny_model(facts(name), folder / name) / "tokenizer.json")) for name in TINY
    }


@pytest.mark.parametrize("name", TINY)
def test_the_config_holds_the_given_facts_and_nothing_else(name, tmp_path):
    written = write_tiny_model(facts(name), tmp_path / "new" / name)
    assert json.loads((written / "config.json").read_text()) == facts(name)


@pytest.mark.parametrize("name", TINY)
def test_widths_are_multiples_of_64_as_the_cpu_kernels_want(name):
    sizes = facts(name)
    assert all(sizes[key] % 64 == 0 for key in ("hidden_size", "intermediate_size", "head_dim", "vocab_size"))


@pytest.mark.parametrize("name", TINY)
def test_the_vocabulary_has_the_size_the_model_has(name, tokenizers):
    assert tokenizers[name].get_vocab_size() == facts(name)["vocab_size"]
    assert sorted(tokenizers[name].get_vocab().values()) == list(range(facts(name)["vocab_size"]))


@pytest.mark.parametrize("name", TINY)
def test_random_tokens_survive_decoding_and_encoding_with_their_number(name, tokenizers):
    tokenizer, generator = tokenizers[name], random.Random(0)
    for length in (1, 7, 500):
        tokens = [generator.randrange(3, facts(name)["vocab_size"]) for _ in range(length)]
        assert tokenizer.encode(tokenizer.decode(tokens)).ids == tokens


def test_the_special_tokens_are_those_the_config_names(tmp_path):
    from tokenizers import Tokenizer

    folder = write_tiny_model({"vocab_size": 64, "bos_token_id": 62, "eos_token_id": [63, 61]}, tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [tokenizer.token_to_id(word) for word in ("<unk>", "<bos>", "<eos>")] == [0, 62, 63]


def test_writing_twice_leaves_the_same_bytes_and_no_partial_file(tmp_path):
    first = {path.name: path.read_bytes() for path in write_tiny_model(facts("tiny-moe"), tmp_path).iterdir()}
    second = {path.name: path.read_bytes() for path in write_tiny_model(facts("tiny-moe"), tmp_path).iterdir()}
    assert first == second
    assert set(first) == {"config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "vocab_size=None"),
        ({"vocab_size": "64"}, "vocab_size='64'"),
        ({"vocab_size": 4}, "at least 8"),
        ({"vocab_size": 64, "eos_token_id": 64}, "eos_token_id=64 should lie between 0 and vocab_size - 1 = 63"),
        ({"vocab_size": 64, "bos_token_id": []}, r"bos_token_id=\[\]"),
    ],
)
def test_an_impossible_vocabulary_is_refused_before_anything_is_written(config, said, tmp_path):
    with pytest.raises(CatalogError, match=said):
        write_tiny_model(config, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.vllm
def test_transformers_loads_the_folder_as_vllm_does(tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    folder = write_tiny_model(facts("tiny-moe"), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("t5 t6 nonsense", add_special_tokens=True).input_ids == [5, 6, 0]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 4096)
    assert AutoConfig.from_pretrained(folder).num_local_experts == 8
