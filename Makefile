# onefed: the verbs of this repository. Every one sets up what it needs; `make help` lists them.

.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Workers of the test run: many tests wait for processes, so one more than two cores.
JOBS ?= 3
# First seed and number of schedules of a simulation.
SEED ?= 0
N ?= 1000

# Where the trees that take minutes are kept.
BOOTS ?= build/boots

.PHONY: help setup demo test integration peer boots proofs kills simulation sim lint fmt docs bench pin clean

help: ## list the verbs
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

# The stamp is newer than what it was made from, so a second run does nothing.
$(VENV)/.ready: pyproject.toml setup.py constraints.txt scripts/setup $(wildcard src/onefed/aggregate/kernels/c/*)
	@scripts/setup '$(PYTHON)' '$(VENV)'

setup: $(VENV)/.ready ## make the virtual environment in .venv, with pinned dependencies

demo: setup ## train a federation of real Flower processes on this machine, about a minute
	@mkdir -p build
	$(BIN)/onefed up --name demo --replace --nodes 3 --rounds 5 --summary build/demo-summary.json

test: setup ## run the tests, a real federation included
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m '(main_job or not flower) and not peer and not vm'

integration: setup ## run the tests that start many real Flower processes
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m 'flower and not main_job'

peer: setup ## run the tests of groups without a coordinator; two minutes of faults by chance
	$(BIN)/pytest tests/integration/test_peer*.py -m peer -n 2 --dist worksteal
	$(BIN)/python -m campaigns.peer_faults --soak --seed $$(date +%s) --minutes 2 --results build/peer_faults.jsonl

proofs: setup ## attack the checkpoints: failing disks, power cuts, damage, 2,000 histories
	$(BIN)/python -m campaigns.store_machine --seeds 40 --results build/proofs/store_machine.jsonl
	$(BIN)/python -m campaigns.power_cut --states 10000 --results build/proofs/power_cut.jsonl
	$(BIN)/python -m campaigns.kth_call --cases 5 --results build/proofs/kth_call.jsonl
	$(BIN)/python -m campaigns.mutations --count 1000 --results build/proofs/mutations.jsonl

kills: setup ## kill processes of real federations at named points, 15 seeds: the same bits?
	$(BIN)/python -m campaigns.kills --soak 15 --jobs 2 --minutes 8 --results build/kills.jsonl

simulation: setup ## the peer protocol: fixed schedules, fresh ones, and seeded bugs
	$(BIN)/onefed peer simulate --schedules 600
	$(BIN)/onefed peer simulate --seed $$(date +%s)00000 --schedules 100000 --seconds 40
	$(BIN)/onefed peer simulate --mutants

sim: setup ## simulate schedules of the peer protocol: SEED=7 N=1000
	$(BIN)/onefed peer simulate --seed $(SEED) --schedules $(N)

boots: setup ## boot whole appliances: systemd, Docker, TLS (Debian, root, systemd-container, mmdebstrap)
	$(BIN)/python -m campaigns.boots.tree $(BOOTS)
# Namespaces of their own: no bridge, mount or process outlives them.
	unshare --net --mount --pid --fork --kill-child --mount-proc $(BIN)/pytest -m vm tests/boots

lint: setup ## check style, types, the map of imports, and spelling
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

fmt: setup ## format the sources
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

docs: setup ## write the generated pages anew
	$(BIN)/python -m onefed.context.reference > docs/context.md
	$(BIN)/python -m onefed.cli.reference > docs/commands.md
	$(BIN)/python -m onefed.appliance.reference > docs/boot.md

bench: setup ## measure, beside stock Flower in the same run
	$(BIN)/python bench/hub.py
	$(BIN)/python bench/clients.py
	$(BIN)/python bench/rules.py
	$(BIN)/python bench/deltas.py
	$(BIN)/python bench/peer.py

pin: setup ## write the versions that are installed now to constraints.txt
	scripts/pin $(BIN)/python

clean: ## remove the environment and everything that was built
	rm -rf '$(VENV)' build .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
