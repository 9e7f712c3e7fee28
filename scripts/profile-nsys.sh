#!/usr/bin/env bash
# A timeline of any ggro command with Nsight Systems: kernels, copies, graphs node by node, and the ranges of the domain ggro.
#
#   scripts/profile-nsys.sh [-w FIRST-LAST] [-o REPORT] ggro generate --device cuda "Write a story."
#   scripts/profile-nsys.sh -s ggro serve --policy ... --reward ...     # collects between POST /start_profile and /stop_profile
#
# -w collects from the FIRST to the LAST pass of a model (default 20-60: behind loading and warming up), -s when the server is told to, -a
# everything, -l shows layers too (with --enforce-eager: a graph has no layers). REPORT is written as REPORT.nsys-rep (default ggro-profile),
# and what it says of kernels and ranges is printed.
set -euo pipefail

window=20-60 report=ggro-profile level=1 mode=window
while getopts w:o:sal option; do
    case $option in
        w) window=$OPTARG ;;
        o) report=$OPTARG ;;
        s) mode=server ;;
        a) mode=all ;;
        l) level=2 ;;
        *) sed -n '2,9p' "$0" >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
command -v nsys >/dev/null || { echo "nsys is not installed; it comes with the CUDA toolkit and with Nsight Systems" >&2; exit 2; }

capture=(--capture-range=cudaProfilerApi --capture-range-end=stop)
export GGRO_NVTX=$level
case $mode in
    window) export GGRO_PROFILE_STEPS=$window ;;
    # Each start and stop is a report of its own.
    server) export GGRO_ENABLE_PROFILING=1; capture=(--capture-range=cudaProfilerApi --capture-range-end=repeat) ;;
    all) capture=() ;;
esac
nsys profile --trace=cuda,nvtx,osrt --cuda-graph-trace=node --force-overwrite=true --output="$report" "${capture[@]}" "$@"
for file in "$report"*.nsys-rep; do
    [ -e "$file" ] || continue
    echo "== $file"
    nsys stats --report cuda_gpu_kern_sum --report nvtx_sum --report cuda_gpu_mem_time_sum --format table "$file"
done
