#!/bin/sh
# Prove on a machine with one GPU what a processor cannot show; takes up to 9 minutes. `prove.sh OUT [WHEELS]` installs the
# wheels that carry.sh gathered, apart from anything else, and writes figures to OUT/gpu.jsonl as they come, so that a run
# that is cut short still tells what it found. SECONDS_LEFT bounds the part on the GPU. `prove.sh --rehearse OUT` runs all
# of it in miniature on a processor, with what is installed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
prove() { "$python" "$here/prove.py" "$@"; }

if [ "${1:-}" = --rehearse ]; then
	export REHEARSE=1
	prove "$2" equal + compare + dpo 0.5B 8 + dpo 0.5B 8 padded again + dpo 7B 8 lora 4bit + online ppo 1.5B 8 separate + \
		online grpo 0.5B 8 + theirs 0.5B 8 + table
	exit
fi

out=$1
mkdir -p "$out"
if [ -n "${2:-}" ]; then
	site=$(mktemp -d)
	"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$2"/*.whl || exit
	export PYTHONPATH="$site"
fi
CUDA_VISIBLE_DEVICES= prove "$out" equal >"$out/processor.log" 2>&1 &
timeout "${SECONDS_LEFT:-500}" "$python" "$here/prove.py" "$out" equal + dpo 1.5B 64 compiled + online grpo 0.5B 128 + \
	online ppo 1.5B 64 separate + theirs 0.5B 128 + dpo 7B 16 lora 4bit + dpo 0.5B 64 + dpo 0.5B 64 padded + \
	dpo 1.5B 64 + online grpo 1.5B 128 + online ppo 0.5B 128 shared + dpo 1.5B 64 again + waits
wait
prove "$out" compare + table
