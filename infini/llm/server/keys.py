"""Keys of clients, kept as digests and compared in constant time over all of them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from typing import Final

_BEARER: Final = b"bearer "


class Keys:
    """The keys that are accepted.

    Args:
        keys: as clients send them.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, headers: Sequence[tuple[bytes, bytes]]) -> int | None:
        """Which of the keys a request brought, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`.

        Args:
            headers: the request's, names in lower case, as ASGI has them.

        Returns:
            The key's number; None for none of them.
        """
        given = b""
        for name, value in headers:
            if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
                given = value[len(_BEARER) :].strip()
            elif name == b"x-api-key" and not given:
                given = value.strip()
        # Every key is compared, whichever one fits, so that the time says nothing about them.
        found = None
        digest = _digest(given)
        for number, known in enumerate(self._digests):
            if secrets.compare_digest(digest, known):
                found = number
        return found if given else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
