"""Triton sources of discrete Fourier transforms: passes over memory, one for each factor of a length.

After factors whose product is L, element (k, j) of a line of n is the transform of length L, at frequency
k, of the elements j, j + n / L, j + 2 n / L ...; a pass with the factor r makes frequencies modulo L r of
it, each from r elements (Stockham's form, so nothing is put in order before or after). Factors are joined
up to 16, and a large prime is a pass of its own, with as many products per element. Angles are reduced as
whole numbers first. Complex numbers are pairs in memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.triton import scalar
from infini.compiler.triton.function_text import FunctionText, index_dtype
from infini.compiler.triton.source import TritonSource, language_name
from infini.compiler.triton.target import GENERIC, Target
from infini.core.ir import ArrayType, Attrs
from infini.lax import complex_views

_BLOCK: Final = 1024
_RADIX: Final = 16  # most products per element where the factors allow it


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass along one dimension.

    Args:
        outer: lines before the dimension.
        length: elements along it.
        inner: elements after it.
        before: product of the factors of earlier passes.
        radix: the factor.
        kept: frequencies that are stored; fewer than all only in the last pass along a dimension.
        stored: elements of a line of the source; fewer than `length` where the others are their mirror image.
        is_from_real: whether the source has no imaginary parts.
        is_to_real: whether the result has none.
        is_inverse: direction.
        factor: what the result is multiplied with.
    """

    outer: int
    length: int
    inner: int
    before: int
    radix: int
    kept: int
    stored: int
    is_from_real: bool = False
    is_to_real: bool = False
    is_inverse: bool = False
    factor: float = 1.0

    @property
    def rest(self) -> int:
        """Elements of a line that stay apart."""
        return self.length // (self.before * self.radix)

    @property
    def size(self) -> int:
        """Elements that are stored."""
        return self.outer * self.kept * self.rest * self.inner


def fft(types: Sequence[ArrayType], attrs: Attrs, target: Target = GENERIC) -> tuple[TritonSource, ...]:
    """Sources of a Fourier transform over the last dimensions."""
    (x,) = types
    found = passes(x, attrs["fft_type"], attrs["fft_lengths"])
    real = complex_views.PART.get(x.dtype, x.dtype)
    memory = _memory_size(found)
    sources = []
    for number, each in enumerate(found):
        # Passes between the first and the last one go from one half of the scratch memory to the other.
        source = ("x0", 0) if number == 0 else ("scratch", (number - 1) % 2 * 2 * memory)
        result = ("y0", 0) if number + 1 == len(found) else ("scratch", number % 2 * 2 * memory)
        sources.append(_write(each, real, source, result, target, f"pass {number + 1} of {len(found)}"))
    return tuple(sources)


def scratch_bytes(types: Sequence[ArrayType], attrs: Attrs) -> int:
    """Scratch memory that the sources use."""
    (x,) = types
    found = passes(x, attrs["fft_type"], attrs["fft_lengths"])
    real: np.dtype = complex_views.PART.get(x.dtype, x.dtype)
    return 0 if len(found) == 1 else 4 * _memory_size(found) * real.itemsize


def _memory_size(found: Sequence[Pass]) -> int:
    """Complex numbers of the largest array between two passes."""
    return max((each.size for each in found[:-1]), default=0)


def factors(length: int) -> list[int]:
    """Factors of a length, joined up to the radix; a length of 1 has the factor 1."""
    primes, left, candidate = [], length, 2
    while candidate * candidate <= left:
        while left % candidate == 0:
            primes.append(candidate)
            left //= candidate
        candidate += 1
    primes += [left] if left > 1 else []
    joined: list[int] = []
    for prime in reversed(primes):
        place = next((i for i, n in enumerate(joined) if n * prime <= _RADIX), None)
        if place is None:
            joined.append(prime)
        else:
            joined[place] *= prime
    return joined or [1]


def passes(x: ArrayType, fft_type: str, lengths: Sequence[int]) -> list[Pass]:
    """The passes of a transform."""
    first = x.ndim - len(lengths)
    half = lengths[-1] // 2 + 1
    shape = [*x.shape[:first], *lengths]
    is_inverse = fft_type in ("ifft", "irfft")
    others = range(first, x.ndim - 1)
    found: list[Pass] = []

    def along(axis: int, *, is_last: bool) -> None:
        is_half = not is_last and fft_type in ("rfft", "irfft")
        sizes = [*shape[:-1], half] if is_half else shape
        outer, inner = math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
        radices, length, before = factors(sizes[axis]), sizes[axis], 1
        for number, radix in enumerate(radices):
            ends = number + 1 == len(radices)
            cuts = is_last and ends and fft_type == "rfft"
            mirrors = is_last and number == 0 and fft_type == "irfft"
            found.append(
                Pass(
                    outer, length, inner, before, radix,
                    kept=half if cuts else before * radix,
                    stored=half if mirrors else length,
                    is_from_real=is_last and number == 0 and fft_type == "rfft",
                    is_to_real=is_last and ends and fft_type == "irfft",
                    is_inverse=is_inverse,
                )
            )  # fmt: skip
            before *= radix

    if fft_type == "irfft":
        for axis in others:
            along(axis, is_last=False)
        along(x.ndim - 1, is_last=True)
    else:
        along(x.ndim - 1, is_last=True)
        for axis in others:
            along(axis, is_last=False)
    if is_inverse:
        found[-1] = dataclasses.replace(found[-1], factor=1.0 / math.prod(lengths))
    return found


