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


def plot(results: dict[str, list[tuple[str, float, float]]], path: str) -> None:
    """Draw error against seconds, one panel per layer."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results), figsize=(3.4 * len(results), 3.0), layout="constrained")
    for panel, (layer, runs) in zip(np.atleast_1d(panels), results.items(), strict=True):
        ours = [(seconds, error) for method, error, seconds in runs if method != "AQLM"]
        panel.plot(*zip(*ours, strict=True), "o-", color="#0b6e4f", label="mcq, by rounds")
        for method, error, seconds in runs:
            if method == "AQLM":
                panel.plot(seconds, error, "s", color="#b23a48", label="AQLM procedure")
            else:
                panel.annotate(method.split()[0], (seconds, error), xytext=(3, 4), textcoords="offset points", size=8)
        panel.set(title=layer, xscale="log", xlabel="seconds", ylim=(0, 1.15 * max(run[1] for run in runs)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.25)
    np.atleast_1d(panels)[0].set_ylabel("relative error")
    np.atleast_1d(panels)[-1].legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--layers", nargs="+", default=["q_proj", "gate_proj", "down_proj"])
    parser.add_argument("--rounds", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--aqlm", help="checkout of the AQLM repository, run in the same process")
    parser.add_argument("--plot", help="file for a picture of the table")
    options = parser.parse_args()
    data = np.load(options.data)
    print(f"threads {mcq_ext.num_threads()}, SIMD level {mcq_ext.simd_level()}")
    print(f"{'layer':>10} {'method':>12} {'error':>9} {'seconds':>8} {'AQLM seconds / ours':>20}")
    results = {}
    for layer in options.layers:
        name = next(key for key in data if f"{layer}.weight" in key or key.endswith(layer))
        weight, gram = data[name], data[f"gram.{GRAMS[layer]}"]
        metric, rival, runs = mcq.Gram(gram), None, []
        if options.aqlm:
            from aqlm_procedure import calibrate

            error, rival = calibrate(options.aqlm, weight, gram)
            runs.append(("AQLM", error, rival))
            print(f"{layer:>10} {'AQLM':>12} {error:9.5f} {rival:8.2f}", flush=True)
        for rounds in options.rounds:
            repeats = [fit(weight, metric, rounds) for _ in range(options.repeats)]
            error, seconds = repeats[0][0], statistics.median(run[1] for run in repeats)
            runs.append((f"{rounds} rounds", error, seconds))
            ratio = f"{rival / seconds:.0f}" if rival else ""
            print(f"{layer:>10} {f'{rounds} rounds':>12} {error:9.5f} {seconds:8.2f} {ratio:>20}", flush=True)
        results[layer] = runs
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
