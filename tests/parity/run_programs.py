"""Runs programs written for JAX and saves what their `main` gives: OUTPUT.npz PROGRAM.py [PROGRAM.py ...]"""

import runpy
import sys
from pathlib import Path

import jax
import numpy as np


def main(output, programs):
    found = {}
    for path in map(Path, programs):
        leaves = jax.tree.leaves(runpy.run_path(str(path))["main"]())
        found |= {f"{path.stem}/{number:03}": np.asarray(leaf) for number, leaf in enumerate(leaves)}
    np.savez(output, **found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
