#!/usr/bin/env bash
# What only a machine with an NVIDIA GPU can tell, in one folder and one archive of it: are the kernels right there, how fast are
# they, what do NVIDIA's own checkers say, and what do single instructions answer.
#
#   scripts/gpu-check.sh [first|speed|all] [BINARY [FOLDER]]
#
#   first   4 minutes: what the machine is, `ggro doctor`, what single instructions answer, every case of every kernel, the golden
#           fixtures, an answer, and memcheck on the smallest cases
#   speed   5 minutes: latency and whole answers of a model of 8 billion parameters, also within the memory of a card of 78 GiB, the
#           products beside PyTorch's, on Hopper both families of kernels, and kernels one after the other, some kernels through Nsight Compute, a timeline
#   all     everything, however long it takes (the default)
#
# BINARY is a release build with kernels (default target/release/ggro), or one compressed as .xz; FOLDER is where everything is
# written (default bench/results/DATE-CARD-COMMIT). The archive of it, at most 16 MiB, goes beside the folder, or to $OUT.
#
# A stage ends by itself: each step gets what is left of its time. A step that fails does not stop the others; tools that are
# missing or that the machine refuses are skipped in words. The exit code is 1 if a step failed or was cut off. ORDINAL chooses the
# device, STEP_SECONDS bounds each step, BUDGET the whole stage, and STEPS is a regular expression of the steps to run.
set -uo pipefail
cd "$(dirname "$0")/.."

stage=all
case ${1:-} in first | speed | all) stage=$1 && shift ;; esac
case $stage in
    first) budget=${BUDGET:-230} ;;
    speed) budget=${BUDGET:-285} ;;
    all) budget=${BUDGET:-0} ;;
esac
# What packing the results takes.
reserve=8

binary=${1:-target/release/ggro}
ordinal=${ORDINAL:-0}
temporary=''
trap '[ -z "$temporary" ] || rm -rf "$temporary"' EXIT
if [[ $binary == *.xz && -f $binary ]]; then
    temporary=$(mktemp -d) || exit 2
    unpacked=$temporary/$(basename "$binary" .xz)
    xz -dc "$binary" >"$unpacked" 2>/dev/null || python3 -c 'import lzma, shutil, sys
shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' "$binary" "$unpacked" ||
        { echo "$binary cannot be unpacked" >&2; exit 2; }
    chmod +x "$unpacked"
    binary=$unpacked
fi
[ -x "$binary" ] || { echo "no binary $binary: cargo build --release" >&2; exit 2; }

# The device as programs see it: number 0, whichever it is.
export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-$ordinal}

query() { nvidia-smi -i "$ordinal" --query-gpu="$1" --format=csv,noheader 2>/dev/null; }
# What the binary says, where the machine has no git or no nvidia-smi.
said=$(timeout -k 5 20 "$binary" info 2>/dev/null </dev/null)
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || sed -n '1s/.*(\(.*\)).*/\1/p' <<<"$said")
card=$(query name)
card=${card:-$(sed -n 's/^device *cuda:0: \(.*\), compute capability.*/\1/p' <<<"$said")}
capability=$(query compute_cap)
capability=${capability:-$(sed -n 's/^device *cuda:0: .*compute capability \([0-9.]*\).*/\1/p' <<<"$said")}
name=$(tr '[:upper:] ' '[:lower:]-' <<<"${card:-unknown}" | sed 's/nvidia-//; s/[^a-z0-9-]//g')
folder=${2:-bench/results/$(date -u +%F)-$name-${commit:-unknown}}
mkdir -p "$folder" || exit 2
summary=$folder/summary.txt
echo "stage $stage, $(date -u +%FT%TZ)" >>"$summary"

{
    date -u +"date %FT%TZ"
    echo "commit ${commit:-unknown} $([ -z "$(git status --porcelain 2>/dev/null)" ] && echo clean || echo changed)"
    echo "card ${card:-unknown}, driver $(query driver_version), memory $(query memory.total), power $(query power.limit)"
    echo "clocks now and at most: $(query clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem)"
    nproc | sed 's/^/cores /'
    uname -r | sed 's/^/kernel /'
} >"$folder/about.txt"

