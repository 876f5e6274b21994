#!/usr/bin/env bash
# The page of results (results.md), measured on this machine's GPU:
#
#   bench/results.sh [DIR] [SECONDS]      # default: build/results, 460 s
#   bench/results.sh --offline DIR        # no GPU: cost models judged on DIR's timings, and the page
#
# Writes JSON files into DIR and, where python3 is there, the page to DIR/results.md with a figure in DIR/img. The parts
# come in the order of their weight, each with a limit of its own; one that is cut or for which no time is left is missing
# in the page, which says so (but files of earlier calls in DIR count as well). What needs no GPU comes last and takes
# none of SECONDS; where it could not run, --offline does it later, on any machine.
#
# PARTS, a regular expression, picks parts by name (PARTS='profile|judge'). PAUSE: seconds between the points of
# whole blocks (ramp bench --pause), for a board that runs at its power limit. RAMP: another binary than build/bin/ramp.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ramp=${RAMP:-$root/build/bin/ramp}
offline=
[ "${1:-}" = --offline ] && { offline=yes; shift; }
out=${1:-$root/build/results}
total=${2:-460}
[ -n "$offline" ] && [ ! -d "$out" ] && { echo "results: got no directory '$out', expected what bench/results.sh wrote" >&2; exit 2; }
mkdir -p "$out/fits" "$out/csv" || exit 1
begin=$SECONDS

# part NAME LIMIT ARGUMENT...: stdout to NAME.json, kept only where the command succeeded.
part() {
  local name=$1 limit=$2 rest=$((total - (SECONDS - begin))) start=$SECONDS
  shift 2
  [[ $name =~ ${PARTS:-.} ]] || return 0
  [ "$rest" -lt 3 ] && { echo "results: no time left for $name" >&2; return 1; }
  [ "$rest" -lt "$limit" ] && limit=$rest
  run "$name" "$limit" "$@"
  local code=$?
  echo "results: $name $((SECONDS - start)) s" >&2
  return $code
}
run() {
  local name=$1 limit=$2
  shift 2
  rm -f "$out/$name.json"
  if timeout -s INT -k 5 "$limit" "$ramp" "$@" --json >"$out/$name.part" 2>"$out/$name.log"; then
    mv "$out/$name.part" "$out/$name.json"
    rm -f "$out/$name.log"
    return 0
  fi
  rm -f "$out/$name.part"
  echo "results: $name failed or took more than $limit s: $(tail -n 1 "$out/$name.log" | tr '\r' '\n' | tail -n 1)" >&2
  return 1
}

