import subprocess
import sys

from numba.core.caching import CacheImpl

from srfa.compiled import compiled


def twice(number):
    return 2.0 * number


def test_what_can_be_kept_nowhere_is_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    assert compiled(twice)(1.5) == 3.0


def test_the_command_line_does_not_wait_for_the_compiler():
    script = "import sys; from srfa.cli import main; main([]); sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, check=False).returncode == 0
