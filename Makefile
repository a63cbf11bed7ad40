# Every target sets up what it needs; a second run is quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := pip install --quiet --disable-pip-version-check
# What was tested, file by file: a package that is not the one of these hashes is refused.
PINNED := $(INSTALL) --require-hashes --no-deps --requirement
ITSELF := $(INSTALL) --no-deps --no-build-isolation --editable .
COMPILE := uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
VERSIONS := sed -nE 's/^([a-z0-9._-]+==[^ ;]+).*/\1/p' requirements/test.txt
PYTHONS := 3.11 3.12 3.13
FLOOR := 1.35.94
PEERS := aiobotocore aiodynamo pydynox
ABSENT := echo "!!! Python $$version is not installed: nothing was tested on it"

.PHONY: demo test test-all test-floor check simulate soak away soak-metrics soak-backfill fuzz canary mutation look bench bench-metrics
.PHONY: clean requirements permissions
.PHONY: $(PYTHONS:%=test-%)

$(BIN)/tdev: setup.cfg pyproject.toml requirements/run.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PINNED) requirements/run.txt
	$(BIN)/$(ITSELF)
	touch $@

$(VENV)/.ready: $(BIN)/tdev requirements/test.txt
	$(BIN)/$(PINNED) requirements/test.txt
	touch $@

# Renews what is pinned, with the hashes of all files of each version.
requirements: $(BIN)/tdev
	$(BIN)/$(INSTALL) uv
	echo 'setuptools>=77' | $(BIN)/$(COMPILE) --extra cli --extra local --extra web - setup.cfg \
		--output-file requirements/run.txt
	$(BIN)/$(COMPILE) --constraint requirements/run.txt --extra cli --extra local --extra web --extra test --extra look \
		setup.cfg --output-file requirements/test.txt
	echo 'ministack>=1.5.33,<1.6' | $(BIN)/$(COMPILE) - --output-file requirements/permissions.txt

demo: $(BIN)/tdev
	$(BIN)/tdev demo "a todo app with React and a REST API"

test: $(VENV)/.ready
	$(BIN)/pytest

# The whole suite on each Python that is installed, one after the other.
test-all:
	@failed=; for version in $(PYTHONS); do \
		$(MAKE) test-$$version || failed="$$failed $$version"; \
	done; \
	for version in $(PYTHONS); do .ci/python $$version >/dev/null || $(ABSENT); done; \
	test -z "$$failed" || { echo "!!! failed on Python$$failed"; exit 1; }

$(PYTHONS:%=test-%): test-%:
	@version=$*; if python=$$(.ci/python $*); then \
		$(MAKE) test PYTHON=$$python VENV=.venv-$*; else $(ABSENT); fi

# A part of the suite with the oldest botocore that setup.cfg allows.
test-floor: .venv-floor/.ready
	.venv-floor/bin/pytest -p no:cacheprovider -k 'not moto' \
		tests/unit tests/engine/test_plan.py tests/engine/test_requests.py tests/transport/test_security.py

.venv-floor/.ready: setup.cfg pyproject.toml requirements/test.txt
	$(PYTHON) -m venv .venv-floor
	$(VERSIONS) | grep -Ev '^(botocore|boto3|s3transfer)==' > .venv-floor/constraints.txt
	.venv-floor/bin/$(INSTALL) --constraint .venv-floor/constraints.txt \
		--editable '.[test]' 'botocore==$(FLOOR)' 'boto3==$(FLOOR)'
	touch $@

check: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.complexity

# A million histories of workers, sessions and faults on a virtual clock; a seed repeats one.
simulate: $(VENV)/.ready
	$(BIN)/python -m tests.simulation --histories 1000000

# Ten minutes of killed and frozen workers, and of a killed engine.
soak: $(VENV)/.ready
	$(BIN)/python -m tests.chaos.soak

# The store away for ten minutes under a hundred sessions, and a worker frozen for one.
away: $(VENV)/.ready
	$(BIN)/python -m tests.chaos.away outage
	$(BIN)/python -m tests.chaos.away freeze

# 8 processes, 10,000 samples each, faults and kills: every awaited sample is in, once.
soak-metrics: $(VENV)/.ready
	$(BIN)/python -m tests.soak

# 100,000 rows filled beside 4 writers, killed ten times: every row right, no live write lost.
soak-backfill: $(VENV)/.ready
	$(BIN)/python -m tests.chaos.backfill

# A million inputs, random, structured and hostile: every error is a TdevError, quick and small.
# Some four minutes of one core.
fuzz: $(VENV)/.ready
	$(BIN)/python -m tests.fuzz

# The tests of the calls, watched at DEBUG: nothing that they store may be logged.
canary: $(VENV)/.ready
	TDEV_CANARY=1 $(BIN)/pytest -n 2 tests/engine

# Removes each condition of the services in turn; some test must fail for each.
mutation: $(VENV)/.ready
	$(BIN)/python -m tests.mutation

# The pages in Chromium, which must be installed: apt-get install chromium.
look: $(VENV)/.ready
	$(BIN)/pytest tests/web/test_browser.py

# Every call, and the migrations, under the policies that `tdev iam` prints, enforced by ministack.
permissions: $(VENV)/.ready .venv-permissions/.ready
	$(BIN)/pytest tests/permissions

# ministack pins botocore.
.venv-permissions/.ready: requirements/permissions.txt
	$(PYTHON) -m venv .venv-permissions
	.venv-permissions/bin/$(PINNED) $<
	touch $@

# This package beside other clients, in turns; rewrites docs/performance. Some ten minutes.
bench: $(VENV)/.ready $(PEERS:%=.venv-bench-%/.ready)
	$(BIN)/python -m benchmarks.clients

# Their dependencies exclude each other.
.venv-bench-%/.ready: benchmarks/clients/%.txt
	$(PYTHON) -m venv .venv-bench-$*
	.venv-bench-$*/bin/$(INSTALL) --requirement $<
	touch $@

bench-metrics: $(VENV)/.ready
	$(BIN)/$(INSTALL) --editable '.[bench]'
	$(BIN)/python benchmarks/metrics_throughput.py
	$(BIN)/python benchmarks/metrics_queries.py
	$(BIN)/python benchmarks/ab_simulation.py

clean:
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
