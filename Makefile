# Everything runs in the environment that `make setup` makes; the other targets
# call it themselves and lose no time where nothing changed.

# the versions to work with, one of requirements/*.txt
STACK ?= maintained
DETECTOR ?= retinanet
ARGS ?=

VENV = $(if $(filter maintained,$(STACK)),.venv,.venv-$(STACK))

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-benchmarks coverage docs lint

help:
	@echo 'make setup       install everything into .venv (PYTHON=... to choose)'
	@echo 'make quickstart  train, prune, fine-tune and test a small detector'
	@echo '                 (DETECTOR=retinanet, fcos, faster_rcnn, mask_rcnn)'
	@echo 'make test        run the tests (ARGS="-k groups" to choose)'
	@echo 'make test-benchmarks  run those of benchmarks/, too'
	@echo 'make coverage    run all tests, and say which lines they reach'
	@echo 'make docs        build the documentation as HTML: build/html/docs/index.html'
	@echo 'make lint        run ruff, mypy and codespell'
	@echo
	@echo 'STACK=openmmlab or STACK=mmcls runs the first three with the original'
	@echo 'OpenMMLab packages, in .venv-openmmlab or .venv-mmcls'

setup:
	@PYTHON='$(PYTHON)' bash tools/setup.sh '$(STACK)' '$(VENV)'

quickstart: setup
	$(VENV)/bin/python tools/quickstart.py --detector $(DETECTOR)

# processes of one thread: several in each would wait for each other
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n logical \
	--maxprocesses 8 --dist worksteal

test: setup
	$(PYTEST) --ignore tests/benchmarks $(ARGS)

test-benchmarks: setup
	$(PYTEST) $(ARGS) tests/benchmarks

# a third slower than the tests alone
coverage: setup
	$(PYTEST) --cov=mmgfp --cov-report=term $(ARGS)

# only one stack brings Sphinx
docs: override STACK = maintained
docs: setup
	$(VENV)/bin/sphinx-build -q -j auto -W --keep-going -c docs . build/html

# only one stack brings the tools, and types differ between versions
lint: override STACK = maintained
lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell
