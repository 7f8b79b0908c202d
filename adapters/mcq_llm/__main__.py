"""``python -m mcq_llm`` is ``mcq llm``, for launchers that start modules: ``torchrun -m mcq_llm quantize ...``."""

import sys

from mcq.cli import main

sys.argv.insert(1, "llm")
main()
