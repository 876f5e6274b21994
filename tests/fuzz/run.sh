#!/usr/bin/env bash
# Runs every fuzz target for some seconds, as many at a time as there are cores: tests/fuzz/run.sh BUILD_DIR [SECONDS].
# Seeds and what a run finds stay in BUILD_DIR/fuzz; a crash leaves its input there and fails the script.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=${1:?usage: run.sh BUILD_DIR [SECONDS]}
seconds=${2:-60}
work=$build/fuzz
mkdir -p "$work"
"$build/bin/fuzz_corpus" "$work/seeds"

run_one() {
  local target=$1
  mkdir -p "$work/corpus/$target" "$work/crashes"
  if "$build/bin/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1 \
    -dict="$here/$target.dict" -artifact_prefix="$work/crashes/$target-" \
    "$work/corpus/$target" "$work/seeds/$target" >"$work/$target.log" 2>&1; then
    echo "$target: $(grep -o 'number_of_executed_units: [0-9]*' "$work/$target.log" | grep -o '[0-9]*$') inputs in $seconds s, no fault"
  else
    echo "$target: FAILED; log $work/$target.log"
    tail -n 40 "$work/$target.log"
    return 1
  fi
}

status=0
pids=()
for target in fuzz_safetensors fuzz_npy fuzz_model_config fuzz_dataset fuzz_fit fuzz_profile; do
  while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do sleep 0.2; done
  run_one "$target" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
exit "$status"
