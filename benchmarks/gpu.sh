#!/usr/bin/env bash
# Tests and figures of the project on a machine with one CUDA GPU, in a limited time; see gpu.py beside this file.
#     benchmarks/gpu.sh [--minutes=8] [--images=FOLDER_OR_TAR] [--smoke]
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
