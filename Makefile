# Two commands are all a newcomer needs: `make study` and `make test`. Both build the environment first.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: study test notebooks bench lint format lock clean

study: .venv/.ready
	$(RUN) -m dmlstudy study

test: .venv/.ready lint
	$(RUN) -m pytest -q -n 2
	cd notebooks && ../$(RUN) -m pytest -q -n 2 --dist loadfile --nbval-lax .

# The method notebooks, from notebooks/sources.
notebooks: .venv/.ready
	$(RUN) -m dmlstudy notebooks

bench: .venv/.ready
	$(RUN) -m benchmarks

lint: .venv/.ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: .venv/.ready
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# uv lives in a private environment of its own; the lock decides every other version.
.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install -q uv

.venv/.ready: requirements.lock pyproject.toml | .uv/bin/uv
	.uv/bin/uv venv -q --clear --python $(PYTHON) .venv
	VIRTUAL_ENV=.venv .uv/bin/uv pip sync -q --require-hashes --compile-bytecode requirements.lock
	VIRTUAL_ENV=.venv .uv/bin/uv pip install -q --no-deps --no-build-isolation -e .
	touch $@

lock: | .uv/bin/uv
	.uv/bin/uv pip compile pyproject.toml --extra dev --universal --generate-hashes \
	    --no-emit-index-url --no-header --no-annotate --upgrade -q -o requirements.lock

clean:
	rm -rf .cache .snakemake reports/local
