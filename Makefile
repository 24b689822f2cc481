# Every target sets up what it needs: a virtual environment in .venv with pinned versions.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 2

.PHONY: demo test acceptance full-size browser studio-scale robustness monitors soak performance fuzz docs docs-serve wheel lint clean

demo: .venv/ready
	$(BIN)/flowopd demo --out runs/demo

# Two processes of one thread each: most of the tests' models are too small for two threads.
test: .venv/ready lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

# What the demo promises, measured on the whole test split: about a quarter of an hour.
acceptance: .venv/ready
	$(BIN)/python -m pytest -m slow tests/acceptance/test_demo.py

# One update of the real transformer's size on a CPU: about ten minutes, 12 GiB of memory and 10 GiB of disk.
full-size: .venv/ready
	$(BIN)/python -m pytest -m slow tests/acceptance/test_full_size.py -s

# Every page of the studio in headless Chromium; skipped where there is none (apt-get install chromium).
browser: .venv/ready
	$(BIN)/python -m pytest tests/studio/test_browser.py -rs

# The studio on 50 runs of 10,000 updates: time of the first paint, delay of news, memory. Needs 700 MB of disk.
studio-scale: .venv/ready
	$(BIN)/python -m pytest -m slow tests/acceptance/test_studio_scale.py -s -rs

# Runs of every trained stage, killed ten times each, by one process and by two: a few minutes.
robustness: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow" tests/stages/test_kills.py

# The bands of the monitors against the shipped experts, which are healthy: about a minute.
monitors: .venv/ready
	$(BIN)/python -m pytest -m slow tests/acceptance/test_monitors.py -s

# Memory and time of a long distillation of the mini demo: MINUTES of it.
MINUTES ?= 30
soak: .venv/ready
	$(BIN)/python tests/acceptance/soak.py --minutes $(MINUTES)

# docs/PERFORMANCE.md anew, every number of it: about half an hour on two cores that do nothing else.
BENCH := $(BIN)/flowopd bench --preset small
MEASURED := docs/performance
performance: .venv/ready
	$(BENCH) --batch 4 --steps 3 --vs naive --out $(MEASURED)/all-steps.json
	$(BENCH) --batch 4 --steps 3 --vs naive --student-guidance 1 --out $(MEASURED)/all-steps-absorbing.json
	$(BENCH) --batch 2 --steps 10 --vs naive --query beta --out $(MEASURED)/one-query.json
	$(BENCH) --batch 2 --steps 10 --vs naive --query beta --student-guidance 1 --out $(MEASURED)/one-query-absorbing.json
	$(BENCH) --batch 4 --steps 3 --vs replay --out $(MEASURED)/all-steps-replay.json
	$(BENCH) --teachers 1 --steps 1 --scan batch --repeats 3 --out $(MEASURED)/scan-batch.json
	$(BENCH) --teachers 1 --batch 2 --scan steps --repeats 3 --out $(MEASURED)/scan-steps.json
	$(BENCH) --teachers 1 --batch 1 --steps 1 --scan tokens --repeats 3 --out $(MEASURED)/scan-tokens.json
	$(BENCH) --batch 16 --steps 1 --scan teachers --repeats 3 --out $(MEASURED)/scan-teachers.json
	$(BENCH) --batch 4 --steps 2 --profile --out $(MEASURED)/all-steps.txt
	$(BIN)/flowopd bench --page $(MEASURED)

# Mutated recipes, adapters, prompts, suites and replies, FUZZ new ones of each kind: about half an hour.
FUZZ ?= 2500
fuzz: .venv/ready
	FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/hostile --hypothesis-show-statistics

# The documents as a site, in build/docs: open build/docs/index.html. A warning fails.
docs: .venv/ready
	$(BIN)/mkdocs build --strict

# The same at http://127.0.0.1:8000, built again with every change.
docs-serve: .venv/ready
	$(BIN)/mkdocs serve

# The wheel, built, looked into, installed into an empty environment from the index, and run: about ten minutes.
wheel: .venv/ready
	$(BIN)/python -m pytest tests/packaging -rs

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and alone, so that nothing asks for another build of it.
.venv/ready: pyproject.toml constraints.txt
	@echo "installing torch and what else is needed into .venv: some minutes, about 3 GB"
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
