#!/usr/bin/env bash
# What bounds single kernels, with Nsight Compute: the memory and arithmetic it reaches, stalls by source line.
#
#   scripts/profile-ncu.sh [-k REGEX] [-r RANGE] [-n COUNT] [-o REPORT] ggro bench latency --device cuda --synthetic llama-3.2-1b
#
# -k takes kernels by name (`ggro kernels list` has them), -r those launched inside a range of the domain ggro: prefill, decode, "reward forward",
# "reward backward". COUNT launches are measured (default 5), behind the window's first. Graphs are launched kernel by kernel, so that
# each can be measured. The driver must let you read counters (NVreg_RestrictProfilingToAdminUsers=0, or root).
set -euo pipefail

kernel=.* range='' count=5 report=''
while getopts k:r:n:o: option; do
    case $option in
        k) kernel=$OPTARG ;;
        r) range=$OPTARG ;;
        n) count=$OPTARG ;;
        o) report=$OPTARG ;;
        *) sed -n '2,8p' "$0" >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
command -v ncu >/dev/null || { echo "ncu is not installed; it comes with the CUDA toolkit and with Nsight Compute" >&2; exit 2; }

options=(--set full --import-source yes --kernel-name "regex:$kernel" --launch-skip 2 --launch-count "$count")
if [ -n "$range" ]; then
    export GGRO_NVTX=1
    options+=(--nvtx --nvtx-include "ggro@$range/")
fi
[ -z "$report" ] || options+=(--force-overwrite --export "$report")
export GGRO_ENFORCE_EAGER=1
ncu "${options[@]}" "$@"
