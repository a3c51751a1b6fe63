"""Where a vendor's libraries are looked for, and what is said when there is none.

Every process that has no device of his asks this much, so it imports nothing of ours and loads what it finds
by name alone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """Where a vendor's libraries are.

    Args:
        homes: environment variables that name the folder of the SDK.
        defaults: folders where its installer puts it.
        folders: folders with libraries below those.
        install: what to install when nothing is found, for the user.
    """

    homes: tuple[str, ...]
    defaults: tuple[str, ...]
    folders: tuple[str, ...]
    install: str

    def candidates(self, libraries: Sequence[str]) -> Iterator[str]:
        """Paths that exist, then bare names, which the loader looks up by LD_LIBRARY_PATH and its cache.

        Args:
            libraries: file names, best first.
        """
        for folder in self._looked_in():
            for name in libraries:
                path = os.path.join(folder, name)  # noqa: PTH118  # every process asks; a Path costs more
                if os.path.exists(path):  # noqa: PTH110  # likewise
                    yield path
        yield from libraries

    def why_missing(self, libraries: Sequence[str]) -> str | None:
        """Why there is no such library here, or None when one of that name is; whether it is the vendor's,
        and has what is needed, is not asked.

        Args:
            libraries: file names, best first.
        """
        for path in self.candidates(libraries):
            if os.path.isabs(path):  # noqa: PTH117  # likewise
                return None
            try:
                ctypes.CDLL(path, mode=os.RTLD_LOCAL | os.RTLD_LAZY)
            except OSError:
                continue
            return None
        return self.not_found(libraries)

    def not_found(self, libraries: Sequence[str]) -> str:
        """The words for a library that is nowhere: where it was looked for, and what to install."""
        looked = ", ".join(self._looked_in()) or "no folder"
        unset = [name for name in self.homes if not os.environ.get(name)]
        homes = f" ({', '.join(unset)} {'is' if len(unset) == 1 else 'are'} not set)" if unset else ""
        return (
            f"{' or '.join(libraries)} was not found: looked in {looked}{homes}, and where the system's "
            f"loader looks; {self.install}"
        )

    def _looked_in(self) -> list[str]:
        given = [os.environ[name] for name in self.homes if os.environ.get(name)]
        return [str(Path(home, folder)) for home in (*given, *self.defaults) for folder in self.folders]
