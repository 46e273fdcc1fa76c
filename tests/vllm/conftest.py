import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

VOCABULARY = 2048
COMMON = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "dense": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "moe": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}
ENGINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
SCENARIOS = ["dense", "moe", "asynchronous", "exploding", "untraced", "killed"]
REPOSITORY = Path(__file__).parents[2]


def write_model(folder, name):
    """A model folder with random weights: a config and a word-level tokenizer are all vLLM needs."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"t{index}": index for index in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(COMMON | MODELS[name]))


def engine_environment(**more):
    """This process's environment, as an engine needs it; bytecode caching must stay on, or starts take minutes."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return inherited | ENGINE_ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)} | more


def launch(folder, names, **environment):
    """Start engine_driver on its scenarios; the folder gets the models, a log, and one trace a scenario."""
    for model in MODELS:
        write_model(folder / model, model)
    driver = Path(__file__).with_name("engine_driver.py")
    with (folder / "driver.log").open("wb") as sink:
        return subprocess.Popen(
            [sys.executable, str(driver), str(folder), *names],
            env=engine_environment(**environment),
            stdout=sink,
            stderr=subprocess.STDOUT,
        )


def run_scenarios(folder, names):
    """Run engine_driver's scenarios to their end."""
    with launch(folder, names) as driver:
        try:
            status = driver.wait(timeout=570)
        finally:
            driver.kill()
    if status != 0:
        raise RuntimeError(f"engine driver ended with {status}:\n{(folder / 'driver.log').read_text()[-4000:]}")
    return folder


@pytest.fixture
def start_driver():
    """Start a driver that is killed when the test ends, whatever happens."""
    started = []

    def start(folder, *names, **environment):
        started.append(launch(folder, names, **environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory):
    """Traces and outcomes of one run of the driver; every claim about a real engine reads from here."""
    return run_scenarios(tmp_path_factory.mktemp("engines"), SCENARIOS)
