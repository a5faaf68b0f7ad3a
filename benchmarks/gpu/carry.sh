#!/bin/sh
# Gather what prove.sh installs on a machine with a GPU and no network: `carry.sh DIR`. The machine has torch, transformers,
# peft, accelerate, pyarrow, pandas and what these need, for Python 3.12; 49 MB of wheels hold the rest, and alignkit itself.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
into=$1
python=${PYTHON:-$here/.venv/bin/python}
mkdir -p "$into"
platforms=$(for number in 39 34 28 27 24 17; do printf -- '--platform manylinux_2_%s_x86_64 ' "$number"; done)
# shellcheck disable=SC2086  # one word each
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
	--platform manylinux2014_x86_64 --platform any -d "$into" \
	annotated-types bitsandbytes datasets dill multiprocess pluggy pydantic==2.14.4 pydantic-core==2.50.5 trl==1.16.0 typing-inspection
"$python" -m pip wheel -q --no-deps --no-build-isolation -w "$into" "$here" "$here/plugins/alignkit-dpo"
du -sh "$into"