# All cost models on all timings: a second or two each, side by side.
evaluate() {
  local set directory cost_model name width=0
  for set in physical beta; do
    for directory in "$out/data/$set"/*/; do
      [ -e "$directory/points.csv" ] || continue
      for cost_model in wave step; do
        name=evaluate_${set}_$(basename "$directory")_$cost_model
        [[ $name =~ ${PARTS:-.} ]] || continue
        run "$name" 120 evaluate --data "$directory" --allow-missing --missing-as 1.5 --cost-model "$cost_model" &
        width=$((width + 1))
        [ $((width % $(nproc))) -eq 0 ] && wait
      done
    done
  done
  wait
}

finish() {
  command -v python3 >/dev/null || { echo "results: no python3 here: bench/results.sh --offline '$out' elsewhere" >&2; return; }
  python3 "$root/bench/results.py" --join "$out"
  evaluate
  python3 "$root/bench/results.py" "$out" >"$out/results.md"
}
if [ -n "$offline" ]; then
  finish
  exit
fi

bench=(bench --backend cuda --no-check ${PAUSE:+--pause "$PAUSE"})
models="olmoe qwen3-30b mixtral-8x7b dsv3"
fp8=(--routing 'uniform;zipf:1.2' --tokens 1,8,32,128,512,2048,8192)
for model in $models; do
  part "rule_fp8_$model" 60 "${bench[@]}" --fit none "${fp8[@]}" --model "$model"
done
for model in olmoe qwen3-30b mixtral-8x7b; do
  part "rule_bf16_$model" 60 "${bench[@]}" --fit none --routing 'uniform;zipf:1.2' --tokens 1,32,128,512,2048,8192 \
    --format bf16 --model "$model"
done
part rule_bf16_wide 30 "${bench[@]}" --fit none --routing 'uniform;zipf:1.2;zipf:2' --tokens 128 --format bf16 \
  --model 64,4,3584,2560

# The regions put to the test: groups of row tiles, split depth and the wide tile, off and on.
shapes=olmoe,qwen3-30b,32,8,7168,256,dsv3-tp8,mixtral-8x22b,phi3.5-moe,jamba-1.5,dbrx
short=(--backend cuda --no-check --layers 2 --repeats 7 --routing uniform --model "$shapes")
part regions 5 regions
part regions_fp8 40 bench "${short[@]}" --tokens 1,64,4096 \
  --config m8_n128_k128_s6_t320,m24_n128_k128_s6_t320,m128_n256_k128_s4_t384_g2,m128_n256_k128_s4_t384
part regions_few 20 bench "${short[@]}" --isa sm90_few --tokens 1
part regions_bf16 30 bench "${short[@]}" --format bf16 --tokens 8,512 --config m64_n128_k64_s4_t320,m64_n256_k64_s4_t576

# Profiled and fitted from nothing (the kernels of the day are not those of profiles/), and the first part again with
# the fit. The new files may replace those of profiles/.
profile=(profile --backend cuda --budget 6 --repeats 5 --routing 'uniform;zipf:1.2'
  --tokens 1,2,4,8,16,32,64,128,256,512,1024,2048,8192 -o "$out/fits")
for model in $models; do
  part "profile_$model" 60 "${profile[@]}" --model "$model" --fresh
done
for model in $models; do
  part "fit_fp8_$model" 30 "${bench[@]}" --fit "$out/fits" "${fp8[@]}" --model "$model"
done
part prefill_shapes 60 "${bench[@]}" --fit none --routing 'uniform;zipf:1.2' --tokens 512,2048,8192 \
  --model olmoe,qwen3-30b,mixtral-8x7b,dsv3 \
  --config m128_n256_k128_s4_t384,m128_n256_k128_s4_t384_mix,m192_n128_k128_s4_t512,m192_n128_k128_s4_t512_mix
part fast_sum 40 "${bench[@]}" --fit none --determinism fast --routing 'uniform;zipf:1.2' --tokens 2048,8192 \
  --model olmoe,qwen3-30b,mixtral-8x7b,dsv3 --config m128_n256_k128_s4_t384,m128_n256_k128_s4_t384_sum

# Regret: every config at points that the fit has not seen. The profile is gone on from: nothing of it is timed again,
# and one that was cut above is finished first. Few and many tokens apart, so that a cut loses half. beta: normalised entropy 0.5, which the published
# method was judged at: of experts that a token's k nearly always are.
judge=("${profile[@]}" --judge --judge-budget 8 --judge-draws 2)
for model in $models; do
  part "judge_few_$model" 60 "${judge[@]}" --model "$model" --csv "$out/csv/few" --judge-tokens 3,12,48,96,200 \
    --judge-routing 'zipf:0.4;zipf:0.9;zipf:1.6'
done
for model in $models; do
  part "judge_many_$model" 80 "${judge[@]}" --model "$model" --csv "$out/csv/many" --judge-tokens 700,1500,3000,6000 \
    --judge-routing 'zipf:0.4;zipf:0.9;zipf:1.6'
done
declare -A half=([olmoe]=single [qwen3-30b]=ddist:0.94 [mixtral-8x7b]=ddist:0.9 [dsv3]=ddist:0.88)
for model in $models; do
  part "judge_beta_$model" 20 "${judge[@]}" --model "$model" --csv "$out/csv/beta" --judge-tokens 96,700,3000 \
    --judge-routing "${half[$model]}"
done
echo "results: $((SECONDS - begin)) s on the GPU" >&2
finish
echo "results: $((SECONDS - begin)) s in all, files in $out" >&2
