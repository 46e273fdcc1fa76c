"""Which GPU and which software each step belongs to: the groups whose factors deviate from the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srfa.features import FeatureMatrix
from srfa.operators import kind_of
from srfa.ragged import IntArray
from srfa.smooth_roofline import Work


@dataclass(frozen=True, slots=True)
class Groups:
    """The GPUs and software versions of some steps, by name, and each step's place among them."""

    gpus: tuple[str, ...]
    softwares: tuple[str, ...]
    gpu: IntArray
    software: IntArray

    @classmethod
    def of(cls, features: FeatureMatrix) -> Groups:
        """Find the groups that occur, sorted by name."""
        at = features.configuration_index
        gpus, gpu = _occurring([one.gpu for one in features.configurations], at)
        softwares, software = _occurring([one.software_version or "" for one in features.configurations], at)
        return cls(gpus, softwares, gpu, software)

    def work(self, features: FeatureMatrix) -> Work:
        """Return what the steps do, each with its groups."""
        memory, compute, linear = (features.blocks[name] for name in ("memory", "compute", "linear"))
        kind = np.array([kind_of(name) for name in memory.names], dtype=np.int64)
        return Work(memory.values, compute.values, linear.values, kind, self.gpu, self.software)


def _occurring(names: list[str], at: IntArray) -> tuple[tuple[str, ...], IntArray]:
    all_names = np.array(names, dtype=np.str_)
    found = np.unique(all_names[np.unique(at)])
    return tuple(str(name) for name in found), np.searchsorted(found, all_names)[at]
