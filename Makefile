# `make run` and `make test` need Python >= 3.11 and nothing else; `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes

.DEFAULT_GOAL := help
.PHONY: help run test chaos fuzz soak bench analysis check format lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

run: $(VENV)/.installed ## serve on http://127.0.0.1:5000 with three local replicas (ARGS="--replicas 5")
	@exec $(BIN)/loadbalancer serve $(ARGS)

test: $(VENV)/.installed-dev ## run every test; those that need a Docker Engine are skipped when none answers
	$(BIN)/python -m pytest $(ARGS)

chaos: $(VENV)/.installed-dev ## break things under load, five times each, and report what clients notice (about 20 minutes)
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: $(VENV)/.installed-dev ## mutated and mixed requests and answers, cut anywhere, and odd ones beside nginx: 25 times as many as make test
	FUZZ=$(or $(FUZZ),25) $(BIN)/python -m pytest --timeout 3600 --show-capture=no tests/unit/proxy/fast/test_quick.py \
		tests/unit/proxy/fast/test_bodies.py tests/unit/proxy/fast/test_interleaving.py \
		tests/unit/proxy/test_proxy_protocol.py tests/integration/test_differential.py \
		tests/integration/test_differential_answers.py $(ARGS)

soak: $(VENV)/.installed-dev ## ten minutes at full load: memory stays flat, no file is left open (wants wrk installed)
	$(BIN)/python -m analysis.bench.soak $(ARGS)

bench: $(VENV)/.installed-dev ## compare with nginx and HAProxy on this machine, with wrk (one row: ARGS="--only varied")
	$(BIN)/python -m analysis.bench $(ARGS)

analysis: $(VENV)/.installed-dev ## run the experiments and write docs/analysis.md with its pictures (about 10 minutes)
	$(BIN)/python -m analysis report $(ARGS)

check: $(VENV)/.installed-dev ## lint, formatting and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/.installed-dev ## resolve the dependencies of pyproject.toml anew into the lock files
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
		--no-header --extra build pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
		--no-header --extra build --extra test --extra analysis --constraint requirements.lock pyproject.toml \
		--output-file requirements-dev.lock

clean: ## remove the environment and every cache
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, this is " + sys.version.split()[0] + \
		": name another with make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(PIP) -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(PIP) -r requirements-dev.lock
	@touch $@
