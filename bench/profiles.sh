#!/usr/bin/env bash
# Profiles and fits of this machine's GPU for profiles/: bench/profiles.sh [DIR] [SECONDS] [MODEL...]
#
# Times the whole space of configs for each model (default: those that profiles/README.md lists) and writes profile,
# fit and page into DIR (default: profiles). Models that are complete are gone on from, not timed again. With SECONDS
# (default 1200) it stops when less than a model takes is left. RAMP names another binary than build/bin/ramp.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ramp=${RAMP:-$root/build/bin/ramp}
out=${1:-$root/profiles}
total=${2:-1200}
shift $(($# < 2 ? $# : 2))
models=("$@")
[ ${#models[@]} -eq 0 ] && models=(olmoe qwen3-30b mixtral-8x7b dsv3 qwen3.5-35b qwen3-235b dsv3-tp8 dsv3-ep8 kimi-k2-ep8
  glm-4.5-air qwen2-57b mixtral-8x22b)
mkdir -p "$out"
begin=$SECONDS
for model in "${models[@]}"; do
  left=$((total - (SECONDS - begin)))
  [ "$left" -lt 10 ] && { echo "profiles: no time left for $model" >&2; continue; }
  timeout -s INT "$left" "$ramp" profile --backend cuda --model "$model" --budget "${BUDGET:-10}" --repeats 5 -o "$out" ||
    echo "profiles: $model: not finished" >&2
done
