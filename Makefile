# Everything runs in .venv, which `make setup` makes; the other targets call
# it themselves and lose no time where nothing changed.

DETECTOR ?= retinanet
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint

help:
	@echo 'make setup       install everything into .venv (PYTHON=... to choose)'
	@echo 'make quickstart  train, prune, fine-tune and test a small detector'
	@echo '                 (DETECTOR=retinanet or fcos, the default is retinanet)'
	@echo 'make test        run the tests (ARGS="-k groups" to choose)'
	@echo 'make lint        run ruff, mypy and codespell'

setup:
	@PYTHON='$(PYTHON)' bash tools/setup.sh

quickstart: setup
	.venv/bin/python tools/quickstart.py --detector $(DETECTOR)

# two processes of one thread: two threads in each would wait for each other
test: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadscope \
		--cov=mmgfp --cov-report=term $(ARGS)

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/codespell
