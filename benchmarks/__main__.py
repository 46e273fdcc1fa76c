"""``make bench``: every benchmark, one after the other; each prints its own figures."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("expand", "ingest", "fit", "recorder")


def main() -> int:
    """Run each in its own interpreter; the exit code is the first one that is not 0."""
    codes = []
    for name in BENCHMARKS:
        print(f"== benchmarks.{name}", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    raise SystemExit(main())
