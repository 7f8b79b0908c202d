"""Settings shared by all tests."""

from hypothesis import settings

# No deadline: test machines are often shared. Derandomised: a failure comes back on the next run.
settings.register_profile("mcq", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("mcq")
