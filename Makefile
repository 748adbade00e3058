# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
comma := ,
# What the tests run with. pyproject.toml keeps the wider ranges that users may have.
TORCH := torch==2.13.0

# Batches of ever new shapes fragment glibc's heap: where this library is installed (libjemalloc2), training m0-nano takes its allocator.
JEMALLOC := $(firstword $(wildcard /usr/lib/*/libjemalloc.so.2))

.PHONY: demo test test-gpu test-browser parity peft-versions docs format wheel nano bench bench-training bench-explaining explaining clean

$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --editable '.[dev,parity,train,eval]'
	$(BIN)/python -m pip install --quiet --no-deps captum  # its requirements are there already, but for an old NumPy
	touch $@

demo: $(VENV)/.core  ## rank real mixed documents with m0-nano
	$(BIN)/python scripts/demo.py

test: $(VENV)/.dev  ## everything but full size: lint, types, unit tests, tiny parity
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-gpu: $(VENV)/.dev  ## on a CUDA GPU, with a PyTorch that knows it (`make clean`, then `make TORCH=torch test-gpu`)
	$(BIN)/python -m pytest -m gpu

test-browser: $(VENV)/.dev  ## pages of explanations in Chromium, where it is installed
	$(BIN)/python -m pytest -m browser -rs tests/explain

parity: $(VENV)/.dev  ## full size against transformers: 2.2 B random parameters, about 22 GiB of memory
	$(BIN)/python -m pytest -m slow tests/parity

peft-versions: $(VENV)/.dev  ## adapters written by peft 0.14 to 0.21 with transformers of their time: about 15 minutes, 3 GB of disk meanwhile
	$(BIN)/python scripts/check_peft_versions.py

docs: $(VENV)-docs/.done  ## the site in build/site, from nothing outside; to search it: python3 -m http.server -d build/site
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict
	@echo "build/site/index.html"

# An environment of its own with the extra `docs` alone: mkdocstrings reads the source, so that m0 and PyTorch need not be there.
$(VENV)-docs/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet $(subst $(comma), ,$(shell sed -n 's/^docs = \[\(.*\)\].*/\1/p' pyproject.toml))
	touch $@

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.dev
	$(BIN)/python -m build

nano: $(VENV)/.dev  ## m0-nano from raw packages to weights and figures (npm and apt-get needed; about 2 hours on 2 cores, or MINUTES=…)
	PYTHONPATH=scripts $(BIN)/python -m nano.build_data
	$(if $(JEMALLOC),LD_PRELOAD=$(JEMALLOC)) PYTHONPATH=scripts $(BIN)/python -m nano.train $(if $(MINUTES),--minutes $(MINUTES))
	PYTHONPATH=scripts $(BIN)/python -m nano.evaluate --write weights/m0-nano/README.md

bench: $(VENV)/.dev  ## speed and memory of the released size beside transformers, random weights: an hour and more, 5 GB of disk
	$(BIN)/python scripts/bench/speed.py --plot docs/pictures/growth.png
	$(BIN)/python scripts/bench/explaining.py

bench-training: $(VENV)/.dev  ## memory of a LoRA step at the released size: 2.2 B random parameters, 5 GB of disk
	$(BIN)/python scripts/bench/training.py

bench-explaining: $(VENV)/.dev  ## time and memory of one explanation at the released size: 2.2 B random parameters, 5 GB of disk
	$(BIN)/python scripts/bench/explaining.py

explaining: $(VENV)/.dev  ## figures and tables of docs/explanation/explaining.md and docs/explanation/study.md (needs what `make nano` builds)
	$(BIN)/python scripts/evaluate_explanations.py --write docs/explanation/explaining.md
	$(BIN)/python scripts/draw_figures.py --write docs/explanation/study.md

clean:
	rm -rf $(VENV) $(VENV)-docs build dist
