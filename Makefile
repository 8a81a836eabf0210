# The two commands: `make chat` and `make test`. Both install what they need into .venv.

PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin
# The built-in model belongs to the environment: edge-llama looks here when no model is named.
SHARE := $(ENV)/share/edge-llama
CHECKPOINT := $(SHARE)/smollm2
MODEL := $(SHARE)/smollm2-q4_k_m.gguf

.PHONY: chat test docs test-page test-desktop test-frozen test-soak test-server-soak test-agents test-vulkan test-npu test-fleet test-arm64 test-arm64-all kills wheels lint clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

chat: $(MODEL)
	@$(BIN)/edge-llama chat

# Converted once: the environment may be renewed without doing it again.
$(MODEL): | $(CHECKPOINT)/model.safetensors
	@$(BIN)/edge-llama convert $(CHECKPOINT) $@ --force

$(CHECKPOINT)/model.safetensors: | $(ENV)/.installed
	@$(BIN)/edge-llama convert smollm2 $(CHECKPOINT) --to safetensors --force

$(ENV)/.installed: pyproject.toml scripts/install.py
	@$(PYTHON) scripts/install.py $(ENV) convert,demo
	@touch $@

$(ENV)/.installed-dev: pyproject.toml scripts/install.py
	@$(PYTHON) scripts/install.py $(ENV) dev
	@touch $@ $(ENV)/.installed

lint: $(ENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The whole suite in workers, each on cores of its own (tests/suite.py); a part of it in one process.
test: lint $(MODEL)
	@$(BIN)/python scripts/engine_source.py
	$(BIN)/python -m pytest $(or $(ARGS),-n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder)

# The server's page in the system's Chromium; PICTURES=DIR keeps screenshots there.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
test-page: $(ENV)/.installed-page $(MODEL)
	EDGE_LLAMA_BROWSER="$(CHROMIUM)" EDGE_LLAMA_PICTURES="$(PICTURES)" $(BIN)/python -m pytest $(or $(ARGS),tests/server/page)

$(ENV)/.installed-page: pyproject.toml scripts/install.py | $(ENV)/.installed-dev
	@$(PYTHON) scripts/install.py $(ENV) page-tests
	@touch $@

# The desktop example in Qt's event loop, without a screen.
test-desktop: $(ENV)/.installed-desktop $(MODEL)
	$(BIN)/python -m pytest $(or $(ARGS),tests/examples/test_desktop.py)

$(ENV)/.installed-desktop: pyproject.toml scripts/install.py | $(ENV)/.installed-dev
	@$(PYTHON) scripts/install.py $(ENV) desktop
	@touch $@

# edge-llama and the desktop example, frozen by PyInstaller in an environment of its own, and run without Python (PyPI).
test-frozen: $(ENV)/.installed-dev
	$(BIN)/python scripts/frozen.py $(ARGS)

# The pages as a site with the API reference, in site/; a broken link or a page that no index names fails.
docs: $(ENV)/.installed-docs
	$(BIN)/python -m mkdocs build --strict $(ARGS)

$(ENV)/.installed-docs: pyproject.toml scripts/install.py | $(ENV)/.installed-dev
	@$(PYTHON) scripts/install.py $(ENV) docs
	@touch $@

# Twelve minutes of callers that come and leave at random, beside none of the other tests.
test-soak: $(ENV)/.installed-dev $(MODEL)
	$(BIN)/python benchmarks/soak.py $(ARGS)

# Clients that come and leave at random on the server, for ten minutes; a few send nonsense.
test-server-soak: $(ENV)/.installed-dev $(MODEL)
	$(BIN)/python benchmarks/server_soak.py $(ARGS)

# Coding agents as they are published, each headless against the server: their packages come from registries.
test-agents: $(ENV)/.installed-dev
	$(BIN)/python benchmarks/installed_agents.py $(ARGS)

# llama.cpp on Vulkan by a driver that computes on the processor; its build takes 20 minutes, once.
test-vulkan: $(ENV)/.installed-dev
	$(BIN)/python scripts/vulkan.py $(ARGS)

# Text towers in integers on what stands in for NPUs, and in onnxruntime-genai, which gets an environment of its own.
test-npu: $(ENV)/.installed-dev
	$(BIN)/python scripts/npu.py $(ARGS)

# What is handed to a serving engine, by vLLM on the CPU in an environment of its own (PyPI).
test-fleet: $(ENV)/.installed-dev
	$(BIN)/python scripts/fleet.py $(ARGS)

# ARM64 beside x86-64: the same bytes, the same texts. As root; the first time Debian's ARM64 is set up, for qemu.
test-arm64: $(ENV)/.installed-dev
	$(BIN)/python scripts/arm64.py $(ARGS)

# The suite's small checkpoints by every recipe, too.
test-arm64-all: $(ENV)/.installed-dev
	$(BIN)/python scripts/arm64.py --all $(ARGS)

# What Windows, macOS and Linux on ARM64 get as wheels: asks the package index, downloads little.
wheels: $(ENV)/.installed-dev
	@$(BIN)/python scripts/wheels.py $(ARGS)

# A model's own process is killed at a hundred random moments, with callers in every phase.
kills: $(ENV)/.installed-dev
	EDGE_LLAMA_KILLS=100 $(BIN)/python -m pytest tests/isolation/test_isolated_deaths.py -k random --timeout 900

clean:
	rm -rf $(ENV) dist build
