# make serve [PORT=30000] [ARGS="--max-running-requests 16"]   set up, then serve the demo pair (or ARGS="--model-path ...")
# make test                                                    set up, then run the tests
# make test-server                                             the longer suites
# make bench [BENCH=crossover]                                 set up, then all benchmarks, or one
# make lint | clean
#
# PYTHON=...       the Python to set up with (3.11 or 3.12)
# ENGINE=cpu|cuda  which SGLang to install; without it: cuda if nvidia-smi lists a GPU
# TORCH_INDEX=...  a package index that has the CPU build of torch (saves gigabytes: the usual build brings CUDA along)

PORT ?= 30000
ARGS ?=
PYTHON ?= python3
ENGINE ?= auto
TORCH_INDEX ?=

# make bench BENCH=crossover runs one of them; serve takes ten hours and gpu needs one, so they run only by name.
BENCH ?= $(filter-out serve gpu,$(patsubst bench/%/run.py,%,$(wildcard bench/*/run.py)))

RUN := .venv/bin/python
SETUP = @command -v $(PYTHON) >/dev/null || { echo "nightjar: $(PYTHON) not found: install Python 3.11 or 3.12" >&2; exit 1; }; \
	$(PYTHON) python/sglang_nightjar/setup_env.py --engine $(ENGINE) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

.PHONY: serve test test-server bench lint clean

serve:
	$(SETUP) --port $(PORT)
	@exec $(RUN) -m sglang_nightjar.launch_server --port $(PORT) $(ARGS)

test:
	$(SETUP) --test
	@$(RUN) -m pytest -m "not long" $(ARGS)

test-server:
	$(SETUP) --test
	@$(RUN) -m pytest -m long $(ARGS)

bench:
	$(SETUP) --bench
	@for name in $(BENCH); do echo "== $$name"; $(RUN) -m bench.$$name.run $(ARGS) || exit 1; done

lint:
	$(SETUP) --test
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m mypy

clean:
	rm -rf .venv .venv.lock build python/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
