# Every target sets up what it needs: a virtual environment in .venv with pinned versions.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 2

.PHONY: demo test acceptance full-size performance lint clean

demo: .venv/ready
	$(BIN)/flowopd demo --out runs/demo

test: .venv/ready lint
	$(BIN)/python -m pytest -m "not slow"

# What the demo promises, measured on the whole test split: about a quarter of an hour.
acceptance: .venv/ready
	$(BIN)/python -m pytest -m slow tests/acceptance/test_demo.py

# One update of the real transformer's size on a CPU: about ten minutes, 12 GiB of memory and 10 GiB of disk.
full-size: .venv/ready
	$(BIN)/python -m pytest -m slow tests/acceptance/test_full_size.py -s

# docs/PERFORMANCE.md anew, every number of it: about half an hour on two cores that do nothing else.
BENCH := $(BIN)/flowopd bench --preset small
MEASURED := docs/performance
performance: .venv/ready
	$(BENCH) --batch 4 --steps 3 --vs naive --out $(MEASURED)/all-steps.json
	$(BENCH) --batch 4 --steps 3 --vs naive --student-guidance 1 --out $(MEASURED)/all-steps-absorbing.json
	$(BENCH) --batch 2 --steps 10 --vs naive --query beta --out $(MEASURED)/one-query.json
	$(BENCH) --batch 2 --steps 10 --vs naive --query beta --student-guidance 1 --out $(MEASURED)/one-query-absorbing.json
	$(BENCH) --batch 4 --steps 3 --vs replay --out $(MEASURED)/all-steps-replay.json
	$(BENCH) --teachers 1 --steps 1 --scan batch --out $(MEASURED)/scan-batch.json
	$(BENCH) --teachers 1 --batch 2 --scan steps --out $(MEASURED)/scan-steps.json
	$(BENCH) --teachers 1 --batch 1 --steps 1 --scan tokens --out $(MEASURED)/scan-tokens.json
	$(BENCH) --batch 16 --steps 1 --scan teachers --out $(MEASURED)/scan-teachers.json
	$(BENCH) --batch 4 --steps 2 --profile --out $(MEASURED)/all-steps.txt
	$(BIN)/flowopd bench --page $(MEASURED)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and alone, so that nothing asks for another build of it.
.venv/ready: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
