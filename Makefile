# `make demo` and `make test` make their environment on the first run; later runs find it and need no network.
#   PYTHON=python3.12   the Python that makes it
#   EXTRA=cpu           the CPU engine on a machine with a GPU (cpu or cuda; found out when not given)
#   VENV=/opt/venv      an environment that has vLLM already, as on AMD GPUs; nothing of its vLLM is changed
#   WORKERS=4           tests side by side, 2 if not given: each needs a core, and 4 GB for its engines
PYTHON ?= python3
VENV ?= .venv
EXTRA ?=
WORKERS ?= 2
RUN = $(VENV)/bin/python -m
# A file's tests stay together, since they share engines.
TESTS = OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) --dist loadfile
SETUP = $(PYTHON) scripts/setup_env.py --venv "$(VENV)" --kind "$(EXTRA)" --extra dev

.PHONY: help demo test test-slow check gpu-check demo-pair real-pair env clean

help:
	@echo "make demo       text, acceptance and speed of the bundled demo pair, on this machine"
	@echo "make test       what CI runs"
	@echo "make test-slow  the long end-to-end cases"
	@echo "make check      ruff format, ruff check, mypy strict"
	@echo "make gpu-check  on a machine with a GPU: kernels checked and timed, an 8B step in vLLM; ten minutes"
	@echo "make demo-pair  train the demo pair again, from its seed; ARGS=--install puts it into the package"
	@echo "make real-pair  drafts for SmolLM2-135M, trained and measured; ARGS='--train FILE --test FILE ...', hours"
	@echo "make clean      remove caches and build outputs; the environment stays (rm -r .venv)"

demo: env
	@$(VENV)/bin/vllm-pard demo

test: env
	@$(TESTS) -m "not slow"

test-slow: env
	@$(TESTS) -m slow

check: env
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) mypy scripts
	@$(RUN) mypy benchmarks

gpu-check: env
	@$(VENV)/bin/python benchmarks/gpu_check.py

demo-pair: env
	@$(RUN) vllm_pard.training.demo_pair $(ARGS)

real-pair: env
	@$(VENV)/bin/python benchmarks/real_pair.py $(ARGS)

env:
	@$(SETUP)

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .benchmarks .cache
	find vllm_pard kernels tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
