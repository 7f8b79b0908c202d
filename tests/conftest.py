"""Settings shared by all tests."""

import os

from hypothesis import settings

# Threads of a BLAS spin while they wait: on a busy machine a small factorisation takes thirty times as long with them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# No deadline: test machines are often shared. Derandomised: a failure comes back on the next run.
settings.register_profile("mcq", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("mcq")
