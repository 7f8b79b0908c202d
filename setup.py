"""Builds the C kernels once per SIMD level and links them into the one Cython module."""

import os
import platform

from Cython.Build import cythonize
from setuptools import Extension, setup

COMMON = ["-O3", "-g0", "-std=c11", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC"]
LEVELS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS["avx2"] = ["-march=x86-64-v3"]
    LEVELS["avx512"] = ["-march=x86-64-v4", "-mprefer-vector-width=512"]

SRC = "mcq_ext/src"
BODIES = [f"{SRC}/{name}" for name in sorted(os.listdir(SRC)) if name.endswith((".h", ".inc.c"))]

debug = os.environ.get("MCQ_DEBUG_CYTHON") == "1"
directives = {
    "language_level": 3,
    "boundscheck": debug,
    "wraparound": debug,
    "initializedcheck": debug,
    "embedsignature": True,
}

libraries = [
    (
        f"mcq_{level}",
        {
            "sources": [f"{SRC}/kernels_{level}.c"],
            "include_dirs": [SRC],
            "cflags": COMMON + flags,
            "obj_deps": {"": BODIES},
        },
    )
    for level, flags in LEVELS.items()
]
core = Extension(
    "mcq_ext._core",
    ["mcq_ext/_core.pyx", f"{SRC}/dispatch.c"],
    include_dirs=[SRC],
    depends=BODIES,
    define_macros=[(f"MCQ_HAVE_{level.upper()}", "1") for level in LEVELS],
    extra_compile_args=COMMON,
)

setup(
    libraries=libraries,
    ext_modules=cythonize([core], build_dir="build/cython", compiler_directives=directives),
)
