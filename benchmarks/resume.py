"""Kill a run again and again at random moments, resume it, and compare the files with those of an undisturbed run."""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from memory_limit import CODE, write_model

TIMED = ("quantize.jsonl", "tuning.jsonl", "report.json", "report.html", "README.md")  # hold seconds


def main() -> None:
    """Print what each kill interrupted, and whether the bytes are the same in the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--megabytes", type=float, default=6.0, help="size of the random model")
    parser.add_argument("--tune", default="block")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_model(root / "model", options.width, options.megabytes * 1e6)
        (root / "text.txt").write_bytes(bytes(torch.randint(32, 127, (20_000,)).tolist()))
        start = time.perf_counter()
        command(root, root / "a" / "model", options.tune).wait()
        seconds = time.perf_counter() - start
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        out, generator, kills = root / "b" / "model", random.Random(options.seed), 0
        while not out.exists():
            process = command(root, out, options.tune)
            if kills < options.kills:
                # After the start of the interpreter, so that something is killed.
                before = finished(out)
                while process.poll() is None and finished(out) == before:
                    time.sleep(0.02)
                time.sleep(generator.random() * seconds / (4 * options.kills))
                process.kill()
                if process.wait() < 0:
                    kills += 1
                    print(f"killed with {finished(out)} parts finished", flush=True)
            else:
                process.wait()
        same = contents(out) == contents(root / "a" / "model")
        print(f"{kills} kills; files {'equal byte for byte' if same else 'DIFFER'}")


def finished(out: Path) -> int:
    """Return how many layers and blocks an interrupted run has written."""
    return len(list(out.parent.glob("model.partial/parts/*.safetensors")))


def command(root: Path, out: Path, tune: str) -> subprocess.Popen[bytes]:
    """Start a run."""
    arguments = ["llm", "quantize", str(root / "model"), "--out", str(out), "--calibration", str(root / "text.txt")]
    arguments += ["--tokens", "4096", "--window", "128", "--tune", tune, "--resume"]
    return subprocess.Popen([sys.executable, "-c", CODE, *arguments], stderr=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files that hold no times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in TIMED}


if __name__ == "__main__":
    main()
