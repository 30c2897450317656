# make run experiment=pca_autoencoder          on a machine with nothing but Python and make
# make run args="seed=1 trainer.devices=2"     further overrides

VENV ?= .venv
PYTHON ?= python3 python3.13 python3.12 python3.11
experiment ?= pca_autoencoder
args ?=

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check
installed := $(VENV)/.installed
unfinished := $(VENV)/.unfinished
scripts := $(wildcard scripts/*.py scripts/*/*.py)
benchmarks := $(filter-out scripts/bench/_%,$(wildcard scripts/bench/*.py))

.DEFAULT_GOAL := help
.PHONY: help install run test check lint types format bench lock clean always

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  VENV=.venv     where the virtual environment lies'
	@echo '  PYTHON=...     the interpreter it is made with (3.11, 3.12 or 3.13)'

install: $(installed) ## make the virtual environment with the locked versions, if it is not there yet

run: $(installed) ## train and judge: experiment=pca_autoencoder args="seed=1 trainer.devices=2"
	@$(python) -m lab experiment=$(experiment) $(args)

test: $(installed) ## the whole test suite, a worker a core: args="-k pca -x"
	$(python) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(args)

check: lint types ## lint, formatting and types

lint: $(installed)
	$(python) -m ruff check .
	$(python) -m ruff format --check .

types: $(installed)
	$(python) -m mypy src/lab $(scripts)

format: $(installed) ## rewrite the code as `make check` wants it
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

bench: $(installed) ## run every benchmark in scripts/bench
	@test -n '$(benchmarks)' || { echo 'lab: scripts/bench holds no benchmark' >&2; exit 2; }
	@status=0; for script in $(benchmarks); do echo "== $$script"; $(python) $$script $(args) || status=1; done; exit $$status

lock: $(installed) ## write requirements.lock anew after a change of pyproject.toml: args=--upgrade takes the newest versions
	$(VENV)/bin/uv pip compile --universal --python-version 3.11 --fork-strategy fewest --all-extras --group build \
		--generate-hashes --no-emit-index-url --no-header --quiet $(args) pyproject.toml --output-file requirements.lock

clean: ## remove the virtual environment and all caches; outputs and data stay
	@test ! -e $(VENV) || test -e $(VENV)/pyvenv.cfg || test -e $(unfinished) || { $(not_ours); }
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamp holds the folder it was made in: a checkout that moved, or whose interpreter is gone, is installed again.
ifneq ($(shell $(python) -c pass 2>/dev/null && cat $(installed) 2>/dev/null),$(CURDIR))
$(installed): always
endif

# Everything up to the last line happens under the mark `unfinished`, so whatever stops an install, the next one starts over.
# pip and setuptools come first and alone: the rest is then built without isolation, which would fetch build tools unhashed.
$(installed): requirements.lock pyproject.toml
	@if test -e $(unfinished) || ! $(pip) --version >/dev/null 2>&1 || \
	    { test -e $(installed) && ! grep -qxF '$(CURDIR)' $(installed); }; then \
		test ! -e $(VENV) || test -e $(VENV)/pyvenv.cfg || test -e $(unfinished) || { $(not_ours); }; \
		$(find_python); \
		rm -rf $(VENV) && mkdir -p $(VENV) && touch $(unfinished) && "$$python" -m venv $(VENV); \
	fi
	@touch $(unfinished)
	awk '/^[^ ]/ { keep = /^(pip|setuptools)==/ } keep' requirements.lock > $(VENV)/first.lock
	$(pip) install --quiet --require-hashes -r $(VENV)/first.lock
	$(pip) install --require-hashes --no-build-isolation -r requirements.lock
	$(pip) install --quiet --no-deps --no-build-isolation --editable .
	@printf '%s\n' '$(CURDIR)' > $(unfinished) && mv $(unfinished) $(installed)

not_ours = echo 'lab: $(VENV) exists and is not a virtual environment; move it or choose another, VENV=...' >&2; exit 2

# Sets `python` to the first suitable interpreter of $(PYTHON), or says in one line why there is none.
define find_python
python=; seen=; \
for candidate in $(PYTHON); do \
	version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version='not found'; \
	case "$$version" in \
		3.11|3.12|3.13) python=$$candidate; break ;; \
		*) seen="$$seen$${seen:+, }$$candidate ($$version)" ;; \
	esac; \
done; \
test -n "$$python" || { echo "lab: Python 3.11, 3.12 or 3.13 is needed, but there is only: $$seen; name one with PYTHON=..." >&2; exit 2; }; \
"$$python" -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "lab: $$python cannot make virtual environments; on Debian and Ubuntu: apt install python$$version-venv" >&2; exit 2; }
endef
