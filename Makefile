# Every target sets up what it needs; a second run is quick.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check soak soak-metrics mutation bench-metrics clean

$(BIN)/tdev: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[cli,local]'
	touch $@

.venv/.ready: $(BIN)/tdev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[cli,local,test]'
	touch $@

demo: $(BIN)/tdev
	$(BIN)/tdev demo "a todo app with React and a REST API"

test: .venv/.ready
	$(BIN)/pytest

check: .venv/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.complexity

# Ten minutes of killed and frozen workers, and of a killed engine.
soak: .venv/.ready
	$(BIN)/python -m tests.chaos.soak

# 8 processes, 10,000 samples each, faults and kills: every awaited sample is in, once.
soak-metrics: .venv/.ready
	$(BIN)/python -m tests.soak

# Removes each condition of the services in turn; some test must fail for each.
mutation: .venv/.ready
	$(BIN)/python -m tests.mutation

bench-metrics: .venv/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python benchmarks/metrics_throughput.py
	$(BIN)/python benchmarks/metrics_queries.py
	$(BIN)/python benchmarks/ab_simulation.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
