"""``run_probe`` with small programs in the interpreter's place; tests/vllm runs the real one."""

import json

import pytest

from srfa.errors import CatalogError, SrfaError, UsageError
from srfa.probe import run_probe
from tests.test_microbenchmark import CPU


@pytest.fixture
def interpreter(tmp_path):
    """Writes a program that stands in for an interpreter: it gets ``-m MODULE --out FILE --seconds S ...``."""

    def write(body):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_the_figures_are_written_where_asked_and_returned(interpreter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures.json").write_text(json.dumps(CPU))
    python = interpreter(f'echo "$@" > {tmp_path}/called; cp {tmp_path}/figures.json "$4"')
    out = tmp_path.relative_to(tmp_path) / "new" / "m.json"
    assert run_probe(python, out, seconds=3, arguments=["--device", "cpu"]).gemm_tflops == CPU["gemm_tflops"]
    called = (tmp_path / "called").read_text().split()
    assert called == f"-m srfa.vllm.microbenchmark --out {tmp_path}/new/m.json --seconds 3 --device cpu".split()


def test_the_interpreter_sees_srfa_and_nothing_installed_beside_it(interpreter, tmp_path):
    python = interpreter(f"ls > {tmp_path}/seen; ls srfa/vllm/microbenchmark.py >&2; exit 2")
    with pytest.raises(UsageError, match=r"^srfa/vllm/microbenchmark\.py$"):
        run_probe(python, tmp_path / "m.json", seconds=1)
    assert (tmp_path / "seen").read_text() == "srfa\n"


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ("echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1", UsageError, "has no PyTorch.*--python"),
        ("echo '--device cuda: no CUDA device; use --device cpu' >&2; exit 2", UsageError, "use --device cpu"),
        ("echo 'out of memory' >&2; exit 9", SrfaError, "ended with status 9.*\nout of memory"),
        ("exit 0", CatalogError, "m.json: cannot be read"),
    ],
)
def test_a_probe_that_fails_says_why(body, error, says, interpreter, tmp_path):
    with pytest.raises(error, match=says) as caught:
        run_probe(interpreter(body), tmp_path / "m.json", seconds=1)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "m.json").exists()


def test_an_interpreter_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="--python /no/python: No such file"):
        run_probe("/no/python", tmp_path / "m.json", seconds=1)
