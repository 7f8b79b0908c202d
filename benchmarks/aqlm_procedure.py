"""Runs the published AQLM calibration from a checkout of its repository, for comparison in one process."""

import contextlib
import io
import sys
import time
from argparse import Namespace

import numpy as np


def calibrate(checkout: str, weight: np.ndarray, gram: np.ndarray) -> tuple[float, float]:
    """Return relative error and seconds for 2 codebooks x 8 bits, groups of 8, with the options of its recipes.

    Residual k-means start, rounds of 100 Adam steps and one beam sweep of width 1, stop below 1 % gain.
    """
    import torch

    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    from aq_engine import AQEngine

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(weight.copy())
    engine = AQEngine(layer)
    engine.XTX = torch.from_numpy(gram.astype(np.float64))
    options = Namespace(
        devices=[torch.device("cpu")], in_group_size=8, out_group_size=1, num_codebooks=2, nbits_per_codebook=8,
        codebook_value_nbits=16, codebook_value_num_groups=1, scale_nbits=0, init_max_iter=100,
        init_max_points_per_centroid=None, lr=1e-4, max_epochs=1000, steps_per_epoch=100,
        relative_mse_tolerance=0.01, beam_size=1, print_frequency=10**9,
    )  # fmt: skip
    torch.manual_seed(0)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        quantized = engine.quantize(args=options, verbose=False)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        error = (quantized() - layer.weight).double().numpy()
    exact = weight.astype(np.float64)
    return float(np.sum(error @ gram * error) / np.sum(exact @ gram * exact)), seconds
