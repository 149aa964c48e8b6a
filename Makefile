# `make help` lists the targets. Everything lands in .venv; nothing else on the machine is touched but the model cache.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Elsewhere on Linux torch's default wheel brings CUDA along; choose another with, for example,
#   make demo TORCH_PIP_ARGS="--index-url <your torch CPU index>"
TORCH_PIP_ARGS ?=
MODELS := .kleash/models.json
PEERS := .kleash/bench/packages
export PYTHONDONTWRITEBYTECODE :=  # hundreds of processes that tests start would each compile our code anew
# $(call given,NAME,--option): the option, if NAME= was typed after `make`; many a shell exports its own PORT.
given = $(if $(filter command,$(origin $1)),$2 "$($1)")

.PHONY: help
help: ## This list
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "%-17s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.worker $(MODELS) ## Score two sentences and train a model with PPO on this machine, then clean up
	@$(PY) -m kleash demo --models $(MODELS)

.PHONY: up
up: $(VENV)/.worker $(MODELS) ## The whole stack in the foreground until Ctrl-C: http://127.0.0.1:8000 (PORT=, DATA=)
	@$(PY) -m kleash up --models $(MODELS) --unsafe-no-auth $(call given,PORT,--port) $(call given,DATA,--data)

.PHONY: test
test: $(VENV)/.dev $(MODELS) ## All tests (at most 10 minutes on 2 cores)
	@$(PY) -m pytest -n 4 --dist worksteal $(PYTEST_ARGS)

.PHONY: chaos
chaos: $(VENV)/.dev ## kill -9 and SIGSTOP of every process under load: ROUNDS=12, SEED=, one JSON object at the end
	@$(PY) -W ignore -m tests.faults.chaos --rounds $(or $(ROUNDS),12) $(if $(SEED),--seed $(SEED))

.PHONY: soak
soak: $(VENV)/.dev $(MODELS) ## Fault points, bad runs, simulation, model, resume matrix, chaos: BUDGET_MIN=30, SEED=
	@$(PY) -W ignore -m tests.faults.soak --budget-min $(or $(BUDGET_MIN),30) $(if $(SEED),--seed $(SEED))

.PHONY: bench-scoring
bench-scoring: $(MODELS) $(PEERS)/.done ## Exact KL beside plain forwards, TRL's way, ctranslate2, HTTP: ROUNDS=, ONLY="mix …"
	@$(PY) -W ignore -m benchmarks.scoring --registry $(MODELS) --packages $(PEERS) \
	  $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

.PHONY: bench-ppo
bench-ppo: $(MODELS) $(PEERS)/.done ## PPO beside TRL's last: time, memory, reward at equal KL: ROUNDS=, ONLY="tiny lora …"
	@$(PY) -W ignore -m benchmarks.ppo --registry $(MODELS) --packages $(PEERS) \
	  $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

.PHONY: bench-http
bench-http: $(MODELS) ## HTTP beside a bare handler, 500 streams, scoring and training, 100,000 jobs, overload: ROUNDS=, ONLY="polls …"
	@$(PY) -W ignore -m benchmarks.http --registry $(MODELS) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

.PHONY: recipes
recipes: $(VENV)/.worker $(MODELS) ## The runs of docs/recipes.md: a bandit, a β sweep, a proxy against gold: ONLY="bandit …"
	@set -e; for name in $(or $(ONLY),bandit beta_sweep proxy_gold); do case $$name in \
	  bandit) $(PY) -m examples.recipes.bandit ;; \
	  *) $(PY) -W ignore -m examples.recipes.train examples/recipes/$$name.json ;; esac; done

.PHONY: check
check: lint types test ## What CI runs: format, lint, types, import contracts, tests

.PHONY: lint
lint: $(VENV)/.dev ## Format and lint, without changing anything, and the import contracts
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/lint-imports

.PHONY: types
types: $(VENV)/.dev ## mypy, strict
	@$(VENV)/bin/mypy

.PHONY: format
format: $(VENV)/.dev ## Rewrite the sources in the house's format
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

.PHONY: openapi
openapi: $(VENV)/.worker ## docs/openapi.json again, from the routes
	@$(PY) -m api.openapi > docs/openapi.json

.PHONY: models
models: $(VENV)/.worker ## ./models with the default pair and its registry, for docker compose
	@$(PY) examples/prepare_model.py --folder models

.PHONY: example-adapter
example-adapter: $(VENV)/.worker $(MODELS) ## Train the default policy's adapter again (examples/README.md)
	@$(PY) examples/train_adapter.py

.PHONY: lock
lock: ## Write locks/*.lock again (needs uv)
	@locks/lock.sh

# Always: the cache may have moved or gone since; nothing is done twice.
.PHONY: $(MODELS)
$(MODELS): $(VENV)/.worker
	@mkdir -p -m 700 $(dir $@)
	@$(PY) examples/prepare_model.py --registry $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	  || { echo "kleash needs Python 3.11, 3.12 or 3.13; name one with: make demo PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment; install its venv package (Debian: apt install python3-venv)"; exit 1; }

$(VENV)/.worker: $(VENV)/bin/pip locks/worker.lock pyproject.toml
	@echo "Installing locked dependencies into $(VENV) (a few minutes, once) …"
	@$(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0 $(TORCH_PIP_ARGS)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r locks/worker.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.worker locks/dev.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r locks/dev.lock
	@touch $@

# What kleash is measured against stays out of .venv: nothing of ours may come to need it.
$(PEERS)/.done: $(VENV)/.worker locks/bench.lock
	@rm -rf $(PEERS)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --target $(PEERS) -r locks/bench.lock
	@touch $@
