#!/usr/bin/env bash
# Everything that needs a GPU, in under nine minutes, into one JSON file; without a network. See bench/gpu.py.
#
#   DATA=data BLIMP=blimp.zip bash bench/gpu.sh gpu.json          # DATA: prepared corpora (babylm-2mb, babylm-10mb, babylm-10m); BLIMP: folder or zip
#   DEVICE=cpu QUICK=1 bash bench/gpu.sh gpu.json                 # the same path with tiny models, to try it out
set -eu
export OUT="${OUT:-.}"
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "${1:-$OUT/gpu.json}"
