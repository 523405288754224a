# Each target makes .venv when it is missing. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The shape-checking hook: every jaxtyping signature of these packages is checked while the tests run.
CHECKED := scratchlm.model,scratchlm.loss,scratchlm.kernels,scratchlm.optim,scratchlm.generate,scratchlm.posttrain,beartype.beartype

.PHONY: demo demo-assistant test test-slow test-notebooks lint format bench-train bench-generate bench-distributed bench-tokenizer docs clean

demo: $(VENV)/.installed
	$(BIN)/scratchlm demo

# From the demo's model to an assistant. Whatever is there already is kept, so the second call chats at once.
demo-assistant: $(VENV)/.installed
	$(BIN)/scratchlm demo --restartable
	$(BIN)/scratchlm sft demo-sft --restartable
	$(BIN)/scratchlm dpo demo-dpo --restartable
	$(BIN)/scratchlm grpo demo-grpo --restartable
	if [ -t 0 ] && [ -t 1 ]; then $(BIN)/scratchlm chat runs/demo-grpo --alone; fi

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not gpu and not network and not compile and not interpret" --jaxtyping-packages=$(CHECKED)
	$(BIN)/python -m pytest -q -n 2 -m "compile and not slow and not gpu"
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "interpret and not slow" tests/kernels

test-slow: $(VENV)/.development
	$(BIN)/python -m pytest -q -m "slow and not gpu and not network and not interpret"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -m "slow and interpret" tests/kernels

# Copies in which every hidden solution is a cell, so that solutions are executed, too.
test-notebooks: $(VENV)/.notebooks
	$(BIN)/python notebooks/execute.py --solutions build/notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --nbmake --nbmake-timeout=300 build/notebooks

lint: $(VENV)/.development
	$(BIN)/ruff check src tests benchmarks notebooks
	$(BIN)/ruff format --check src tests benchmarks notebooks
	$(BIN)/lint-imports

format: $(VENV)/.development
	$(BIN)/ruff check --fix src tests benchmarks notebooks
	$(BIN)/ruff format src tests benchmarks notebooks

bench-tokenizer: $(VENV)/.benchmark
	$(BIN)/python benchmarks/bench_tokenizer.py
	$(BIN)/python benchmarks/tokenizer_table.py

bench-train: $(VENV)/.development
	$(BIN)/python benchmarks/bench_train.py
	$(BIN)/python benchmarks/train_table.py
	$(BIN)/python benchmarks/bench_optimizers.py
	$(BIN)/python benchmarks/bench_plan.py --save

bench-generate: $(VENV)/.development
	$(BIN)/python benchmarks/bench_generate.py --threads 1
	$(BIN)/python benchmarks/bench_serve.py
	$(BIN)/python benchmarks/generate_table.py

bench-distributed: $(VENV)/.development
	$(BIN)/python benchmarks/bench_distributed.py
	$(BIN)/python benchmarks/distributed_table.py

docs: $(VENV)/.documentation
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) dist build site .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch is named alone and exactly first: a range would fetch the newest build with its CUDA packages.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scratchlm needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt numpy torch==2.13.0
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e '.[serve]'
	touch $@

$(VENV)/.development: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev,docs,kernels,ray,acceptance]'
	touch $@

$(VENV)/.benchmark: $(VENV)/.development
	$(PIP) install -q -c constraints.txt -e '.[bench]'
	touch $@

$(VENV)/.notebooks: $(VENV)/.development
	$(PIP) install -q -c constraints.txt -e '.[notebooks]'
	touch $@

$(VENV)/.documentation: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	touch $@