# --- the text -----------------------------------------------------------------------------------------


def _write(
    p: Pass, real: np.dtype, source: tuple[str, int], result: tuple[str, int], target: Target, number: str
) -> TritonSource:
    """The function of a pass."""
    text, name = FunctionText(target), language_name(real)
    modulus = p.before * p.radix
    text.line(f"i = pid * {_BLOCK} + tl.arange(0, {_BLOCK})")
    text.line(f"inside = i < {p.size}")
    text.note(f"frequency of {modulus} and element of {p.rest}, on the line of each result")
    faster = 1
    for variable, size in (
        ("column", p.inner),
        ("element", p.rest),
        ("frequency", p.kept),
        ("line", p.outer),
    ):
        if size > 1 or variable == "frequency":
            whole = f"i // {faster}" if faster > 1 else "i"
            text.line(f"{variable} = {whole} % {size}" if variable != "line" else f"{variable} = {whole}")
        faster *= size
    text.line(f"real = tl.zeros([{_BLOCK}], {name})")
    text.line(f"imaginary = tl.zeros([{_BLOCK}], {name})")
    with text.block(f"for k in range(0, {p.radix}):"):
        text.note(f"the number whose angle is k * frequency / {modulus} of a turn")
        text.line(f"turn = k * frequency % {modulus}")
        text.line(f"turn = tl.where(turn * 2 > {modulus}, turn - {modulus}, turn)")
        step = (2.0 if p.is_inverse else -2.0) * math.pi / modulus
        text.line(f"angle = turn.to({name}) * {scalar.number(step, real)}")
        text.line("cosine = tl.cos(angle)")
        text.line("sine = tl.sin(angle)")
        _write_load(text, p, source)
        text.line("real += a * cosine - b * sine" if not p.is_from_real else "real += a * cosine")
        text.line("imaginary += a * sine + b * cosine" if not p.is_from_real else "imaginary += a * sine")
    role, start = result
    factor = f" * {scalar.number(p.factor, real)}" if p.factor != 1.0 else ""
    place = f"{role} + {start}" if start else role
    if p.is_to_real:
        text.line(f"tl.store({place} + i, real{factor}, mask=inside)")
    else:
        text.line(f"tl.store({place} + 2 * i, real{factor}, mask=inside)")
        text.line(f"tl.store({place} + 2 * i + 1, imaginary{factor}, mask=inside)")
    read = p.outer * p.stored * p.inner * (1 if p.is_from_real else 2)
    written = p.size * (1 if p.is_to_real else 2)
    parameters = {source[0]: ArrayType((read,), real)}
    parameters[result[0]] = ArrayType((written,), real)
    about = [f"fft: {number}, factor {p.radix} of lines of {p.length}"]
    largest = max(start + written, source[1] + read, p.radix * modulus, 2 * p.length)
    return text.source(
        "fft_pass", list(parameters.items()), -(-p.size // _BLOCK), about=about, index=index_dtype(largest)
    )


def _write_load(text: FunctionText, p: Pass, source: tuple[str, int]) -> None:
    """Variables `a` and `b`: real and imaginary part of element k of those that a result is made of."""
    role, start = source
    terms = []
    if p.before > 1:
        terms.append(f"frequency % {p.before} * {p.length // p.before}")
    terms += ["element"] if p.rest > 1 else []
    terms.append(f"k * {p.rest}" if p.rest > 1 else "k")
    text.line(f"place = {' + '.join(terms)}")
    is_mirrored = p.stored < p.length
    if is_mirrored:
        text.note("the second half of a spectrum of real numbers is the mirror image of the first")
        text.line(f"is_mirrored = place >= {p.stored}")
        text.line(f"place = tl.where(is_mirrored, {p.length} - place, place)")
    at = f"(line * {p.stored} + place)" if p.outer > 1 else "place"
    at = f"{at} * {p.inner} + column" if p.inner > 1 else at
    pointer = f"{role} + {start}" if start else role
    is_block = p.rest > 1 or p.before > 1 or p.inner > 1 or p.outer > 1
    text.line(f"at = {at}" if is_block else f"at = {at} + 0 * i")
    if p.is_from_real:
        text.line(f"a = tl.load({pointer} + at, mask=inside, other=0.0)")
        return
    text.line(f"a = tl.load({pointer} + 2 * at, mask=inside, other=0.0)")
    text.line(f"b = tl.load({pointer} + 2 * at + 1, mask=inside, other=0.0)")
    if is_mirrored:
        text.line("b = tl.where(is_mirrored, -b, b)")
