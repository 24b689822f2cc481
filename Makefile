# Every target sets up what it needs: a virtual environment in .venv with pinned versions.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 2

.PHONY: demo test acceptance full-size browser studio-scale robustness monitors soak lint clean

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
