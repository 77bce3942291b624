# SPDX-License-Identifier: Apache-2.0
#
# Needs Python 3.11 or newer, git and make; everything else is installed below the checkout.

PYTHON ?= python3
UV_VERSION := 0.13.9
NEWEST := 3.3
OLDER := 3.0 3.1 3.2

# The Python versions an Airflow was released for; any other has no working dependencies.
PYTHON_3.0 := >=3.11,<3.13
PYTHON_3.1 := >=3.11,<3.14
PYTHON_3.2 := >=3.11,<3.15

# The layers that know nothing of Airflow are covered to the last branch.
BELOW_HOOKS := exceptions.py models.py pacing.py client.py services/* ledger/* bulk/* waiting/*

PACKAGE := airflow_provider_distribute
SOURCES := $(PACKAGE) demo tests $(wildcard benchmarks example_dags)
BIN := .venv/bin
UV := .build/uv/bin/python .ci/uv.py
UV_READY := .build/uv/ready-$(UV_VERSION)
INSTALLED := .venv/ready
ENVIRONMENT_OF = .build/airflow-$(1)

comma := ,
empty :=
space := $(empty) $(empty)

# Two at a time, each with its output in one piece; a make of before 4.0 mixes the lines.
TWO_AT_A_TIME := --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# Tests of one file share what is slow to set up, so they stay in one process.
IN_TWO_PROCESSES := --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.DELETE_ON_ERROR:
.PHONY: help demo test checks install environments lint types fmt unit integration test-distributed cover \
	cover-unit cover-integration cover-report constraints clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@sed -n 's/^\([a-z%-]*\):.*  ## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 26

demo: $(INSTALLED)  ## Run 100 prompts through a real Airflow and the emulator (KEEP=1 leaves the UI up)
	@$(BIN)/python -m demo.run $(if $(KEEP),--keep)

test: install environments  ## Everything that CI runs
	@$(BIN)/coverage erase
	@$(MAKE) --no-print-directory $(TWO_AT_A_TIME) checks

# The longest first.
checks: cover-integration lint types cover-unit $(OLDER:%=test-on-%) test-distributed cover-report

install: $(INSTALLED)  ## Install the newest Airflow and the tools into .venv

environments: $(OLDER:%=environment-%)

environment-%: $(UV_READY)
	@if $(HAS_PYTHON); then $(MAKE) --no-print-directory $(call ENVIRONMENT_OF,$*)/ready; fi

lint: $(INSTALLED)  ## Check style and format
	@echo "== ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(INSTALLED)  ## Put style and format right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)  ## Check types
	@echo "== mypy"
	$(BIN)/mypy $(SOURCES) .ci/uv.py

unit: $(INSTALLED)  ## Tests without a real Airflow
	$(BIN)/python -m pytest tests $(IN_TWO_PROCESSES) -m "not integration and not distributed"

integration: $(INSTALLED)  ## Tests on a real scheduler, triggerer and worker
	$(BIN)/python -m pytest tests -m integration

test-distributed: $(INSTALLED)  ## Tests on Celery workers and two triggerers
	$(BIN)/python -m pytest tests -m distributed

cover: $(INSTALLED)  ## Unit and integration tests on the newest Airflow, with coverage
	@$(BIN)/coverage erase
	@$(MAKE) --no-print-directory cover-unit cover-integration cover-report

cover-unit: $(INSTALLED)
	@echo "== unit tests on Airflow $(NEWEST)"
	$(BIN)/coverage run -m pytest tests $(IN_TWO_PROCESSES) -m "not integration and not distributed"

cover-integration: $(INSTALLED)
	@echo "== integration tests on Airflow $(NEWEST)"
	$(BIN)/coverage run -m pytest tests -m integration

cover-report: cover-unit cover-integration
	@echo "== coverage"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=95
	$(BIN)/coverage report --fail-under=100 \
	    --include='$(subst $(space),$(comma),$(BELOW_HOOKS:%=$(PACKAGE)/%))'

HAS_PYTHON = $(UV) python find --no-project '$(PYTHON_$*)' >/dev/null 2>&1

test-on-%: environment-%  ## Airflow-facing tests on an older Airflow, e.g. make test-on-3.1
	@echo "== tests on Airflow $*"
	@if $(HAS_PYTHON); then \
	    $(call ENVIRONMENT_OF,$*)/bin/python -m pytest tests/airflow $(IN_TWO_PROCESSES) && \
	    $(call ENVIRONMENT_OF,$*)/bin/python -m pytest tests/integration -m every_airflow; \
	elif [ -n "$$CI" ]; then \
	    echo "no Python $(PYTHON_$*) on this machine, which Airflow $* needs"; exit 1; \
	else \
	    echo "LEFT OUT: no Python $(PYTHON_$*) on this machine, which Airflow $* needs"; \
	fi

constraints: $(UV_READY)  ## Pin the newest releases of all dependencies, for each Airflow
	$(foreach version,$(OLDER),$(call PIN,$(version),test)$(newline))
	$(call PIN,$(NEWEST),dev)

clean:  ## Remove all that these commands have installed and written
	rm -rf .venv .build .demo .coverage .coverage.* .mypy_cache .ruff_cache .hypothesis

define newline


endef

PIN = $(UV) pip compile --quiet --universal --python-version 3.11 --upgrade --no-annotate --no-emit-index-url \
	--custom-compile-command "make constraints" --group $(2) \
	pyproject.toml constraints/airflow-$(1).in --output-file constraints/airflow-$(1).txt

# $(1) environment, $(2) constraints, $(3) dependency group, $(4) Python
define INSTALL
	test -x $(1)/bin/python || $(UV) venv --quiet --python '$(4)' $(1)
	$(UV) pip install --quiet --compile-bytecode --python $(1)/bin/python \
	    --constraint $(2) --build-constraint $(2) --editable . --group $(3)
	touch $@
endef

$(INSTALLED): constraints/airflow-$(NEWEST).txt pyproject.toml $(UV_READY)
	$(call INSTALL,.venv,$<,dev,$(PYTHON))

$(call ENVIRONMENT_OF,%)/ready: constraints/airflow-%.txt pyproject.toml $(UV_READY)
	$(call INSTALL,$(@D),$<,test,$(PYTHON_$*))

$(UV_READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .build/uv
	.build/uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	touch $@
