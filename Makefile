# The two commands of the README: `make try` and `make test`. Everything else is a part of them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
REFERENCE := build/python_reference.txt

.PHONY: try test lint types unit schemas bench clean

try: $(VENV)/.installed $(REFERENCE)  ## set up, then ask a real long text a question, offline
	$(BIN)/longroute ask "What does the with statement do?" $(REFERENCE)

test: lint types unit  ## everything that must hold; CI runs exactly this

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folder may have any name after a clone, so type-checking goes through a link that has the package's name.
types: $(VENV)/.installed
	@mkdir -p build/typed && ln -sfn ../.. build/typed/longroute
	cd build/typed && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml --explicit-package-bases \
		longroute/router longroute/retrievers longroute/compressors longroute/policies longroute/benchmarks longroute/tests

unit: $(VENV)/.installed
	$(BIN)/python -m pytest -q

schemas: $(VENV)/.installed  ## rewrite docs/schemas after a change of the --json output
	$(BIN)/python -m longroute.router.outputs docs/schemas

bench: $(VENV)/.installed  ## the quick benchmarks behind the table in the README
	$(BIN)/python -m benchmarks.preparation

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[embed,files,proxy,code,local,dev]'
	@touch $@

$(REFERENCE): $(VENV)/.installed
	@mkdir -p build
	$(BIN)/python -c "from pydoc_data.topics import topics; print('\n\n'.join(topics.values()))" > $@

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
