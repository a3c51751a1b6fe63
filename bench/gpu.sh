#!/bin/sh
# The GPU smoke test: about five minutes on a machine with an NVIDIA GPU, a driver and Python 3.11 or later.
#
#   bench/gpu.sh [FOLDER OF WHEELS]
#
# Nothing is downloaded. Packages that are missing are taken from the folder of wheels when one is named; otherwise
# they are listed. Prints a table and appends a record to bench/results/gpu/. PYTHON chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-}
if [ -z "$python" ]; then
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
if [ $# -gt 0 ]; then
    environment=$(mktemp -d)
    trap 'rm -rf "$environment"' EXIT
    "$python" -m venv --system-site-packages "$environment"
    python=$environment/bin/python
    "$python" -m pip install --quiet --no-index --find-links "$1" \
        numpy ml_dtypes optree llvmlite msgpack sympy triton cupy-cuda13x ||
        echo "some packages could not be installed from $1; the table says which are missing" >&2
fi
PYTHONPATH=. "$python" bench/gpu_smoke.py
