"""`python -m infini.as_jax PROGRAM.py [arguments]`: run a program written for JAX on infini."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Final

from infini.as_jax import importer

USAGE: Final = """usage: python -m infini.as_jax PROGRAM.py [arguments]
       python -m infini.as_jax -m MODULE [arguments]

Runs a program written for JAX on infini: in it, `import jax` finds infini."""


def main(arguments: list[str]) -> int:
    """Run the program that the arguments name, which sees itself as `__main__`.

    Args:
        arguments: the program's path, or `-m` and a module, and then the program's own arguments.

    Returns:
        The exit status: 2 when no program is named or it does not exist, and otherwise 0; a program that
        raises or exits does so through this function.
    """
    is_module = arguments[:1] == ["-m"]
    program, *rest = arguments[is_module:] or [""]
    if program in ("-h", "--help"):
        print(USAGE)
        return 0
    if not program or (program.startswith("-") and not is_module):
        print(USAGE, file=sys.stderr)
        return 2
    if not is_module and not Path(program).exists():
        print(f"python -m infini.as_jax: there is no file {program!r}", file=sys.stderr)
        return 2
    importer.install()
    sys.argv = [program, *rest]
    if is_module:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        # As `python PROGRAM.py` does: modules beside the program are found, those of this folder are not.
        sys.path[0] = str(Path(program).resolve().parent)
        runpy.run_path(program, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
