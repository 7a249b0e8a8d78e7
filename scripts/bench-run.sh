# shellcheck shell=bash
# For the scripts that measure: what they run, and how it is stored.
#
# With BENCH_DRY_RUN=1 nothing is measured, drawn or written: each run prints its name and its arguments, with tabs
# between them. So `scripts/figures.py --check` knows what a stored result must have been measured with.
bench=target/release/bench
# What a run's process is started with, before the program: a namespace, say.
bench_within=()

is_dry_run() {
  [ "${BENCH_DRY_RUN:-}" = 1 ]
}

# Cores for both ends of a load, for --shared-cores. Results may come from machines of different size: {cores} stands
# for those of the machine that a result tells.
cores_here() {
  if is_dry_run; then echo '{cores}'; else nproc; fi
}

run() { # name, arguments…
  local name=$1
  shift
  if is_dry_run; then
    (IFS=$'\t'; echo "$name"$'\t'"$*")
    return
  fi
  echo
  echo "bench $*"
  "${bench_within[@]}" "$bench" "$@" --json "$out/$name.json"
}

plot() { # JSON files…
  if ! is_dry_run; then "$bench" plot "$@" --out "$out"; fi
}

# Writes README.md and docs/figures.md anew, if the results are the repository's.
write_figures() {
  if [ "$out" = benches/results ] && ! is_dry_run; then scripts/figures.py; fi
}

make_folder() {
  is_dry_run || mkdir -p "$out"
}
