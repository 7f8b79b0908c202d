"""Layers coded on trial, to see what their errors do: kept until that is known, so an interruption costs little."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mcq
from mcq_llm.checkpoint import digest
from mcq_llm.mcq_format import McqLayer
from mcq_llm.plan import PlannedLayer
from mcq_llm.quantize import fit
from mcq_llm.storage import read_tensors, write_tensors


class Drafts:
    """The codes of layers, one file for each.

    Parameters
    ----------
    cache : Path or None
        Folder of measurements; with None nothing is kept.
    identity : mapping of str to str
        All that decides the codes. Those of another identity are left alone.
    """

    def __init__(self, cache: Path | None, identity: Mapping[str, str]) -> None:
        self._run = digest(identity)
        self._folder = None if cache is None else cache / f"drafts-{self._run}"

    def coded(
        self, planned: PlannedLayer, target: NDArray[np.float32], metric: mcq.Metric, seed: int
    ) -> NDArray[np.float32]:
        """Return what the codes of a layer stand for: of an earlier draft, or fitted to `target` now."""
        path = None if self._folder is None else self._folder / f"{planned.name}.safetensors"
        if path is not None and path.exists():
            return McqLayer.restore(read_tensors(path, self._run), str(path)).weight().numpy()
        layer = McqLayer(*fit(planned, target, metric, seed))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, layer.tensors(), self._run)
        return layer.weight().numpy()

    def remove(self) -> None:
        """Remove the files, when nothing more is to be learnt from them."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
