#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in one go: parity, speed, what each optimisation gains,
# and the peers. Needs the release binaries and nothing else; what is missing is "not measured".
#
#   cargo build --release --examples --features cuda,wgpu,composed,fusion
#   scripts/gpu_report.sh --device cuda --out report
#
# Leaves report.md, a JSON file of each table and the log of each step in the output folder. Ends
# with 1 if a property of the parity check is violated.
set -u

root=$(cd "$(dirname "$0")/.." && pwd)
binaries=${CARGO_TARGET_DIR:-$root/target}/release/examples
out=gpu-report
devices=cuda,wgpu
models=$root/tests/data/models/stories260K
shapes=tinyllama-1.1b,llama-3-8b
formats=none,int8+lm_head=int8,int4:group=128+lm_head=int8
batches=1,8,64
prompt=512
output=64
depths=
repeats=3
limit=570
peers=yes

usage() {
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    echo "Options, each with a value: --bin DIR --out DIR --device NAMES --model DIRS --shape NAMES"
    echo "  --quant SCHEMES --batch NUMBERS --prompt-tokens N --output-tokens N --depth NUMBERS"
    echo "  --repeats N --limit SECONDS (of one step) --peers yes|no"
    echo "Lists stand with commas; an empty --shape measures the models alone."
}

while [ $# -gt 0 ]; do
    case $1 in
        --help) usage; exit 0 ;;
        --bin | --out | --device | --model | --shape | --quant | --batch | --prompt-tokens | \
            --output-tokens | --depth | --repeats | --limit | --peers)
            [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; } ;;
        *) echo "error: unknown option $1; --help lists the options" >&2; exit 2 ;;
    esac
    case $1 in
        --bin) binaries=$2 ;;
        --out) out=$2 ;;
        --device) devices=$2 ;;
        --model) models=$2 ;;
        --shape) shapes=$2 ;;
        --quant) formats=$2 ;;
        --batch) batches=$2 ;;
        --prompt-tokens) prompt=$2 ;;
        --output-tokens) output=$2 ;;
        --depth) depths=$2 ;;
        --repeats) repeats=$2 ;;
        --limit) limit=$2 ;;
        --peers) peers=$2 ;;
    esac
    shift 2
done

mkdir -p "$out" || exit 2
report=$out/report.md
violated=0

say() { printf '%s\n' "$@" | tee -a "$report"; }

# step TITLE NAME COMMAND...: the command's output under a heading, or why there is none.
step() {
    local title=$1 log=$out/$2.log code
    shift 2
    say "" "## $title" ""
    if [ ! -x "$1" ] && ! command -v "$1" > /dev/null; then
        say "not measured: $1 is not there"
        return 127
    fi
    timeout "$limit" "$@" > "$log.out" 2> "$log"
    code=$?
    tee -a "$report" < "$log.out"
    if [ $code -eq 124 ]; then
        say "" "not measured to its end: it took longer than $limit s"
    elif [ $code -ne 0 ] && [ ! -s "$log.out" ]; then
        say "not measured: $(tail -n 1 "$log" | tr -d '\r')"
    fi
    rm -f "$log.out"
    return $code
}

{
    echo "# Report of $(date -u '+%Y-%m-%d %H:%M UTC')"
    echo
    echo "$(uname -srm), $(getconf _NPROCESSORS_ONLN) cores"
    if command -v nvidia-smi > /dev/null; then
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null
    else
        echo "no nvidia-smi"
    fi
} > "$report"
cat "$report"

common=(--repeats "$repeats" --prompt-tokens "$prompt" --output-tokens "$output")
for device in ${devices//,/ }; do
    bench=$binaries/bench_${device%%:*}
    for model in ${models//,/ }; do
        name=$(basename "$model")
        for format in none int8; do
            step "Parity: $name, $format on $device" "verify-$device-$name-$format" \
                "$binaries/verify" --model "$model" --device "$device" --quant "$format"
            # 1 is a violated property, anything above a check that could not be made.
            [ $? -eq 1 ] && violated=1
        done
        step "Speed: $name on $device" "bench-$device-$name" "$bench" --device "$device" \
            --model "$model" --quant none,int8,int4:group=32 --batch 1,8 --prompt-tokens 128 \
            --output-tokens 32 --repeats "$repeats" --json "$out/bench-$device-$name.json"
        step "One optimisation at a time: $name on $device" "ablation-$device-$name" "$bench" \
            --device "$device" --model "$model" --ablation --prompt-tokens 128 --output-tokens 32 \
            --repeats "$repeats" --json "$out/ablation-$device-$name.json"
    done
    for shape in ${shapes//,/ }; do
        step "Speed: $shape on $device" "bench-$device-$shape" "$bench" --device "$device" \
            --shape "$shape" --quant "$formats" --batch "$batches" ${depths:+--depth "$depths"} \
            "${common[@]}" --json "$out/bench-$device-$shape.json"
        step "One optimisation at a time: $shape on $device" "ablation-$device-$shape" "$bench" \
            --device "$device" --shape "$shape" --ablation "${common[@]}" \
            --json "$out/ablation-$device-$shape.json"
        if [ "$peers" = yes ]; then
            step "Peers: $shape on $device" "peers-$device-$shape" python3 \
                "$root/scripts/peers/run.py" --bench "$bench" --device "$device" --shape "$shape" \
                --rounds "$repeats" --prefill "$prompt" --json "$out/peers-$device-$shape.json"
        fi
    done
done
exit $violated
