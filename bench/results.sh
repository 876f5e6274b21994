#!/usr/bin/env bash
# The page of results (results.md), measured on this machine's GPU:
#
#   bench/results.sh [DIR] [SECONDS]      # default: build/results, 300 s
#
# writes JSON files into DIR and, where python3 is there, the page to DIR/results.md (bench/results.py DIR makes it
# again from the files). PARTS, a regular expression, picks parts by name (PARTS='regret|evaluate'). RAMP names another binary than build/bin/ramp. The parts come in the order of their weight, each
# with a limit of its own; one for which no time is left is missing in the page, which says so. About 20 s for each
# model's regret, 13 s once for kernels.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ramp=${RAMP:-$root/build/bin/ramp}
out=${1:-$root/build/results}
total=${2:-300}
mkdir -p "$out" "$out/fits" "$out/csv"
begin=$SECONDS
left() { echo $((total - (SECONDS - begin))); }
# part NAME LIMIT ARGUMENT...: stdout to NAME.json, kept only where the command succeeded.
part() {
  local name=$1 limit=$2 rest
  shift 2
  [[ $name =~ ${PARTS:-.} ]] || return
  rest=$(left)
  [ "$rest" -lt 2 ] && { echo "results: no time left for $name" >&2; return; }
  [ "$rest" -lt "$limit" ] && limit=$rest
  local start=$SECONDS
  if timeout -s INT "$limit" "$ramp" "$@" --json >"$out/$name.part" 2>"$out/$name.log"; then
    mv "$out/$name.part" "$out/$name.json"
  else
    rm -f "$out/$name.part"
    echo "results: $name failed or took more than $limit s: $(tail -n 1 "$out/$name.log")" >&2
  fi
  echo "results: $name $((SECONDS - start)) s" >&2
}

bench=(bench --backend cuda --no-check)
models="olmoe qwen3-30b mixtral-8x7b dsv3"
for model in $models; do
  part "rule_fp8_$model" 60 "${bench[@]}" --fit none --routing 'uniform;zipf:1.2' --tokens 1,8,32,128,512,2048,8192 \
    --model "$model"
done
for model in olmoe qwen3-30b mixtral-8x7b; do
  part "rule_bf16_$model" 60 "${bench[@]}" --fit none --routing 'uniform;zipf:1.2' --tokens 1,32,128,512,2048,8192 \
    --format bf16 --model "$model"
done
part rule_bf16_wide 30 "${bench[@]}" --fit none --routing 'uniform;zipf:1.2;zipf:2' --tokens 128 --format bf16 \
  --model 64,4,3584,2560

# Regret: profiled and fitted from nothing (the kernels of the day are not those of profiles/), judged at points
# that the fit has not seen. The new files may replace those of profiles/.
for model in $models; do
  part "regret_$model" 90 profile --backend cuda --model "$model" --fresh --budget 6 --repeats 5 --judge --judge-budget 4 \
    --tokens 1,2,4,8,16,32,64,128,256,512,1024,2048,8192 --routing 'uniform;zipf:1.2' \
    --judge-tokens 3,12,48,96,200,700,1500,3000,6000 --judge-routing 'zipf:0.4;zipf:0.9;zipf:1.6' \
    -o "$out/fits" --csv "$out/csv"
done
for directory in "$out"/csv/*/; do
  [ -e "$directory/points.csv" ] || continue
  for cost_model in wave step ramp4; do
    part "evaluate_$(basename "$directory")_$cost_model" 20 evaluate --data "$directory" --allow-missing --missing-as 1.5 \
      --cost-model "$cost_model"
  done
done

# What the fits of this run are worth: the first part again with them.
for model in $models; do
  part "fit_fp8_$model" 60 "${bench[@]}" --fit "$out/fits" --routing 'uniform;zipf:1.2' --tokens 1,8,32,128,512,2048,8192 \
    --model "$model"
done

# The regions put to the test: groups of row tiles, split depth and the wide tile, off and on.
shapes=olmoe,qwen3-30b,32,8,7168,256,dsv3-tp8,mixtral-8x22b,phi3.5-moe,jamba-1.5,dbrx
short=(--backend cuda --no-check --layers 2 --repeats 7 --routing uniform --model "$shapes")
part regions 5 regions
part regions_fp8 60 bench "${short[@]}" --tokens 1,64,4096 \
  --config m8_n128_k128_s6_t320,m24_n128_k128_s6_t320,m128_n256_k128_s4_t384_g2,m128_n256_k128_s4_t384
part regions_few 40 bench "${short[@]}" --isa sm90_few --tokens 1
part regions_bf16 60 bench "${short[@]}" --format bf16 --tokens 8,512 --config m64_n128_k64_s4_t320,m64_n256_k64_s4_t576
rm -f "$out"/*.log

if command -v python3 >/dev/null; then python3 "$root/bench/results.py" "$out" >"$out/results.md"; fi
echo "results: $((SECONDS - begin)) s in all, files in $out" >&2