failed=0
note() { printf '%-28s %s\n' "$1" "$2" | tee -a "$summary"; }

# Seconds that a step may take: its own limit, less where less is left of the stage.
allowed() {
    local limit=${STEP_SECONDS:-$1}
    if [ "$budget" -gt 0 ]; then
        local left=$((budget - reserve - SECONDS))
        [ "$limit" -le "$left" ] || limit=$left
    fi
    echo "$limit"
}

# step NAME SECONDS FILE COMMAND...: what it prints goes to FILE; where that is JSON, what it says on the side to FILE.err.
# REFUSED is a regular expression of what is printed where the machine does not let a tool run, ENOUGH of what is printed where a
# tool did all that was asked, however it ended.
step() {
    local name=$1 limit own file=$folder/$3 started=$SECONDS code
    limit=$(allowed "$2") own=${STEP_SECONDS:-$2}
    shift 3
    [[ $name =~ ${STEPS:-.} ]] || return 0
    if [ "$limit" -lt 3 ]; then
        note "$name" "skipped: the time of this stage is over"
        failed=1
        return 0
    fi
    case $file in
        *.json | *.jsonl) timeout -k 5 "$limit" "$@" >"$file" 2>"$file.err" </dev/null ;;
        *) timeout -k 5 "$limit" "$@" >"$file" 2>&1 </dev/null ;;
    esac
    code=$?
    [ -s "$file.err" ] || rm -f "$file.err"
    local took=$((SECONDS - started)) why=''
    [ -n "${ENOUGH:-}" ] && grep -q "$ENOUGH" "$file" && code=0
    if [ "$code" != 0 ] && [ -n "${REFUSED:-}" ]; then
        why=$(cat "$file" "$file.err" 2>/dev/null | grep -m1 -iE "$REFUSED")
    fi
    case $code in
        0) note "$name" "ok ($took s)" ;;
        *)
            if [ -n "$why" ]; then
                note "$name" "skipped, the machine refuses: ${why:0:160}"
                return 0
            elif [ "$code" = 124 ] || [ "$code" = 137 ]; then
                [ "$limit" = "$own" ] && note "$name" "FAILED: more than $limit s" ||
                    note "$name" "CUT OFF after $took s: the time of this stage is over"
            else
                note "$name" "FAILED: exit code $code, after $took s"
            fi
            failed=1
            ;;
    esac
}

# Where the kernels for Hopper alone are.
hopper() { [ "${capability// /}" = 9.0 ]; }

has() { command -v "$1" >/dev/null || { note "$2" "skipped: $1 is not installed" && false; }; }

# What compute-sanitizer and the profilers say where a container, a virtual machine or a driver's setting keeps them out.
refusals='ERR_NVGPUCTRPERM|not permitted|permission|unable to (attach|inject|connect)|failed to (attach|inject|connect|initialize)|not supported|no attachable process|internal sanitizer error|LibraryNotFound'

sanitize() { # TOOL SECONDS FILE COMMAND...
    local tool=$1 seconds=$2 file=$3
    shift 3
    REFUSED=$refusals step "compute-sanitizer $tool" "$seconds" "$file" \
        compute-sanitizer --tool "$tool" --error-exitcode 9 "$@"
}

profile_kernel() { # KERNEL OP SECONDS
    # The first launches load code and warm the caches up. The bench is ended after the one that is profiled.
    REFUSED="$refusals|==ERROR==" ENOUGH="Speed Of Light" step "ncu $1" "$3" "ncu-$1.txt" \
        ncu --set full --kernel-name "$1" --launch-skip 2 --launch-count 1 --kill yes "$binary" kernels bench --op "$2"
    grep -q "Speed Of Light" "$folder/ncu-$1.txt" 2>/dev/null
}

correctness() { # seconds of: doctor, record, test, generate
    step "doctor" "$1" doctor.txt "$binary" doctor
    step "kernels record" "$2" kernels-record.txt "$binary" kernels record "$folder/vectors.safetensors"
    step "kernels test" "$3" kernels-test.txt "$binary" kernels test
    step "generate" "$4" generate.txt "$binary" generate --device cuda --max-new-tokens 48 "Write a story about a lost kite."
}

