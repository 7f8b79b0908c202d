"""Error and time of 2 codebooks x 8 bits, groups of 8, row scales on real layers, beside the published AQLM procedure.

The input is an .npz with weights ``<layer>.weight`` (out, in) and Gram matrices ``gram.attn_in``, ``gram.o_in``,
``gram.mlp_in``, ``gram.down_in`` of their inputs. ``--aqlm`` takes a checkout of the AQLM repository.
"""

import argparse
import statistics
import time

import numpy as np

import mcq
import mcq_ext

GRAMS = {
    "q_proj": "attn_in", "k_proj": "attn_in", "v_proj": "attn_in", "o_proj": "o_in",
    "gate_proj": "mlp_in", "up_proj": "mlp_in", "down_proj": "down_in",
}  # fmt: skip


def fit(weight: np.ndarray, metric: mcq.Metric, rounds: int) -> tuple[float, float]:
    """Return relative error and seconds of one fit."""
    start = time.perf_counter()
    quantizer = mcq.AdditiveQuantizer(2, 8, 8, "row", rounds=rounds)
    codes = quantizer.fit_encode(weight, metric)
    seconds = time.perf_counter() - start
    return metric.relative_error(weight, quantizer.decode(codes)), seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--layers", nargs="+", default=["q_proj", "gate_proj", "down_proj"])
    parser.add_argument("--rounds", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--aqlm", help="checkout of the AQLM repository, run in the same process")
    options = parser.parse_args()
    data = np.load(options.data)
    print(f"threads {mcq_ext.num_threads()}, SIMD level {mcq_ext.simd_level()}")
    print(f"{'layer':>10} {'method':>12} {'error':>9} {'seconds':>8} {'AQLM seconds / ours':>20}")
    for layer in options.layers:
        name = next(key for key in data if f"{layer}.weight" in key or key.endswith(layer))
        weight, gram = data[name], data[f"gram.{GRAMS[layer]}"]
        metric, rival = mcq.Gram(gram), None
        if options.aqlm:
            from aqlm_procedure import calibrate

            error, rival = calibrate(options.aqlm, weight, gram)
            print(f"{layer:>10} {'AQLM':>12} {error:9.5f} {rival:8.2f}")
        for rounds in options.rounds:
            runs = [fit(weight, metric, rounds) for _ in range(options.repeats)]
            seconds = statistics.median(run[1] for run in runs)
            ratio = f"{rival / seconds:.0f}" if rival else ""
            print(
                f"{layer:>10} {f'{rounds} rounds':>12} {runs[0][0]:9.5f} {seconds:8.2f} {ratio:>20}",
                flush=True,
            )


if __name__ == "__main__":
    main()
