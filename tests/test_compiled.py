import subprocess
import sys
from pathlib import Path

from numba.core.caching import CacheImpl

from srfa.compiled import compiled, fingerprint


def twice(number):
    return 2.0 * number


def test_what_can_be_kept_nowhere_is_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    assert compiled(twice)(1.5) == 3.0


def test_the_command_line_does_not_wait_for_the_compiler():
    script = "import sys; from srfa.cli import main; main([]); sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_a_changed_constant_of_another_file_is_not_missed(tmp_path):
    """Numba alone goes on with the old form: the file of the function that uses the constant is unchanged.

    Python keeps bytecode by second and size (-B: it keeps none), which two files written at once share.
    """
    package = tmp_path / "srfa"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "compiled.py").write_text(Path(fingerprint.__code__.co_filename).read_text())
    (package / "step_kernel.py").write_text(
        "from srfa.compiled import compiled\nfrom srfa.routing import FACTOR\n\n"
        "@compiled\ndef f(x):\n    return FACTOR * x\n"
    )
    answers = []
    for factor in (2.0, 3.0):
        (package / "routing.py").write_text(f"FACTOR = {factor}\n")
        command = [sys.executable, "-B", "-c", "from srfa.step_kernel import f; print(f(1.0))"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        answers.append(run.stdout.strip())
    assert answers == ["2.0", "3.0"]
