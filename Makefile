# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
.DEFAULT_GOAL := help
PYTHON ?= python3
LAB := $(PYTHON) tests/lab/lab.py
MAKEFLAGS += --no-print-directory

.PHONY: help up test accept test-gpu down ask bench accuracy lint unit lock docs
help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

up: ## from this machine alone to an answered prompt, on local hosts
	@$(LAB) up

test: ## every check of the project, with a summary
	@$(PYTHON) tests/run.py

down: ## remove every container, network, image and file that the lab made (KEEP_CACHE=1 keeps downloads)
	@$(LAB) down

ask: ## stream one completion: make ask PROMPT="You may reproduce"
	@$(LAB) ask "$(PROMPT)"

accept: ## examine the lab's GPU hosts as a site does, and write reports/acceptance/
	@$(LAB) exec ansible-playbook -i inventories/lab playbooks/acceptance.yml

test-gpu: ## every GPU module and active test on this machine's NVIDIA GPU, offline: make test-gpu PYTHON=python-with-cupy
	@$(PYTHON) tests/gpu/run.py

bench: ## measure, and write docs/benchmarks.md
	@$(PYTHON) tests/bench/run.py

accuracy: ## hold the planner against published engine logs, and write the tables of docs/planning.md
	@$(LAB) exec sh -c "$(PYTHON) tests/bench/accuracy.py && $(PYTHON) tests/bench/speed.py"

lint: ## the static checks alone
	@$(PYTHON) tests/run.py lint

unit: ## the unit tests alone
	@$(PYTHON) tests/run.py unit

docs: ## write each role's README table from its argument specs
	@$(LAB) exec $(PYTHON) tests/role_docs.py --write

lock: ## resolve requirements/*.in into the pinned locks
	@$(LAB) exec sh -c 'for name in runtime dev; do uv pip compile -q --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command "make lock" \
	  requirements/$$name.in -o requirements/$$name.lock; done'
