#!/usr/bin/env bash
# Everything that needs a GPU, in under nine minutes, into one JSON file; without a network. See bench/gpu.py.
#
#   DATA=data BLIMP=data/blimp bash bench/gpu.sh gpu.json
#   DEVICE=cpu QUICK=1 bash bench/gpu.sh gpu.json                 # the same path with tiny models, to try it out
#
# DATA: prepared corpora (babylm-2mb, babylm-10mb, babylm-10m); BLIMP: the folder of its files. A failure is recorded,
# and the rest goes on.
set -eu
target=$(realpath "${1:-${OUT:-.}/gpu.json}")
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m bench.gpu "$target"
