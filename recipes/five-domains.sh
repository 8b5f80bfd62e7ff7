#!/usr/bin/env bash
# Four methods on one data folder, on equal optimizer steps, with rewritings unchecked and checked.
#
#   recipes/five-domains.sh DATA [key=value ...]
#
# A finished run is kept, a stopped one resumes with its original settings. The tables in docs/results/five-domains.md were made by
#   python benchmarks/collect.py docs/results/five-domains runs/five-domains/*
set -euo pipefail
data=$1
shift
more=("$@")
one() {
  dir=runs/five-domains/$1
  shift
  if [ -f "$dir/config.toml" ]; then
    fedsdr resume "$dir"
  else
    fedsdr run recipes/five-domains.toml "data.root=$data" "run.dir=$dir" "$@" ${more[@]+"${more[@]}"}
  fi
}
for method in fedit dual-raw; do one "$method" "method=$method"; done
for method in fedsd fedsdr; do
  for verify in off answer; do one "$method-$verify" "method=$method" "distill.verify=$verify"; done
done
