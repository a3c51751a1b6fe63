"""Attention over keys in blocks, as the CPU computes it: sizes, what is split how, and what the two ways of
computing a piece of it share.

A *piece* is some query rows of one request and one key head, and a run of its keys. Requests with few tokens
have their keys cut every `chunk` keys, so that many threads share one request, and results of the pieces are
joined; requests with more tokens have enough pieces without. Where a request is cut depends on its own tokens
and keys alone, so neither threads nor neighbours change a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Int, Value
from infini.compiler.llvm.target import Target
from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.lax.composites.paged_definition import Operands, Options

FEW_TOKENS: Final = 8  # of a request, of which the keys are cut; fewer where each is many pieces
ENOUGH_PIECES: Final = 16  # of a request whose keys are not cut
CHUNK_KEYS: Final = 512  # with up to `CHUNK_HEADS` pieces for each run of keys; more with more
CHUNK_HEADS: Final = 8
MOST_TASKS: Final = 256
MOST_ROWS: Final = 8  # queries that share a key head, of which each streams past the keys
TILE_ROWS: Final = 96
ROW_BYTES: Final = 56 << 10  # of the queries of a tile
BLOCK_BYTES: Final = 64 << 10  # of the keys of a tile
LARGEST_WIDTH: Final = 640  # of a head: the copies of a tile are on the stack


def is_suited(types: Operands[ArrayType], options: Options) -> bool:
    """Whether the kernel computes attention of operands of these types."""
    values = types.values if types.values is not None else types.keys
    widths = types.query.shape[-1], options.width_of(values)
    floats = (types.query, *(x for x in (types.key_scales, types.value_scales, types.sinks) if x is not None))
    return (
        all(x.dtype in registers.SUPPORTED and x.dtype != dtypes.float64 for x in (*floats, types.keys))
        and all(0 < width <= LARGEST_WIDTH for width in widths)
        and all(x.size for x in types.in_order())
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """Sizes of a problem, with the letters of `paged_attention`.

    Args:
        types: of the operands.
        options: attributes of the operation.
        target: processor to make code for.
    """

    types: Operands[ArrayType]
    options: Options
    target: Target

    @property
    def tokens(self) -> int:
        """T."""
        return self.types.query.shape[0]

    @property
    def heads(self) -> int:
        """H."""
        return self.types.query.shape[1]

    @property
    def depth(self) -> int:
        """D."""
        return self.types.query.shape[2]

    @property
    def stored(self) -> ArrayType:
        """The cache that values are read from."""
        return self.types.keys if self.types.values is None else self.types.values

    @property
    def width(self) -> int:
        """E."""
        return self.options.width_of(self.stored)

    @property
    def num_blocks(self) -> int:
        """N."""
        return self.types.keys.shape[0]

    @property
    def key_heads(self) -> int:
        """K."""
        return self.types.keys.shape[1]

    @property
    def size(self) -> int:
        """S."""
        return self.types.keys.shape[2]

    @property
    def requests(self) -> int:
        """R."""
        return self.types.tables.shape[0]

    @property
    def table(self) -> int:
        """B."""
        return self.types.tables.shape[1]

    @property
    def most_keys(self) -> int:
        """Keys that a table has room for."""
        return self.table * self.size

    @property
    def group(self) -> int:
        """Queries that share a key head."""
        return self.heads // self.key_heads

    @property
    def lanes(self) -> int:
        """Float32 lanes of a register."""
        return self.target.lanes

    # --- pieces ---------------------------------------------------------------------------------

    @property
    def streams(self) -> bool:
        """Whether the rows of one token are so few that they stream past the keys."""
        return self.group <= min(MOST_ROWS, self.lanes)

    @property
    def has_tiles(self) -> bool:
        """Whether there may be requests that are computed in tiles."""
        return not self.streams or self.tokens > self.few_tokens

    @property
    def tile_heads(self) -> int:
        """Query heads of a tile: a divisor of the group."""
        most = self._most_rows
        return max(n for n in range(1, min(most, self.group) + 1) if self.group % n == 0)

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile."""
        return max(1, min(self._most_rows // self.tile_heads, self.tokens))

    @property
    def _most_rows(self) -> int:
        widest = max(self.depth, self.width) + 2 * self.lanes + 16
        return max(12, min(TILE_ROWS, ROW_BYTES // (4 * widest)))

    @property
    def key_block(self) -> int:
        """Keys of a tile: whole panels of two registers."""
        panel = 2 * self.lanes
        return max(1, BLOCK_BYTES // (4 * max(self.depth, self.width)) // panel) * panel

    @property
    def chunk(self) -> int:
        """Keys of a piece of a request with few tokens: whole blocks of keys of a tile."""
        keys = CHUNK_KEYS * max(1, self.key_heads * self.tile_parts // CHUNK_HEADS)
        return -(-keys // self.key_block) * self.key_block

    @property
    def tile_parts(self) -> int:
        """Tiles that the queries of a token and a key head are cut into."""
        return self.group // self.tile_heads

    @property
    def few_tokens(self) -> int:
        """Tokens of a request whose keys are cut, at most."""
        if self.streams:
            return FEW_TOKENS
        return max(1, min(FEW_TOKENS, ENOUGH_PIECES // (self.key_heads * self.tile_parts)))

    @property
    def num_chunks(self) -> int:
        """Most pieces that the keys of a request are cut into."""
        return -(-self.most_keys // self.chunk)

    @property
    def num_slots(self) -> int:
        """Tokens that may be of requests whose keys are cut; none when all keys are one piece."""
        return min(self.tokens, self.requests * self.few_tokens) if self.num_chunks > 1 else 0

    @property
    def partial_row(self) -> int:
        """Elements of a partial result: the sums, the largest score, and the sum of weights."""
        return -(-self.width // self.lanes) * self.lanes + self.lanes

    @property
    def num_tasks(self) -> int:
        """Tasks that pieces are dealt out to."""
        few = min(self.tokens, self.requests * self.few_tokens)
        tiles = -(-self.tokens // self.tile_tokens) + self.requests
        pieces = max(few * self.num_chunks, tiles) * self.key_heads * self.tile_parts
        return max(1, min(MOST_TASKS, pieces))

    @property
    def partial_start(self) -> int:
        """Byte of the scratch memory at which partial results begin; before it is the list of pieces."""
        return -(-8 * (self.requests + 1) // 64) * 64

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the scratch memory."""
        return self.partial_start + 4 * self.num_slots * self.num_chunks * self.heads * self.partial_row

    @property
    def flops(self) -> float:
        """Of all tokens, as if every table were half full."""
        return float(self.tokens * self.heads * self.most_keys * (self.depth + self.width))


@dataclass(frozen=True, slots=True)
class Request:
    """A request at run time.

    Args:
        number: its row of the table.
        first: its first token.
        count: its tokens.
        end: keys that its last token sees: of a token that is `n` before, `n` less.
        stop: the token behind its last.
        chunks: how many pieces its keys are cut into; 1 when they are not.
        is_few: whether it has few tokens.
    """

    number: Int
    first: Int
    count: Int
    end: Int
    stop: Int
    chunks: Int
    is_few: Value


@dataclass(frozen=True, slots=True)
class Piece:
    """What is computed at once, but for the rows.

    Args:
        request: whose.
        head: the key head.
        chunk: number of the run of keys.
        keys: its first key and the end.
    """

    request: Request
    head: Int
    chunk: Int
    keys: tuple[Int, Int]


@dataclass(frozen=True, slots=True)
class Row:
    """What a piece found for one token and query head.

    Args:
        token: the token.
        head: the query head.
        sums: address of the sums of values times weights.
        top: the largest score.
        total: sum of the weights.
    """

    token: Int
    head: Int
    sums: Value
    top: Value
    total: Value
