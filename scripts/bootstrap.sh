#!/usr/bin/env bash
# Make .venv with alignkit, the packages under plugins/ and the development tools. A repeat does nothing until
# one of the files that say what to install has changed.
#
#   PYTHON=/path/to/python3.12 scripts/bootstrap.sh    with another interpreter than python3
#   UV_TORCH_BACKEND=cpu scripts/bootstrap.sh          the small build of torch, on Linux without a GPU
#
# uv does the work when it is on the path or can be installed into .venv, because it is three times as fast;
# otherwise, or when uv fails, pip does.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/.bootstrapped

say() { printf 'bootstrap: %s\n' "$*" >&2; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Print the interpreter to use: PYTHON if it is set, else that of an existing .venv, else the first on the path.
find_python() {
  local candidates=(.venv/bin/python python3 python3.13 python3.12 python3.11) candidate
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if new_enough "$candidate"; then echo "$candidate" && return; fi
  done
  candidate=${PYTHON:-python3}
  say "alignkit needs Python 3.11 or newer; $candidate: $("$candidate" --version 2>/dev/null || echo "not found")"
  say "Install one, or name the one to use: PYTHON=/path/to/python3.11 make test"
  exit 1
}

# Print all that decides what .venv holds. The folder is part of it: a virtual environment cannot be moved.
wanted() { "$python" --version && pwd && cat pyproject.toml plugins/*/pyproject.toml constraints.txt scripts/bootstrap.sh; }

# Succeed if .venv is of the wanted version, was made in this folder, and has pip.
venv_fits() {
  [ "$(.venv/bin/python --version 2>&1)" = "$("$python" --version)" ] &&
    grep '^command' .venv/pyvenv.cfg | grep -qF " $PWD/.venv" && .venv/bin/python -c 'import pip' 2>/dev/null
}

make_venv() {
  say "making .venv with $("$python" --version)"
  if ! "$python" -m venv --clear .venv; then
    say "$python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
    exit 1
  fi
}

# Print pip's setting of this name; the environment wins over pip's files.
pip_setting() { .venv/bin/python -m pip config list | sed -nE "s/^(:env:|global|user|site)\.$1='(.*)'$/\2/p" | head -n 1; }

# Print the uv to use; fail if there is none to be had.
find_uv() {
  command -v uv && return
  [ -x .venv/bin/uv ] || .venv/bin/python -m pip install -qq --only-binary :all: uv >&2 || return
  echo .venv/bin/uv
}

# uv reads none of pip's settings, and takes a folder of wheels that is missing for an error.
uv_install() {
  local uv=$1 from=() link index
  shift
  for link in $(pip_setting find-links); do
    if [ -d "$link" ]; then from+=(--find-links "$link"); fi
  done
  index=$(pip_setting index-url)
  if [ -n "$index" ]; then from+=(--index-url "$index"); fi
  if [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"; fi
  # Without bytecode every start of a process might compile torch and transformers anew.
  "$uv" pip install --quiet --python .venv/bin/python --compile-bytecode ${from[@]+"${from[@]}"} "$@"
}

# Plugins that bring a server or hundreds of megabytes. Install one by hand, and its tests run.
apart=" alignkit-mlflow alignkit-trackio alignkit-wandb alignkit-lm-eval "

# One command for core and plugins: a plugin installed alone would look for alignkit in the package index.
install() {
  local what=(--constraint constraints.txt --editable '.[dev]') project uv
  for project in plugins/*; do
    if [ -f "$project/pyproject.toml" ] && [[ $apart != *" ${project##*/} "* ]]; then what+=(--editable "./$project"); fi
  done
  if uv=$(find_uv); then
    if uv_install "$uv" "${what[@]}"; then return; fi
    say "uv could not install it; trying pip"
  fi
  .venv/bin/python -m pip install -qq "${what[@]}"
}

python=$(find_python)
if [ -x .venv/bin/python ] && wanted | cmp -s - "$stamp"; then exit 0; fi
if ! venv_fits; then make_venv; fi
rm -f "$stamp"
say "installing alignkit, its plugins and the development tools (1.5 GB on disk; a minute or two)"
install
wanted > "$stamp.new"
mv "$stamp.new" "$stamp"
say "ready: .venv/bin/alignkit"
