"""JSON letter by letter: whether a text is still the beginning of one value, in constant work per letter.

A model's tool call arrives in pieces, and arguments are passed on before they end. So a scanner has to say of
each letter whether it can stand there, which no parser of whole texts does.
"""

from __future__ import annotations

from typing import Final

_SPACE: Final = frozenset(" \t\n\r")
_DIGITS: Final = frozenset("0123456789")
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_ESCAPES: Final = frozenset('"\\/bfnrt')
_WORDS: Final = {"t": "rue", "f": "alse", "n": "ull"}
MAX_DEPTH: Final = 64


class Scanner:
    """Reads one value. `push` says whether a letter can stand there; after a letter that cannot, it is over.

    Attributes:
        is_done: whether the value has ended. A number has ended only with the letter after it, so a number
            alone is never done.
        depth: number of objects and arrays that are open.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.depth = 0
        self._open: list[str] = []
        self._state = "value"
        self._rest = ""  # of a word such as `true`, or digits of \u0041 still to come

    @property
    def is_in_string(self) -> bool:
        """Whether the next letter stands in a string."""
        return self._state in ("string", "escape", "unicode")

    def push(self, letter: str) -> bool:
        """Whether a letter can stand here."""
        if self.is_done:
            return letter in _SPACE
        return getattr(self, "_" + self._state)(letter)

    def _value(self, letter: str) -> bool:
        if letter in _SPACE:
            return True
        if letter in "{[":
            if len(self._open) == MAX_DEPTH:
                return False
            self._open.append(letter)
            self.depth += 1
            self._state = "first_key" if letter == "{" else "first_item"
        elif letter == '"':
            self._is_key = False
            self._state = "string"
        elif letter in _WORDS:
            self._state, self._rest = "word", _WORDS[letter]
        elif letter == "-":
            self._state = "sign"
        elif letter in _DIGITS:
            self._state = "zero" if letter == "0" else "digits"
        else:
            return False
        return True

    def _first_item(self, letter: str) -> bool:
        return self._close() if letter == "]" else self._as_value(letter)

    def _as_value(self, letter: str) -> bool:
        if letter in _SPACE:
            return True
        self._state = "value"
        return self._value(letter)

    def _first_key(self, letter: str) -> bool:
        return self._close() if letter == "}" else self._key(letter)

    def _key(self, letter: str) -> bool:
        if letter == '"':
            self._is_key = True
            self._state = "string"
            return True
        return letter in _SPACE

    def _colon(self, letter: str) -> bool:
        if letter == ":":
            self._state = "value"
            return True
        return letter in _SPACE

    def _string(self, letter: str) -> bool:
        if letter == "\\":
            self._state = "escape"
        elif letter == '"':
            if self._is_key:
                self._state = "colon"
            else:
                self._end()
        return letter >= " "

    def _escape(self, letter: str) -> bool:
        if letter == "u":
            self._state, self._rest = "unicode", "0000"
            return True
        self._state = "string"
        return letter in _ESCAPES

    def _unicode(self, letter: str) -> bool:
        self._rest = self._rest[1:]
        if not self._rest:
            self._state = "string"
        return letter in _HEX

    def _word(self, letter: str) -> bool:
        if letter != self._rest[0]:
            return False
        self._rest = self._rest[1:]
        if not self._rest:
            self._end()
        return True

    def _sign(self, letter: str) -> bool:
        self._state = "zero" if letter == "0" else "digits"
        return letter in _DIGITS

    def _zero(self, letter: str) -> bool:
        return self._after_integer(letter)

    def _digits(self, letter: str) -> bool:
        return letter in _DIGITS or self._after_integer(letter)

    def _after_integer(self, letter: str) -> bool:
        if letter == ".":
            self._state = "point"
            return True
        return self._after_fraction(letter)

    def _point(self, letter: str) -> bool:
        self._state = "fraction"
        return letter in _DIGITS

    def _fraction(self, letter: str) -> bool:
        return letter in _DIGITS or self._after_fraction(letter)

    def _after_fraction(self, letter: str) -> bool:
        if letter in "eE":
            self._state = "exponent_sign"
            return True
        return self._after_number(letter)

    def _exponent_sign(self, letter: str) -> bool:
        self._state = "exponent_first" if letter in "+-" else "exponent"
        return letter in _DIGITS or letter in "+-"

    def _exponent_first(self, letter: str) -> bool:
        self._state = "exponent"
        return letter in _DIGITS

    def _exponent(self, letter: str) -> bool:
        return letter in _DIGITS or self._after_number(letter)

    def _after_number(self, letter: str) -> bool:
        """A number ends with what follows it."""
        self._end()
        return (not self.is_done and self._after(letter)) or (self.is_done and letter in _SPACE)

    def _after(self, letter: str) -> bool:
        if letter in _SPACE:
            return True
        inner = self._open[-1]
        if letter == ",":
            self._state = "key" if inner == "{" else "value"
            return True
        if letter == ("}" if inner == "{" else "]"):
            return self._close()
        return False

    def _close(self) -> bool:
        self._open.pop()
        self.depth -= 1
        self._end()
        return True

    def _end(self) -> None:
        """A value has ended."""
        self._state = "after"
        self.is_done = not self._open
