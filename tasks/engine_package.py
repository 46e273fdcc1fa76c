"""What the engine's interpreter imports of srfa: a folder with ``srfa/vllm`` and its entry point, and nothing else.

The engine may have an environment of its own. Were the harness's ``site-packages`` put on its path, it would see the
harness's versions of everything; so the few files it needs are laid into a folder, with the metadata by which vLLM
finds its plugin.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import srfa

_METADATA: Final = "Metadata-Version: 2.1\nName: srfa\nVersion: 0\n"
_ENTRY_POINTS: Final = "[vllm.general_plugins]\nsrfa_lifeline = srfa.vllm.lifeline:register\n"


def write_engine_package(into: Path) -> Path:
    """Write the package into the folder ``into``, which is made, and return it: the engine's ``PYTHONPATH``.

    The distribution is called ``srfa``: where the engine's environment has srfa installed, the plugin loads once.
    """
    source = Path(srfa.__file__).parent
    package = into / "srfa"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""The part of srfa that runs inside the engine."""\n')
    shutil.copytree(source / "vllm", package / "vllm", ignore=shutil.ignore_patterns("__pycache__"))
    metadata = into / "srfa-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(_METADATA)
    (metadata / "entry_points.txt").write_text(_ENTRY_POINTS)
    return into
