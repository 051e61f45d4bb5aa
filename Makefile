# Everything runs in the environment that `make setup` makes; the other targets
# call it themselves and lose no time where nothing changed.

# the versions to work with, one of requirements/*.txt
STACK ?= maintained
DETECTOR ?= retinanet
ARGS ?=

VENV = $(if $(filter maintained,$(STACK)),.venv,.venv-$(STACK))

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test docs lint

help:
	@echo 'make setup       install everything into .venv (PYTHON=... to choose)'
	@echo 'make quickstart  train, prune, fine-tune and test a small detector'
	@echo '                 (DETECTOR=retinanet, fcos, faster_rcnn, mask_rcnn)'
	@echo 'make test        run the tests (ARGS="-k groups" to choose)'
	@echo 'make docs        build the documentation as HTML: build/html/docs/index.html'
	@echo 'make lint        run ruff, mypy and codespell'
	@echo
	@echo 'STACK=openmmlab or STACK=mmcls runs the first three with the original'
	@echo 'OpenMMLab packages, in .venv-openmmlab or .venv-mmcls'

setup:
	@PYTHON='$(PYTHON)' bash tools/setup.sh '$(STACK)' '$(VENV)'

quickstart: setup
	$(VENV)/bin/python tools/quickstart.py --detector $(DETECTOR)

# two processes of one thread: two threads in each would wait for each other
test: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadscope \
		--cov=mmgfp --cov-report=term $(ARGS)

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
