#!/usr/bin/env bash
# The tests for a machine with a GPU, without network, in under six minutes. The programs were built elsewhere:
#   tests/gpu/run.sh BUILD [SECTION...]     BUILD: a build directory (its bin/ is enough)
#   tests/gpu/run.sh -l                     the sections and their time limits
# Without sections: all. Kernels are compiled into a cache of their own (RAMP_CACHE_DIR, else a new one below
# /tmp). Prints a table last; returns 0 if every section passed, 1 otherwise. A section whose program or tool
# is missing has failed.
set -uo pipefail

# name, seconds that it may take, what it runs.
sections=(
  "kernels:120:the prologue's own tests"
  "block:150:the expert block over all shapes, formats and options; bits, graphs, errors"
  "big:150:real model sizes, T = 8192, offsets beyond 32 bits"
  "leak:40:10,000 calls, contexts that come and go"
  "faults:60:memory, cache and kernel faults; first calls and host time"
  "cli:60:ramp info, demo, run, bench and cache list"
  "third:120:somebody else's kernel beside ramp's own: profiled, dispatched live, checked"
  "memcheck:60:compute-sanitizer: addresses and leaks of the kernels"
  "racecheck:90:compute-sanitizer: shared memory hazards"
  "synccheck:40:compute-sanitizer: barriers"
  "initcheck:90:compute-sanitizer: memory that was never written"
)

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit 2
}
if [ "${1:-}" = -l ]; then
  for s in "${sections[@]}"; do
    IFS=: read -r name limit what <<<"$s"
    printf '%-10s %4s s  %s\n' "$name" "$limit" "$what"
  done
  exit 0
fi
[ $# -ge 1 ] && [ -d "$1" ] || usage
bin=$(cd "$1" && pwd)/bin
shift
[ -d "$bin" ] || { echo "run.sh: got no $bin, expected the programs of a build; build the tests first" >&2; exit 2; }
for wanted in "$@"; do
  printf '%s\n' "${sections[@]}" | grep -q "^$wanted:" || {
    echo "run.sh: got section '$wanted', expected one of those that '$0 -l' lists" >&2
    exit 2
  }
done

work=$(mktemp -d /tmp/ramp-gpu-tests.XXXXXX)
trap 'rm -rf "$work"' EXIT
export RAMP_CACHE_DIR=${RAMP_CACHE_DIR:-$work/cache}
export PATH=$PATH:/usr/local/cuda/bin

# Tests spend most of their time on the host, in references: several processes, each with a part of them.
sharded() { # COMMAND...
  local shards i status=0 pids=()
  shards=$(nproc)
  [ "$shards" -le 6 ] || shards=6
  for ((i = 0; i < shards; ++i)); do
    GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$i "$@" >"$work/shard$i" 2>&1 &
    pids+=($!)
  done
  for i in "${!pids[@]}"; do
    wait "${pids[$i]}" || { status=$?; echo "shard $i of $shards: exit status $status"; }
    cat "$work/shard$i"
  done
  return $status
}

sanitizer() { # TOOL ARGUMENTS...
  local tool=$1
  shift
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer not found"; return 127; }
  # The cache is warm by then, so that the tools watch kernels and not the compiler.
  "$bin/gpu_block_test" --gtest_brief=1 --gtest_filter='*GpuSmall*' >/dev/null
  sharded compute-sanitizer --tool "$tool" --print-limit 10 --error-exitcode 9 "$@" \
    "$bin/gpu_block_test" --gtest_brief=1 --gtest_filter='*GpuSmall*'
}

program() { # NAME FILTER
  [ -x "$bin/$1" ] || { echo "$bin/$1 is not there"; return 127; }
  "$bin/$1" --gtest_brief=1 --gtest_filter="$2"
}

run_kernels() {
  local found=0 status=0
  for p in "$bin"/gpu_*_test; do
    case ${p##*/} in gpu_block_test | gpu_big_test | gpu_faults_test) continue ;; esac
    [ -x "$p" ] || continue
    found=1
    sharded "$p" --gtest_brief=1 || status=1
  done
  [ $found = 1 ] || { echo "no gpu_*_test program of the kernels"; return 127; }
  return $status
}
run_block() { sharded program gpu_block_test '-*GpuSmall*'; }
run_big() { program gpu_big_test '-GpuLeaks.*'; }
run_leak() { program gpu_big_test 'GpuLeaks.*'; }
run_faults() { program gpu_faults_test '*'; }
run_cli() {
  local ramp=$bin/ramp
  [ -x "$ramp" ] || { echo "$ramp is not there"; return 127; }
  "$ramp" info --no-measure &&
    "$ramp" demo --backend cuda --quiet &&
    "$ramp" run --backend cuda --model 16,4,512,256 --tokens 40 --routing zipf:1.2 --check-all --quiet &&
    "$ramp" run --backend cuda --model 16,4,512,256 --format bf16 --tokens 9 --per-slot --check-all --quiet &&
    "$ramp" configs --backend cuda --model olmoe --quiet &&
    "$ramp" bench --backend cuda --model olmoe --tokens 1,64 --routing 'uniform;zipf:1.2' \
      --determinism repeatable,fast --quiet &&
    "$ramp" cache list --quiet
}
run_third() {
  [ -x "$bin/third_party_gpu" ] || { echo "$bin/third_party_gpu is not there"; return 127; }
  [ -e "$bin/libportable_kernel.so" ] || { echo "$bin/libportable_kernel.so is not there"; return 127; }
  "$bin/third_party_gpu" 32 4 1024 512 &&
    "$bin/ramp" profile --backend cuda --kernel-library "$bin/libportable_kernel.so" --model 32,4,1024,512 \
      --format fp8_block,bf16 --budget 3 -o "$work/third" --quiet
}
run_memcheck() { sanitizer memcheck --leak-check full; }
run_racecheck() { sanitizer racecheck; }
run_synccheck() { sanitizer synccheck; }
run_initcheck() { RAMP_GPU_NO_POISON=1 sanitizer initcheck; }

# "timeout" runs programs, not functions: each section is this shell again.
export bin work
export -f sharded sanitizer program run_kernels run_block run_big run_leak run_faults run_cli run_third run_memcheck run_racecheck \
  run_synccheck run_initcheck

table=
failed=0
for s in "${sections[@]}"; do
  IFS=: read -r name limit what <<<"$s"
  if [ $# -gt 0 ]; then
    case " $* " in *" $name "*) ;; *) continue ;; esac
  fi
  echo "== $name: $what"
  began=$(date +%s.%N)
  timeout --kill-after=5 "$limit" bash -c "run_$name" >"$work/log" 2>&1
  status=$?
  seconds=$(awk "BEGIN { printf \"%.1f\", $(date +%s.%N) - $began }")
  case $status in
    0) verdict=passed ;;
    124 | 137) verdict="FAILED: over $limit s" ;;
    127) verdict="FAILED: missing" ;;
    *) verdict="FAILED ($status)" ;;
  esac
  # A failure is told in full, as far as that stays readable; else what the programs print last.
  if [ $status = 0 ]; then
    tail -n 12 "$work/log"
  else
    failed=1
    if [ "$(wc -c <"$work/log")" -le 8000 ]; then cat "$work/log"; else head -c 6000 "$work/log"; echo ...; tail -n 15 "$work/log"; fi
  fi
  table+=$(printf '%-10s %8s s  %s' "$name" "$seconds" "$verdict")$'\n'
done
printf '\n%s' "$table"
exit $failed
