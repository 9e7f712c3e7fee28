#!/usr/bin/env bash
# Installs nvcc (and NVTX's header) without root and without a GPU, from the Python package index, into target/nvcc (or the folder given),
# and prints its path:
#
#     NVCC=$(scripts/install-nvcc.sh) cargo build --release
#
# Needs python3 with venv and pip. All packages belong to CUDA 13.0 Update 2; other releases are not mixed in.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-target/nvcc}

packages="$folder"/lib/python3*/site-packages/nvidia/cu13
# shellcheck disable=SC2086 # the version of Python is a pattern
if ! nvcc=$(ls $packages/bin/nvcc 2>/dev/null) || ! ls $packages/include/nvtx3/nvToolsExt.h >/dev/null 2>&1; then
  {
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check \
      nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
      nvidia-cuda-runtime==13.0.88 nvidia-cuda-cccl==13.0.85 nvidia-nvtx==13.0.85
  } >&2
  # shellcheck disable=SC2086
  nvcc=$(ls $packages/bin/nvcc)
fi
# The wheels of some releases lose the executable bits.
chmod +x "$(dirname "$nvcc")"/* "$(dirname "$nvcc")"/../nvvm/bin/* 2>/dev/null || true
realpath "$nvcc"
