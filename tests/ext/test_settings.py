"""SIMD levels and threads: how they are chosen, and that a fork keeps them alive."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import mcq_ext
from mcq_ext.threads import split

ROOT = Path(__file__).resolve().parents[2]


def run_python(script, **environment):
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


SHOW = "import mcq_ext; print(mcq_ext.simd_level(), mcq_ext.num_threads())"


@pytest.mark.parametrize("level", mcq_ext.simd_levels())
def test_environment_chooses_the_level(level):
    assert run_python(SHOW, MCQ_SIMD=level).stdout.split()[0] == level


def test_fastest_level_by_default():
    assert run_python(SHOW, MCQ_SIMD="").stdout.split()[0] == mcq_ext.simd_levels()[-1]


def test_unknown_level_is_refused():
    error = run_python(SHOW, MCQ_SIMD="sse9").stderr.splitlines()[-1]
    assert re.search(r"SIMD.*'baseline'.*got 'sse9'", error)
    level = mcq_ext.simd_level()
    with pytest.raises(ValueError, match="must be one of .*'baseline'.* got 'sse9'"):
        mcq_ext.set_simd_level("sse9")
    assert mcq_ext.simd_level() == level


def test_environment_chooses_the_threads():
    assert run_python(SHOW, MCQ_NUM_THREADS="3").stdout.split()[1] == "3"


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_bad_number_of_threads_is_refused(value):
    error = run_python(SHOW, MCQ_NUM_THREADS=value).stderr.splitlines()[-1]
    assert re.search(rf"MCQ_NUM_THREADS.*at least 1.*got '{value}'", error)


@pytest.mark.parametrize("n", [0, -1])
def test_set_num_threads_refuses(n):
    with pytest.raises(ValueError, match=f"at least 1, got {n}"):
        mcq_ext.set_num_threads(n)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 15, 16, 17, 100, 1001])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_split_covers_the_range_in_tiles(count, threads):
    mcq_ext.set_num_threads(threads)
    parts = []
    split(lambda a, b: parts.append((a, b)), count)
    parts.sort()
    assert [row for a, b in parts for row in range(a, b)] == list(range(count))
    assert all(start % 8 == 0 for start, _ in parts)
    assert len(parts) <= threads


def test_split_raises_what_the_work_raises():
    mcq_ext.set_num_threads(2)

    def work(start, stop):
        if start > 0:
            raise RuntimeError("from the other thread")

    with pytest.raises(RuntimeError, match="from the other thread"):
        split(work, 100)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kernels_work_in_a_forked_child():
    """The pool of the parent does not survive the fork; the child makes its own."""
    script = """
        import os
        import numpy as np
        from mcq_ext import cpu, set_num_threads
        set_num_threads(3)
        a = np.ones((64, 64), np.float32)
        cpu.matmul(a, a)
        if os.fork() == 0:
            os._exit(0 if (cpu.matmul(a, a) == 64).all() else 1)
        _, status = os.wait()
        print(os.waitstatus_to_exitcode(status))
        cpu.matmul(a, a)
    """
    done = run_python(script)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


def objects():
    """Object files of the kernels, by level, that the last build left behind."""
    found = sorted(ROOT.glob("build/**/kernels_*.o"))
    return {path.stem.removeprefix("kernels_"): path for path in found}


FUSED = r"vfn?m(?:add|sub)"


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
@pytest.mark.parametrize(
    ("level", "forbidden"),
    [("baseline", rf"%[yz]mm|{FUSED}"), ("avx2", rf"%zmm|%k[1-7]|{FUSED}"), ("avx512", FUSED)],
)
def test_objects_hold_only_what_their_level_may_use(level, forbidden):
    """No register that the CPU may lack, and no fused multiply-add: it rounds once where others round twice."""
    if level not in objects():
        pytest.skip(f"the build left no object file of the level {level}")
    command = ["objdump", "-d", "--no-show-raw-insn", objects()[level]]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "ret" in code
    assert re.findall(forbidden, code) == []
