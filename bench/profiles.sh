#!/usr/bin/env bash
# Profiles and fits of this machine's GPU, for profiles/:
#
#   bench/profiles.sh [DIR] [SECONDS] [MODEL...]      # default: build/profiles, 300 s, the twelve models below
#
# Times the space of configs for each model and writes its profile and fit into DIR, some 50 to 150 KB each. Models are
# independent and come in the order of their weight; one that is complete (its fit is there) is left alone, one that
# was cut is gone on from in the next call, one for which less than ten seconds are left waits for it. About 20 s a
# model and 13 s once for kernels. The points and the budget are those of bench/results.sh, whose folder `fits` may be
# copied to DIR first (cp -p: a fit older than its profile is not complete), which saves four models. To ship: copy
# DIR's files to profiles/.
#
# BUDGET: seconds of replays per model (6). RAMP: another binary than build/bin/ramp.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ramp=${RAMP:-$root/build/bin/ramp}
out=${1:-$root/build/profiles}
total=${2:-300}
shift $(($# < 2 ? $# : 2))
# Their shapes name the files.
declare -A shapes=([olmoe]=64x8x2048x1024 [qwen3-30b]=128x8x2048x768 [mixtral-8x7b]=8x2x4096x14336 [dsv3]=256x8x7168x2048
  [qwen3-235b]=128x8x4096x1536 [qwen3.5-35b]=256x8x2048x512 [dsv3-ep8]=32x8x7168x2048 [glm-4.5-air]=128x8x4096x1408
  [kimi-k2-ep8]=48x8x7168x2048 [mixtral-8x22b]=8x2x6144x16384 [qwen2-57b]=64x8x3584x2560 [dsv3-tp8]=256x8x7168x256)
models=("$@")
[ ${#models[@]} -eq 0 ] && models=(olmoe qwen3-30b mixtral-8x7b dsv3 qwen3-235b qwen3.5-35b dsv3-ep8 glm-4.5-air
  kimi-k2-ep8 mixtral-8x22b qwen2-57b dsv3-tp8)
mkdir -p "$out" || exit 1

# complete MODEL: a fit that is not older than its profile. It is written last.
complete() {
  local stem=${shapes[$1]:-} profile fit
  stem=cuda_${stem:-${1//,/x}}_fp8_block
  profile=$(compgen -G "$out/$stem*.profile.json" | head -n 1)
  fit=$(compgen -G "$out/$stem*.fit.json" | head -n 1)
  [ -n "$profile" ] && [ -n "$fit" ] && [ ! "$profile" -nt "$fit" ]
}

begin=$SECONDS
finished=0
for model in "${models[@]}"; do
  start=$SECONDS
  if complete "$model"; then
    echo "profiles: $model is complete" >&2
    finished=$((finished + 1))
    continue
  fi
  left=$((total - (SECONDS - begin)))
  [ "$left" -lt 10 ] && { echo "profiles: no time left for $model" >&2; continue; }
  if timeout -s INT -k 5 "$left" "$ramp" profile --backend cuda --model "$model" --budget "${BUDGET:-6}" --repeats 5 \
    --tokens 1,2,4,8,16,32,64,128,256,512,1024,2048,8192 --routing 'uniform;zipf:1.2' -o "$out" >/dev/null; then
    finished=$((finished + 1))
    echo "profiles: $model $((SECONDS - start)) s" >&2
  else
    echo "profiles: $model failed or was cut after $((SECONDS - start)) s: call again to go on" >&2
  fi
done
echo "profiles: $finished of ${#models[@]} models in $((SECONDS - begin)) s, $(du -sk "$out" | cut -f 1) KB in $out" >&2
