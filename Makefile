# Every target sets up what it needs and is missing. PYTHON= names the Python to set up with.

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast ui-check recording chaos soak hostile bench conformance check lock images-check clean clean-all

SET_UP = python="$$(scripts/find_python.sh)" && "$$python" -m scripts.set_up
PROJECT_PYTHON = .venv/bin/python

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s%s\n", $$1, $$2 }' Makefile

setup: ## make both environments (once; minutes)
	@$(SET_UP)

run: ## start emulator, worker with vLLM on the CPU, and proxy; MODEL= serves another model, ENGINE=scripted none
	@$(SET_UP) ports project
	@$(PROJECT_PYTHON) -m scripts.run

test: setup ## run every test, real vLLM included; ARGS= goes to pytest
	@$(PROJECT_PYTHON) -m pytest -m "not ui" $(ARGS)

test-fast: ## run the quick tests that need no vLLM, in four processes; ARGS= goes to pytest
	@$(SET_UP) project worker-next
	@$(PROJECT_PYTHON) -m pytest -n 4 --dist loadfile --ignore=tests/ui -m "not slow and not vllm" $(ARGS)

ui-check: setup ## use the status page, Open WebUI and a page in a real browser, try the guides for Node.js; SCREENSHOT= keeps a picture
	@$(PROJECT_PYTHON) -m scripts.ui_tools
	@$(PROJECT_PYTHON) -m pytest tests/ui $(ARGS)

recording: ## film `make run` in a terminal (tmux) for the README; COMMAND= films another command
	@$(SET_UP) project
	@$(PROJECT_PYTHON) -m scripts.recording

chaos: ## break everything at random, for long; SEED= and REQUESTS= say how
	@$(SET_UP) project
	@$(PROJECT_PYTHON) -m tests.chaos.storm $(if $(SEED),--seed $(SEED)) $(if $(REQUESTS),--requests $(REQUESTS))

soak: ## hold many streams for long and look for leaks; MINUTES= and STREAMS= say how
	@$(SET_UP) project
	@$(PROJECT_PYTHON) -m tests.chaos.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(STREAMS),--streams $(STREAMS))

hostile: ## send bodies that cost as much as they can, and print how long others wait meanwhile
	@$(SET_UP) project
	@$(PROJECT_PYTHON) -m tests.chaos.hostile

BENCH = $(if $(FULL),--full) $(if $(PROFILE),--profile) $(if $(BASELINE),--baseline $(BASELINE)) $(if $(ONLY),--only $(ONLY)) \
    $(if $(STREAMS),--streams $(STREAMS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) \
    $(if $(BASE_URL),--base-url $(BASE_URL)) $(if $(MODEL),--model $(MODEL))

bench: ## measure what the proxy costs, beside the engine itself; BASELINE= names a build to measure with it, FULL=1 takes half an hour
	@$(SET_UP) project worker-next
	@$(PROJECT_PYTHON) -m tests.bench $(BENCH)

conformance: ## run real clients through the proxy and against vLLM; CLIENTS= runs only some
	@$(SET_UP) project vllm models
	@$(PROJECT_PYTHON) -m tests.conformance $(CLIENTS)

check: ## lint, formatting, types, and which package imports which
	@$(SET_UP) project
	@$(PROJECT_PYTHON) -m ruff check
	@$(PROJECT_PYTHON) -m ruff format --check
	@$(PROJECT_PYTHON) -m mypy
	@.venv/bin/lint-imports --no-cache

lock: ## regenerate requirements/*.txt; UPGRADE=1 takes the newest of everything
	@python="$$(scripts/find_python.sh)" && "$$python" -m scripts.lock $(if $(UPGRADE),--upgrade)

images-check: setup ## build both images and run them, without Docker (needs root on Debian)
	@scripts/images_check.sh

clean: ## remove what was made here, but not the shared cache
	rm -rf .venv .venv.lock .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build \
	    tests/conformance/node/node_modules tests/emulator/js/node_modules*

clean-all: clean ## remove vLLM's environments too, for all clones
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/runpod-openai-proxy"
