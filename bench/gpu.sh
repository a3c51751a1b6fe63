#!/bin/sh
# What there is to know on a machine with an NVIDIA GPU, a driver and Python 3.11 or later, in two halves of under ten
# minutes each.
#
#   bench/gpu.sh 1 [FOLDER OF WHEELS]   is it right: the smoke test, which also calls NCCL and starts two processes
#                                       where these are installed, then the tests of all operations on the GPU
#   bench/gpu.sh 2 [FOLDER OF WHEELS]   is it fast: kernels and models beside JAX, PyTorch and Triton by hand
#   bench/gpu.sh   [FOLDER OF WHEELS]   both
#
# Nothing is downloaded. Packages that are missing are taken from the folder of wheels when one is named; otherwise
# they are listed. Prints tables, appends records to bench/results/gpu/ and bench/results/gpu-DATE.json, and leaves the
# output of the tests in bench/results/gpu/operations.log. PYTHON chooses the interpreter, JOBS the processes of tests.
set -u
cd "$(dirname "$0")/.."
halves="1 2"
case ${1:-} in 1 | 2) halves=$1; shift ;; esac
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
        numpy ml_dtypes optree llvmlite msgpack sympy safetensors tokenizers typer rich triton cupy-cuda13x \
        pytest pytest-xdist hypothesis ||
        echo "some packages could not be installed from $1; the table says which are missing" >&2
fi
PYTHONPATH=.
export PYTHONPATH
status=0
for half in $halves; do
    case $half in
    1)
        timeout 280 "$python" bench/gpu_smoke.py || status=1
        mkdir -p bench/results/gpu
        # The operations against their definitions in NumPy, eager and jitted; five minutes at most.
        INFINI_DEVICE=cuda timeout 300 "$python" -m pytest tests/oracle -q -n "${JOBS:-8}" -k "jitted_and_eager" \
            -p no:cacheprovider > bench/results/gpu/operations.log 2>&1 || status=1
        tail -n 40 bench/results/gpu/operations.log
        ;;
    2) timeout 580 "$python" -m infini.perf gpu || status=1 ;;
    esac
done
exit $status
