# Shared by ./demo, ./test and .ci/run: install what is missing, configure and build. Sourced, not run.
# Debian 12 or Ubuntu 24.04, as root or with sudo. A second run finds everything in place and does nothing twice.

RAMP_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf 'ramp: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# The packages that building and testing need. Their versions are the distribution's own (Debian 12 / Ubuntu 24.04);
# the oldest that work: g++ 12, CMake 3.25, CLI11 2.1, nlohmann-json 3.11, fmt 9, Eigen 3.4, GoogleTest 1.12, xxHash 0.8.
RAMP_PACKAGES="g++ cmake ninja-build ccache pkg-config git libcli11-dev nlohmann-json3-dev libfmt-dev libeigen3-dev libgtest-dev libbenchmark-dev libcairo2-dev libxxhash-dev"

missing_packages() {
  local p
  for p in "$@"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || printf '%s ' "$p"
  done
}

install_packages() {
  local missing
  missing=$(missing_packages "$@")
  [ -z "$missing" ] && return 0
  command -v apt-get >/dev/null || die "missing: $missing; this script installs with apt-get (Debian 12, Ubuntu 24.04): install them by hand"
  local sudo=""
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "missing: $missing; run as root or install sudo"
    sudo=sudo
  fi
  say "installing: $missing"
  $sudo apt-get update -qq || die "apt-get update failed"
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
    die "apt-get could not install: $missing"
}

# build DIR TARGET... [-- CMAKE_ARGUMENT...]: configures DIR when it is new or its arguments changed, then builds.
build() {
  local dir=$1
  shift
  local targets=() args=()
  while [ $# -gt 0 ] && [ "$1" != "--" ]; do targets+=("$1"); shift; done
  [ $# -gt 0 ] && shift
  args=("$@")
  # Paths relative to the checkout: build folders and clones share one cache.
  export CCACHE_BASEDIR=$RAMP_ROOT CCACHE_NOHASHDIR=1
  command -v ccache >/dev/null && args+=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  local stamp="$dir/.configured-with"
  if [ ! -f "$dir/build.ninja" ] || [ "$(cat "$stamp" 2>/dev/null)" != "${args[*]}" ]; then
    say "configuring $(basename "$dir")"
    cmake -S "$RAMP_ROOT" -B "$dir" -G Ninja -DCMAKE_BUILD_TYPE=Release "${args[@]}" >"$dir.configure.log" 2>&1 ||
      { cat "$dir.configure.log" >&2; rm -f "$dir.configure.log"; die "cmake failed"; }
    mkdir -p "$dir" && mv "$dir.configure.log" "$dir/configure.log" && printf '%s' "${args[*]}" >"$stamp"
    grep -ho 'ramp: .*CUDA.*' "$dir/configure.log" | head -n 1 | sed 's/^ramp: //' | while read -r line; do say "$line"; done
  fi
  say "building $(basename "$dir")"
  if [ -t 2 ]; then
    cmake --build "$dir" --target "${targets[@]}" >&2 || die "the build failed"
  else
    cmake --build "$dir" --target "${targets[@]}" >"$dir/build.log" 2>&1 || { tail -n 60 "$dir/build.log" >&2; die "the build failed"; }
  fi
}
