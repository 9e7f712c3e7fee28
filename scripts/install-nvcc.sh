#!/usr/bin/env bash
# Installs nvcc (and NVTX's header) without root and without a GPU, from the Python package index, into target/nvcc (or the folder given),
# and prints its path:
#
#     NVCC=$(scripts/install-nvcc.sh) cargo build --release
#
# Needs python3 with venv and pip. The packages belong to CUDA 13.0 Update 2, whose machine code needs driver 580. Beside nvcc,
# in `older`, there is the assembler of CUDA 12.9: what it makes is loaded by driver 525 and newer.
#
#     nvcc=$(scripts/install-nvcc.sh); NVCC=$nvcc PTXAS=${nvcc%/*}/older/ptxas cargo build --release
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-target/nvcc}

packages="$folder"/lib/python3*/site-packages/nvidia
# shellcheck disable=SC2086 # the version of Python is a pattern
if ! nvcc=$(ls $packages/cu13/bin/nvcc 2>/dev/null) || ! ls $packages/cu13/include/nvtx3/nvToolsExt.h >/dev/null 2>&1 ||
  ! ls $packages/cuda_nvcc/bin/ptxas >/dev/null 2>&1; then
  {
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check \
      nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
      nvidia-cuda-runtime==13.0.88 nvidia-cuda-cccl==13.0.85 nvidia-nvtx==13.0.85 \
      nvidia-cuda-nvcc-cu12==12.9.86
  } >&2
  # shellcheck disable=SC2086
  nvcc=$(ls $packages/cu13/bin/nvcc)
fi
bin=$(dirname "$nvcc")
mkdir -p "$bin/older"
# shellcheck disable=SC2086
ln -sf "$(realpath $packages/cuda_nvcc/bin/ptxas)" "$bin/older/ptxas"
# The wheels of some releases lose the executable bits.
chmod +x "$bin"/* "$bin"/older/* "$bin"/../nvvm/bin/* 2>/dev/null || true
realpath "$nvcc"