# Every decision of the golden fixtures, beside the CPU's: the step that the host's cores decide how long takes.
verify() {
    step "verify" "$1" verify.txt "$binary" verify --device cuda tests/goldens
}

# Passes and answers of random models, whose weights are made on the device.
latency() { # NAME SECONDS SHAPE FLAGS...
    local name=$1 seconds=$2 shape=$3
    shift 3
    step "bench latency $name" "$seconds" "latency-$name.json" "$binary" bench latency --device cuda --synthetic "$shape" \
        -o json --rows 1,8,64,256 --context 256 --prefill 512,2048 --candidates 1,8,25 --segment 16 --prefix 1024 "$@"
}

answers() { # NAME SECONDS SHAPE FLAGS...
    local name=$1 seconds=$2 shape=$3
    shift 3
    step "bench ggro $name" "$seconds" "ggro-$name.json" "$binary" bench ggro --device cuda --synthetic "$shape" -o json \
        --prompt 256 "$@"
}

run_first() {
    correctness 40 20 90 40
    if has compute-sanitizer "compute-sanitizer"; then
        # A checker slows a kernel down a hundredfold.
        sanitize memcheck 60 sanitizer-memcheck.txt "$binary" kernels test --work 20000
    fi
    # All that is left.
    verify 180
}

run_speed() {
    step "info" 15 info.json "$binary" info --json
    latency llama-3.1-8b 60 llama-3.1-8b --runs 3
    answers llama-3.1-8b 60 llama-3.1-8b --tokens 128 --speculation off,auto --best-of 8 --runs 1
    # A card of 78 GiB with the usual share: as much of a larger one's memory.
    local total share
    total=$(query memory.total | tr -dc '0-9')
    if [ "${total:-0}" -gt 90000 ]; then
        share=$(awk "BEGIN { printf \"%.3f\", 0.9 * 78 * 1024 / $total }")
        latency llama-3.1-8b-78gib 35 llama-3.1-8b --runs 1 --gpu-memory-utilization "$share"
        answers llama-3.1-8b-78gib 35 llama-3.1-8b --tokens 128 --speculation auto --runs 1 --gpu-memory-utilization "$share"
    else
        note "on 78 GiB" "skipped: the card has ${total:-an unknown number of} MiB"
    fi
    step "kernels bench gemm" 40 gemm.jsonl "$binary" kernels bench --op gemm --json
    local op
    if hopper; then
        for op in gemm_sm90 attention_sm90 attention; do
            step "kernels bench $op" 15 "$op.jsonl" "$binary" kernels bench --op "$op" --json
        done
        latency llama-3.1-8b-sm80 25 llama-3.1-8b --runs 1 --kernels sm80
        # The others begin their kernels early, if the self-check of such launches has passed: `doctor` says so.
        latency llama-3.1-8b-ordered 25 llama-3.1-8b --runs 1 --dependent-launches=false
    fi
    if python3 -c "import torch" 2>/dev/null; then
        step "gemm beside cuBLASLt" 40 gemm.md python3 bench/peers/gemm.py "$folder/gemm.jsonl"
    else
        note "gemm beside cuBLASLt" "skipped: there is no torch"
    fi
    if has ncu "ncu"; then
        if hopper; then
            profile_kernel gemm_sm90_128_bf16 gemm_sm90 25 && profile_kernel attention_sm90_128_bf16 attention_sm90 25
        fi
        profile_kernel gemm_stream8_bf16 gemm 30 &&
            profile_kernel gemm_tile_fold_bf16 gemm 30 &&
            profile_kernel rmsnorm_bf16 rmsnorm 20
    fi
    if has nsys "nsys"; then
        REFUSED=$refusals step "nsys" 30 nsys.txt nsys profile --trace cuda --force-overwrite true \
            --output "$folder/timeline" "$binary" generate --device cuda --max-new-tokens 40 "Write a story about a lost kite."
    fi
}

