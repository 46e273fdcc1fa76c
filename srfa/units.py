"""Conversion factors, each used once at an edge. Inside srfa time is microseconds in float64."""

from __future__ import annotations

from typing import Final

US_PER_S: Final = 1_000_000.0
US_PER_MS: Final = 1_000.0
NS_PER_US: Final = 1_000.0
NS_PER_S: Final = 1_000_000_000
BYTES_PER_GIB: Final = 1024.0**3
BYTES_PER_US_PER_TBPS: Final = 1_000_000.0
"""One TB/s (10**12 bytes a second) moves this many bytes in a microsecond."""
BYTES_PER_US_PER_GBPS: Final = 1_000.0
"""One GB/s (10**9 bytes a second) moves this many bytes in a microsecond."""
FLOPS_PER_US_PER_TFLOPS: Final = 1_000_000.0
"""One TFLOP/s does this many floating-point operations in a microsecond."""
CYCLES_PER_US_PER_MHZ: Final = 1.0
"""One MHz is this many clock cycles in a microsecond."""
