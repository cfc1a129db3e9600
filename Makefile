# Everything a newcomer needs: `make demo` and `make test`. Both set up a virtual environment first.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready

.PHONY: demo test lint zoo matrix first-use clean bench-operators bench-models bench-compile_time bench-scaling bench-onnxruntime bench-wide

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[hf,onnx,bench,triton,dev]'
	$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps timm
	@$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps torchvision && \
		$(RUN) -c "import torchvision" 2>/dev/null || { $(RUN) -m pip uninstall -q -y torchvision; \
		echo "note: no torchvision here fits this torch; without one, import timm fails (tests bring a stand-in)"; }
	touch $@

demo: $(READY)
	$(RUN) -m examples.demo

test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

zoo: $(READY)
	$(RUN) -m tests.zoo

first-use: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m tests.first_use

matrix: $(READY)
	$(RUN) -m tests.matrix

bench-operators bench-models bench-compile_time bench-scaling bench-onnxruntime bench-wide: bench-%: $(READY)
	$(RUN) -m benchmarks.$*

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
