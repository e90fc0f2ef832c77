# make        a first run: no GPU, no network after the install, minutes on two cores
# make check  for while you change things, within a minute: ruff, and the tests that train nothing and start nothing
# make test   ruff and every test, many minutes: what .ci/run calls
PYTHON ?= python3
V = .venv/bin/python

first-run: .venv/ready
	$(V) prepare.py --preset quick
	$(V) train.py --preset quick
	$(V) eval_blimp.py out/quick/ckpt.pt --data data/pocket/pairs
	$(V) sample.py out/quick/ckpt.pt --num-samples 3 --max-tokens 40 --seed 1
	@echo; echo "next, in this shell: source .venv/bin/activate"

check: .venv/ready
	$(V) -m ruff check .
	$(V) -m ruff format --check .
	$(V) -m pytest -q -n 2 -m "not slow"

test: .venv/ready
	$(V) -m ruff check .
	$(V) -m ruff format --check .
	$(V) -m pytest -q -n 2

# --no-compile halves the time: Python compiles each module when it is first imported
.venv/ready: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('error: Python 3.10 or newer is needed' if sys.version_info < (3, 10) else 0)"
	$(PYTHON) -m venv .venv
	$(V) -m pip install --quiet --no-compile -e .[dev]
	touch .venv/ready

.PHONY: first-run check test
