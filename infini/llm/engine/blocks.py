"""Blocks of the key/value cache: which are free, who holds which, and which hold a known beginning of a text.

A block that nobody holds keeps what is in it until it is handed out again, so that a later request with the
same beginning can take it back: the free list is the eviction order, least recently used first. Only full
blocks are known to the prefix cache, by a hash that chains the hash of the block before; what was found by
hash is compared token by token. Plain Python: nothing here knows of arrays or devices.
"""

from __future__ import annotations

import array
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NewType

BlockHash = NewType("BlockHash", bytes)
_HASH_BYTES: Final = 16


@dataclass(eq=False, slots=True, repr=False)
class Block:
    """One block of the cache.

    Args:
        index: its number in the cache.
    """

    index: int
    num_holders: int = 0
    hash: BlockHash | None = None  # set while the prefix cache knows it
    tokens: tuple[int, ...] = ()  # what it holds, while the prefix cache knows it
    before: Block | None = field(default=None)  # neighbours in the free list, while nobody holds it
    after: Block | None = field(default=None)

    def __repr__(self) -> str:
        return f"Block({self.index}, num_holders={self.num_holders}, is_known={self.hash is not None})"


class FreeList:
    """Blocks in the order in which they will be handed out; any one is taken out in constant time.

    Args:
        blocks: those it begins with, in order.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._ends = Block(-1)  # before the first and after the last
        self._ends.before = self._ends.after = self._ends
        self._size = 0
        for block in blocks:
            self.append(block)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Block]:
        block = self._ends.after
        while block is not None and block is not self._ends:
            yield block
            block = block.after

    def append(self, block: Block) -> None:
        """Put a block at the end."""
        last = self._ends.before
        assert last is not None and block.after is None, "the block is in the list already"
        block.before, block.after = last, self._ends
        last.after = self._ends.before = block
        self._size += 1

    def remove(self, block: Block) -> None:
        """Take a block out, wherever it is."""
        before, after = block.before, block.after
        assert before is not None and after is not None, "the block is not in the list"
        before.after, after.before = after, before
        block.before = block.after = None
        self._size -= 1

    def pop(self) -> Block:
        """Take the first out."""
        first = self._ends.after
        assert first is not None and first is not self._ends, "the list is empty"
        self.remove(first)
        return first


class BlockPool:
    """All blocks of a cache and what is known of their content.

    Args:
        num_blocks: how many there are.
        block_size: tokens of each.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.blocks: Final = tuple(Block(index) for index in range(num_blocks))
        self._free = FreeList(self.blocks)
        self._known: dict[BlockHash, Block] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_known(self) -> int:
        """Blocks whose content the prefix cache knows."""
        return len(self._known)

    @property
    def usage(self) -> float:
        """Share of the blocks that somebody holds, from 0 to 1."""
        return 1.0 - len(self._free) / self.num_blocks

    def free_blocks(self) -> Iterator[Block]:
        """Those that nobody holds, in the order in which they will be handed out."""
        return iter(self._free)

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[Block]:
        """Hand out blocks with one holder each; what they held is forgotten. There have to be enough."""
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._forget(block)
            block.num_holders = 1
        return blocks

    def hold(self, blocks: Sequence[Block]) -> None:
        """Become a further holder of blocks; those that were free are so no more."""
        for block in blocks:
            if block.num_holders == 0:
                self._free.remove(block)
            block.num_holders += 1

    def release(self, blocks: Sequence[Block]) -> None:
        """Be a holder no more. The end of a text goes to the free list first, and so is forgotten first."""
        for block in reversed(blocks):
            assert block.num_holders > 0, "the block is held by nobody"
            block.num_holders -= 1
            if block.num_holders == 0:
                self._free.append(block)

    def find(self, hashes: Sequence[BlockHash], token_ids: Sequence[int]) -> list[Block]:
        """The longest run of known blocks that hold the beginning of a text.

        Args:
            hashes: of the text's blocks, as `extend_hashes` makes them; no more are looked up.
            token_ids: the text.
        """
        found = []
        for number, key in enumerate(hashes):
            block = self._known.get(key)
            start = number * self.block_size
            if block is None or block.tokens != tuple(token_ids[start : start + self.block_size]):
                break
            found.append(block)
        return found

    def make_known(self, block: Block, key: BlockHash, tokens: tuple[int, ...]) -> None:
        """Say what a full block holds. A second block with the same content stays unknown."""
        assert len(tokens) == self.block_size and block.num_holders > 0
        if block.hash is None and key not in self._known:
            block.hash, block.tokens = key, tokens
            self._known[key] = block

    def num_free_of(self, blocks: Sequence[Block]) -> int:
        """How many of some blocks nobody holds: holding them takes so many from the free list."""
        return sum(block.num_holders == 0 for block in blocks)

    def forget_all(self) -> None:
        """Empty the prefix cache; who holds what stays as it is."""
        for block in list(self._known.values()):
            self._forget(block)

    def _forget(self, block: Block) -> None:
        if block.hash is not None:
            del self._known[block.hash]
            block.hash, block.tokens = None, ()


def extend_hashes(
    hashes: list[BlockHash], token_ids: Sequence[int], block_size: int, *, salt: str = ""
) -> None:
    """Append the hashes of the full blocks of a text that are not in the list yet.

    Args:
        hashes: of its first blocks; extended in place.
        token_ids: the text.
        block_size: tokens of a block.
        salt: texts with different salts have nothing in common.
    """
    for start in range(len(hashes) * block_size, len(token_ids) - block_size + 1, block_size):
        before = hashes[-1] if hashes else _root(salt)
        tokens = array.array("q", token_ids[start : start + block_size]).tobytes()
        hashes.append(BlockHash(hashlib.blake2b(before + tokens, digest_size=_HASH_BYTES).digest()))


def _root(salt: str) -> bytes:
    return hashlib.blake2b(
        salt.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES, person=b"salt"
    ).digest()
