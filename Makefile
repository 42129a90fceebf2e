# `make run` and `make test` need only Python >= 3.11; `make help` lists all targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes

.DEFAULT_GOAL := help
.PHONY: help run test chaos fuzz soak bench analysis check hooks format lock clean

help: ## list all targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

run: $(VENV)/.installed ## serve on http://127.0.0.1:5000 with three local replicas (ARGS="--replicas 5")
	@exec $(BIN)/loadbalancer serve $(ARGS)

test: $(VENV)/.installed-dev ## run all tests; without a Docker Engine, the tests that need one are skipped
	$(BIN)/python -m pytest $(ARGS)

chaos: $(VENV)/.installed-dev ## inject each fault five times under load, and count the requests that fail (about 20 minutes)
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: $(VENV)/.installed-dev ## run the fuzz tests of make test with 25 times as many examples
	FUZZ=$(or $(FUZZ),25) $(BIN)/python -m pytest --timeout 3600 --show-capture=no tests/unit/proxy/fast/test_quick.py \
		tests/unit/proxy/fast/test_bodies.py tests/unit/proxy/fast/test_interleaving.py \
		tests/unit/proxy/test_proxy_protocol.py tests/integration/test_differential.py \
		tests/integration/test_differential_answers.py $(ARGS)

soak: $(VENV)/.installed-dev ## run ten minutes of full load, and check memory and open files (needs wrk)
	$(BIN)/python -m analysis.bench.soak $(ARGS)

bench: $(VENV)/.installed-dev ## compare with nginx and HAProxy on this machine (needs wrk; one row: ARGS="--only varied")
	$(BIN)/python -m analysis.bench $(ARGS)

analysis: $(VENV)/.installed-dev ## run the experiments, and write docs/analysis.md and its plots (about 10 minutes)
	$(BIN)/python -m analysis report $(ARGS)

check: $(VENV)/.installed-dev ## check the rules: format, lint, types, imports, lengths, unused code, dependencies, the wheel
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.rules.lengths
	$(BIN)/vulture loadbalancer server analysis
	$(BIN)/vulture
	$(BIN)/deptry .
	@rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/check-wheel-contents build/wheel

hooks: $(VENV)/.installed-dev ## have Git run make check at each commit, and the unit tests at each push
	$(BIN)/pre-commit install

format: $(VENV)/.installed-dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/.installed-dev ## resolve the dependencies of pyproject.toml into new lock files
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
		--no-header --extra build pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
		--no-header --extra build --extra test --extra analysis --constraint requirements.lock pyproject.toml \
		--output-file requirements-dev.lock

clean: ## remove the environment and every cache
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage
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