run_all() {
    step "info" 60 info.json "$binary" info --json
    step "kernels list" 60 kernels-list.txt "$binary" kernels list
    correctness 120 300 1800 300
    verify 1800
    step "kernels bench" 1800 kernels-bench.jsonl "$binary" kernels bench --json
    # Whole models of published shapes, with random weights made on the device.
    local shape
    for shape in llama-3.2-1b llama-3.2-3b llama-3.1-8b; do
        latency "$shape" 1800 "$shape"
        hopper && latency "$shape-ordered" 1800 "$shape" --dependent-launches=false
        answers "$shape" 1800 "$shape" --tokens 256 --speculation off,2,4,8,25,auto --best-of 8 --runs 3
        step "bench throughput $shape" 1800 "throughput-$shape.json" "$binary" bench throughput --device cuda \
            --synthetic "$shape" -o json --batch 1,8,64,256 --prompt 256 --tokens 128 --runs 3
        [ -s "$folder/latency-$shape.json" ] && step "bench model $shape" 300 "model-$shape.txt" "$binary" bench model \
            --synthetic "$shape" --rows 1,8,64,256 --context 256 --prefill 512,2048 --candidates 1,8,25 --segment 16 \
            --prefix 1024 --measured "$folder/latency-$shape.json"
    done
    if python3 -c "import torch, transformers" 2>/dev/null; then
        step "peers" 1800 peers.md python3 bench/peers/peers.py --ggro "$binary" --device cuda
    else
        note "peers" "skipped: torch and transformers are not installed"
    fi
    if has compute-sanitizer "compute-sanitizer"; then
        local tool
        # The smaller cases, which include every op and every tile.
        for tool in memcheck initcheck synccheck racecheck; do
            sanitize "$tool" 1800 "sanitizer-$tool.txt" "$binary" kernels test --work 2000000
        done
        # Whole models: graphs, both streams, forks, the gradient.
        sanitize memcheck 1800 sanitizer-model.txt \
            "$binary" generate --device cuda --max-new-tokens 12 --entropy-threshold 2 "Write a story about a lost kite."
    fi
    if has ncu "ncu"; then
        local kernel op
        local kernels=(gemm_stream8_bf16 gemm_stream64_bf16 gemm_tile_fold_bf16 rmsnorm_bf16 softmax_entropy_splits_f32)
        hopper && kernels=(gemm_sm90_8_bf16 gemm_sm90_128_bf16 gemm_sm90_192_bf16 attention_sm90_128_bf16 "${kernels[@]}")
        for kernel in "${kernels[@]}"; do
            op=${kernel%%_*}
            [ "$op" = softmax ] && op=softmax_entropy
            [[ $kernel == *_sm90_* ]] && op=${op}_sm90
            # Where one is refused, so are the others.
            profile_kernel "$kernel" "$op" 300 || break
        done
    fi
}

# One archive of at most 16 MiB; the largest files stay behind if it would be more.
pack() {
    local most=$((16 << 20)) suffix=gz flag=z base parent target left=()
    command -v xz >/dev/null && suffix=xz flag=J
    base=$(basename "$folder") parent=$(cd "$(dirname "$folder")" && pwd)
    target=${OUT:-$parent}/$base-$stage.tar.$suffix
    mkdir -p "$(dirname "$target")"
    while true; do
        tar -C "$parent" "${left[@]/#/--exclude=$base/}" -c${flag}f "$target" "$base" || { echo "no archive $target" >&2; return 1; }
        [ "$(stat -c %s "$target")" -gt "$most" ] || break
        local largest
        largest=$(find "$folder" -type f -printf '%s %P\n' | sort -rn | cut -d' ' -f2- |
            grep -vxF -f <(printf '%s\n' "" "${left[@]}") | head -1)
        [ -n "$largest" ] || break
        left+=("$largest")
        note "archive" "without $largest: more than 16 MiB with it"
    done
    echo "archive $target ($(($(stat -c %s "$target") >> 10)) KiB)"
}

"run_$stage"
note "stage $stage" "$SECONDS s"
pack || failed=1
echo "written to $folder"
exit "$failed"
