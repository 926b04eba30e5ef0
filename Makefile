# Two commands do everything from a bare Python 3.11+: `make run` serves, `make test` proves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UV := 0.13.9
LOCK_HEADER := \# Every package this project installs, pinned by version and hash. Made by 'make lock'; do not edit.

.PHONY: run run-aws test lint format train evaluate lambda bench-decryptor locust peers bench profile soak lock clean help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

run: $(INSTALLED) ## Set up what is missing and serve on http://127.0.0.1:8000 until Ctrl-C
	@exec $(BIN)/fooddx serve

run-aws: $(INSTALLED) ## The same with all of AWS, emulated on this machine: buckets, queue, keys, two tenants
	@exec $(BIN)/python -m loadtests.aws

test: $(INSTALLED) ## Set up what is missing and run every test, the browser's included
	@$(BIN)/python -m tests.setup
	@$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),--ignore tests/models/training)
	@# Training in a process of its own: after all the others, in theirs, it ended once in a segmentation fault.
	@$(if $(ARGS),,$(BIN)/python -m pytest tests/models/training)

lint: $(INSTALLED) ## Check style, docstrings, security rules and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(INSTALLED) ## Put the code into its one format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

train: $(INSTALLED) ## Train the default model anew on labelled photos: DATA=folder, hours on a CPU; OPTIONS='--epochs 12'
	@test -n "$(DATA)" || { echo "Say which photos: make train DATA=folder. docs/models.md says what may be in it"; exit 2; }
	@$(BIN)/python -m models.train "$(DATA)" --name meals-lite2 --base imagenet-lite2 --input 224 --epochs 40 $(OPTIONS)

evaluate: $(INSTALLED) ## Measure the models: on DATA=folder of labelled photos, else on photos from public packages
	@$(BIN)/python -m models.evaluate $(if $(DATA),--data "$(DATA)") $(OPTIONS)

lambda: $(INSTALLED) ## Build the credential decryptor for AWS Lambda: build/decryptor.zip
	@$(BIN)/python -m app.tenants.package build/decryptor.zip --python 3.13 --arch arm64

bench-decryptor: $(INSTALLED) ## Measure its cold starts under Lambda's runtime emulator
	@$(BIN)/python -m loadtests.decryptor --cold 20 $(OPTIONS)

locust: SHAPE ?= steady
locust: $(INSTALLED) ## Load a running service with many users; report in build/locust: SHAPE=ramp OPTIONS='-u 64 --processes 2'
	@$(BIN)/locust -f loadtests/locustfile.py --headless --only-summary --host http://127.0.0.1:8000 \
	  --shape $(SHAPE) --html build/locust/$(SHAPE).html --csv build/locust/$(SHAPE) $(OPTIONS)

bench: $(INSTALLED) ## Measure the service against its floor on this machine: OPTIONS='--only floor,closed --rounds 1'
	@$(BIN)/python -m loadtests.bench $(OPTIONS)

profile: $(INSTALLED) ## Show where each process spends its time under load; flame graphs in build/profile
	@$(BIN)/python -m loadtests.profiling $(OPTIONS)

soak: $(INSTALLED) ## Load the service for ten minutes and see that no process grows
	@$(BIN)/python -m loadtests.soak $(OPTIONS)

peers: $(INSTALLED) ## Measure FoodDX beside mosec, LitServe, BentoML, FastAPI and plain Ray Serve: OPTIONS='--rounds 5'
	@$(BIN)/python -m loadtests.peers.run $(OPTIONS)

# Pins that still fit stay; UPGRADE=1 takes the newest of everything. An address in the lock would tie it to one index.
lock: ## Write requirements.lock anew from pyproject.toml
	@set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	$(PYTHON) -m venv $$work/venv; \
	$$work/venv/bin/python -m pip install --disable-pip-version-check --quiet uv==$(UV); \
	cp requirements.lock $$work/pins; \
	$$work/venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra test \
	  --no-emit-index-url --no-annotate --no-header $(if $(UPGRADE),--upgrade) \
	  --output-file $$work/pins pyproject.toml > /dev/null; \
	if grep -n '://' $$work/pins; then echo "These lines name where a package lies"; exit 1; fi; \
	{ echo "$(LOCK_HEADER)"; cat $$work/pins; } > $$work/lock; \
	mv $$work/lock requirements.lock; \
	grep -c == requirements.lock | sed 's/$$/ packages pinned/'

clean: ## Remove what was installed and built; `data` stays
	rm -rf $(VENV) build *.egg-info

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.11 …")'
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned packages (about 6 GB with the CUDA libraries of torch; a few minutes)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@
