# make demo | test | torture | bench | lint | docs | clean. Each sets up .venv by itself, once; more words go in ARGS: make test ARGS="-k cli".

PYTHON := .venv/bin/python
STAMP := .venv/.installed

.PHONY: demo test torture bench lint docs clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	.venv/bin/emu-embodied plan env=tabletop checkpoint=nano-tabletop episodes=1 seed=4 candidates=32 iterations=2 elites=6 $(ARGS)

test: $(STAMP)
	$(PYTHON) -m pytest -n 2 --dist loadfile $(ARGS)

torture: $(STAMP)
	$(PYTHON) -m benchmarks.torture $(ARGS)

bench: $(STAMP)
	$(PYTHON) -m benchmarks.decoding $(ARGS)

lint: $(STAMP)
	$(PYTHON) -m ruff check . $(ARGS)
	$(PYTHON) -m basedpyright --pythonpath $(PYTHON)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet $(ARGS)

# The stamp is written last, so that an interrupted installation is taken up again.
$(STAMP): pyproject.toml .ci/setup
	@.ci/setup
	@touch $@

clean:
	rm -rf build dist site *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
