# Everything a newcomer needs: `make demo` and `make test`. Both set up a virtual environment first.
PYTHON ?= python3
SET ?= tested
STUDY ?= --methods ddl "ddl, d_v=4" attnres "attnres, blocks" delta_attnres denseformer mhc hyper_connections short_swa \
	canon depth_read mudd --seeds 3
VENV ?= .venv$(if $(filter-out tested,$(SET)),-$(SET))
VERSIONS = constraints/$(SET).txt
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready

.PHONY: demo test test-versions versions ready lint docs pages zoo matrix first-use ecosystem clean gpu study bench-operators bench-models bench-compile_time bench-scaling bench-onnxruntime bench-wide bench-small bench-decode bench-memory bench-account systems

$(READY): pyproject.toml $(VERSIONS)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check -c $(VERSIONS) $$(grep '^torch==' $(VERSIONS))
	$(RUN) -m pip install -q --disable-pip-version-check -c $(VERSIONS) -e '.[hf,onnx,bench,html,triton,dev]'
	$(RUN) -m pip install -q --disable-pip-version-check -c $(VERSIONS) --no-deps timm
	@$(RUN) -m pip install -q --disable-pip-version-check -c $(VERSIONS) --no-deps torchvision && \
		$(RUN) -c "import torchvision" 2>/dev/null || { $(RUN) -m pip uninstall -q -y torchvision; \
		echo "note: no torchvision here fits this torch; without one, import timm fails (tests bring a stand-in)"; }
	touch $@

demo: $(READY)
	$(RUN) -m examples.demo

test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

# The tests with one set of versions, in an environment of its own: make test-versions SET=floor (or tested, newest).
# From PyPI, torch is a CUDA build of several GB.
test-versions: test

# docs/versions.md, from the environments of the three sets.
versions:
	for set in floor tested newest; do $(MAKE) ready SET=$$set || exit 1; done
	$(RUN) -m tests.versions floor=.venv-floor tested=.venv newest=.venv-newest

ready: $(READY)

zoo: $(READY)
	$(RUN) -m tests.zoo

first-use: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m tests.first_use

ecosystem: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m tests.ecosystem

matrix: $(READY)
	$(RUN) -m tests.matrix

# docs/study.md: hours, and it goes on where it stopped.
study: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m resfx study --out study --page docs/study.md $(STUDY)

bench-operators bench-models bench-compile_time bench-scaling bench-onnxruntime bench-wide bench-small bench-decode bench-memory bench-account: bench-%: $(READY)
	$(RUN) -m benchmarks.$*

# docs/systems.md, and the figures that it is made of: an hour.
systems: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m tests.pipelines
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.systems counted measured

# All that a GPU is needed for, on a machine with torch and triton of its own: nothing is installed, no network used.
gpu:
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu $(ARGS)

# The site, into site/: a broken link or reference fails it (with --quiet, none would).
docs: $(READY)
	$(RUN) -m pip install -q --disable-pip-version-check -c $(VERSIONS) -e '.[docs]'
	$(RUN) -m mkdocs build --strict

# What is made of the source and committed: docs/pictures, docs/methods, examples/notebooks.
pages: $(READY)
	$(RUN) -m pip install -q --disable-pip-version-check -c $(VERSIONS) -e '.[docs]'
	OMP_NUM_THREADS=1 $(RUN) -m website.pictures
	$(RUN) -m website.methods
	$(RUN) -m website.notebooks

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) .venv-* build dist demo site .pytest_cache .mypy_cache .ruff_cache .hypothesis
