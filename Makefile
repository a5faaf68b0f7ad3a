# Every target but help and clean sets up .venv first; where that is done already, it costs nothing.
export OMP_WAIT_POLICY := passive
# Where the environment forbids bytecode, each of the hundreds of processes that tests start would compile alignkit anew.
export PYTHONDONTWRITEBYTECODE :=

bin := .venv/bin
caches := .coverage .coverage.* htmlcov .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

.PHONY: help demo test slow real vllm lint format docs site pictures coverage mutants bench build clean setup

help:
	@echo "make demo      run the whole chain (CLM, SFT, reward model, PPO) on the embedded data"
	@echo "make test      run the tests"
	@echo "make slow      run the tests that take longer"
	@echo "make real      run the tests on real data (ALIGNKIT_DATA names the folder)"
	@echo "make vllm      run the tests that ask vLLM (ALIGNKIT_VLLM names its environment; scripts/vllm.sh makes one)"
	@echo "make lint      check style and types"
	@echo "make format    mend style, as far as that can be done without you"
	@echo "make docs      write the generated parts of the pages anew"
	@echo "make site      build the pages as a site into build/site (Sphinx is fetched)"
	@echo "make pictures  draw docs/pictures/ from a run of the demo"
	@echo "make coverage  run the tests, and show which lines none of them runs"
	@echo "make mutants   change the code in small ways, and show which changes no test notices (an hour or two)"
	@echo "make bench     run the short benchmarks (about 5 minutes; TRL 1.12.0 is fetched into build/)"
	@echo "make build     build sdists and wheels of the core and the packages beside it into dist/"
	@echo "make clean     remove what was built, and caches; runs/ and .venv/ stay"
	@echo "make setup     only set up .venv (PYTHON=... with another interpreter than python3)"

demo: setup
	$(bin)/alignkit recipe rlhf.toml

test: setup
	$(bin)/python -m pytest -n logical --dist worksteal

slow: setup
	$(bin)/python -m pytest -m slow

real: setup
	$(bin)/python -m pytest -m real

vllm: setup
	$(bin)/python -m pytest -m vllm

lint: setup
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/lint-imports

format: setup
	$(bin)/ruff check --fix
	$(bin)/ruff format

docs: setup
	$(bin)/cog -r $$(grep -lr --include='*.md' -F '[[[cog' *.md docs)

site: setup
	$(bin)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(bin)/python -m sphinx -W -n --keep-going -q -b html docs build/site

pictures: setup
	$(bin)/python scripts/pictures.py

coverage: setup
	$(bin)/python -m pytest -n logical --dist worksteal --cov --cov-report term-missing:skip-covered --cov-report html

mutants: setup
	$(bin)/python -m pip install --quiet mutmut==3.8.1
	$(bin)/python scripts/mutants.py

bench: setup
	$(bin)/python benchmarks/data_speed.py
	$(bin)/python benchmarks/dpo_vs_trl.py --model 5M --steps 2 --exact-steps 4 --repeats 2
	$(bin)/python benchmarks/ppo_vs_trl.py --trl build/trl-1.12.0 --model 5M --repeats 2 --updates 2
	$(bin)/python benchmarks/estimates.py --methods sft reward ppo --sizes 0

build: setup
	for package in . plugins/alignkit-*; do $(bin)/python -m build --no-isolation --outdir dist $$package || exit; done

clean:
	rm -rf build dist plugins/*/dist plugins/*/build $(caches)
	find . -name .git -prune -o -path ./.venv -prune -o -path ./runs -prune -o -name __pycache__ -type d -exec rm -rf {} +
	@echo "kept: runs/ (results) and .venv/; remove them by hand if you mean to"

setup:
	@bash scripts/bootstrap.sh
