# Every target sets up .venv first; where that is done already, it costs nothing.
export OMP_WAIT_POLICY := passive

bin := .venv/bin

.PHONY: help demo test slow real lint build setup

help:
	@echo "make demo    run the whole chain (CLM, SFT, reward model, PPO) on the embedded data"
	@echo "make test    run the tests"
	@echo "make slow    run the tests that take longer"
	@echo "make real    run the tests on real data (ALIGNKIT_DATA names the folder)"
	@echo "make lint    check style and types"
	@echo "make build   build the sdist and the wheel into dist/"

demo: setup
	$(bin)/alignkit recipe rlhf.toml

test: setup
	$(bin)/python -m pytest -n logical --dist worksteal

slow: setup
	$(bin)/python -m pytest -m slow

real: setup
	$(bin)/python -m pytest -m real

lint: setup
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

build: setup
	$(bin)/python -m build --no-isolation

setup:
	@bash scripts/bootstrap.sh
