#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can tell, in one run and one folder: are the kernels right there, how
# fast are they, what do NVIDIA's own checkers say, and what do single instructions answer.
#
#   scripts/gpu-check.sh [BINARY [FOLDER]]
#
# BINARY is a release build with kernels (default target/release/ggro); FOLDER is where everything is written (default
# bench/results/DATE-CARD-COMMIT). Steps whose tool is missing are skipped, a step that fails does not stop the others, and
# the exit code is 1 if one failed. ORDINAL chooses the device, STEP_SECONDS bounds each step (default 1800), STEPS is a regular
# expression of the steps to run (default all; "kernels|verify" first, say, where time on the machine is short).
set -uo pipefail
cd "$(dirname "$0")/.."

binary=${1:-target/release/ggro}
ordinal=${ORDINAL:-0}
seconds=${STEP_SECONDS:-1800}
[ -x "$binary" ] || { echo "no binary $binary: cargo build --release, where nvcc is" >&2; exit 2; }

query() { nvidia-smi -i "$ordinal" --query-gpu="$1" --format=csv,noheader 2>/dev/null; }
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
card=$(query name | tr '[:upper:] ' '[:lower:]-' | sed 's/nvidia-//; s/[^a-z0-9-]//g')
folder=${2:-bench/results/$(date -u +%F)-${card:-unknown}-$commit}
mkdir -p "$folder" || exit 2
: >"$folder/summary.txt"

{
    date -u +"date %FT%TZ"
    echo "commit $commit $([ -z "$(git status --porcelain 2>/dev/null)" ] && echo clean || echo changed)"
    echo "card $(query name), driver $(query driver_version), memory $(query memory.total), power $(query power.limit)"
    echo "clocks now and at most: $(query clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem)"
    nproc | sed 's/^/cores /'
    uname -r | sed 's/^/kernel /'
} >"$folder/about.txt"

failed=0
note() { printf '%-28s %s\n' "$1" "$2" | tee -a "$folder/summary.txt"; }

# step NAME FILE COMMAND...: what it prints goes to FILE; where that is JSON, what it says on the side to FILE.err.
step() {
    local name=$1 file=$folder/$2 started=$SECONDS code
    shift 2
    [[ $name =~ ${STEPS:-.} ]] || return 0
    case $file in
        *.json | *.jsonl) timeout "$seconds" "$@" >"$file" 2>"$file.err" </dev/null ;;
        *) timeout "$seconds" "$@" >"$file" 2>&1 </dev/null ;;
    esac
    code=$?
    [ -s "$file.err" ] || rm -f "$file.err"
    case $code in
        0) note "$name" "ok ($((SECONDS - started)) s)" ;;
        124) note "$name" "FAILED: more than $seconds s" ;;
        *) note "$name" "FAILED: exit code $code" ;;
    esac
    [ "$code" = 0 ] || failed=1
}

# The device as programs see it: number 0, whichever it is.
export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-$ordinal}

step "info" info.json "$binary" info --json
step "kernels list" kernels-list.txt "$binary" kernels list
step "kernels test" kernels-test.txt "$binary" kernels test
step "kernels record" kernels-record.txt "$binary" kernels record "$folder/vectors.safetensors"
step "verify" verify.txt "$binary" verify --device cuda tests/goldens
step "generate" generate.txt "$binary" generate --device cuda "Write a story about a lost kite."
step "kernels bench" kernels-bench.jsonl "$binary" kernels bench --json

# Whole models of published shapes, with random weights made on the device.
for shape in llama-3.2-1b llama-3.2-3b llama-3.1-8b; do
    model=("--device" cuda --synthetic "$shape" -o json)
    step "bench latency $shape" "latency-$shape.json" "$binary" bench latency "${model[@]}" --rows 1,8,64,256 \
        --context 256 --prefill 512,2048 --candidates 1,8,25 --segment 16 --prefix 1024
    step "bench ggro $shape" "ggro-$shape.json" "$binary" bench ggro "${model[@]}" --prompt 256 --tokens 256 \
        --speculation off,2,4,8,25,auto --best-of 8 --runs 3
    step "bench throughput $shape" "throughput-$shape.json" "$binary" bench throughput "${model[@]}" --batch 1,8,64,256 \
        --prompt 256 --tokens 128 --runs 3
    [ -s "$folder/latency-$shape.json" ] && step "bench model $shape" "model-$shape.txt" "$binary" bench model --synthetic "$shape" \
        --rows 1,8,64,256 --context 256 --prefill 512,2048 --candidates 1,8,25 --segment 16 --prefix 1024 \
        --measured "$folder/latency-$shape.json"
done

if python3 -c "import torch, transformers" 2>/dev/null; then
    step "peers" peers.md python3 bench/peers/peers.py --ggro "$binary" --device cuda
else
    note "peers" "skipped: torch and transformers are not installed"
fi

if command -v compute-sanitizer >/dev/null; then
    # The checkers slow a kernel down a hundredfold: the smaller cases, which include every op and every tile.
    for tool in memcheck initcheck synccheck racecheck; do
        step "compute-sanitizer $tool" "sanitizer-$tool.txt" compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$binary" kernels test --work 2000000
    done
    # Whole models: graphs, both streams, forks, the gradient.
    step "compute-sanitizer, a model" sanitizer-model.txt compute-sanitizer --tool memcheck --error-exitcode 9 \
        "$binary" generate --device cuda --max-new-tokens 12 --entropy-threshold 2 "Write a story about a lost kite."
else
    note "compute-sanitizer" "skipped: not installed"
fi

if command -v ncu >/dev/null; then
    for kernel in gemm_stream8_bf16 gemm_stream64_bf16 gemm_tile_fold_bf16 rmsnorm_bf16 softmax_entropy_splits_f32; do
        op=${kernel%%_*}
        [ "$op" = softmax ] && op=softmax_entropy
        # The first launches load code and warm the caches up.
        ncu --set full --kernel-name "$kernel" --launch-skip 2 --launch-count 1 "$binary" kernels bench --op "$op" \
            >"$folder/ncu-$kernel.txt" 2>&1 </dev/null
        if grep -q ERR_NVGPUCTRPERM "$folder/ncu-$kernel.txt"; then
            note "ncu" "skipped: the driver does not let this user read counters"
            rm -f "$folder/ncu-$kernel.txt"
            break
        elif grep -q "Speed Of Light" "$folder/ncu-$kernel.txt"; then
            note "ncu $kernel" "ok"
        else
            note "ncu $kernel" "skipped: no profile, see ncu-$kernel.txt"
        fi
    done
else
    note "ncu" "skipped: not installed"
fi

echo "written to $folder"
exit "$failed"
