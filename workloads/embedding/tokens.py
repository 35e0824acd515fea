"""Tokens of many texts as one run of bytes: 32-bit words, little-endian, without torch.

First the number of texts, then where each one's tokens end, then all tokens. So a few texts out of many are
read without the rest, and the same texts are the same bytes whoever packs them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

from workloads.errors import InputRefused

__all__ = ["BYTES_MAX", "TEXTS_MAX", "TokenLists", "pack"]

TEXTS_MAX = 1 << 20
BYTES_MAX = 256 << 20
_WORD_BYTES = 4
_WORD_MAX = 2**32 - 1


def pack(lists: Sequence[Sequence[int]]) -> bytes:
    """The bytes of some texts' tokens.

    Raises:
        InputRefused: there are none or too many, or a token isn't a 32-bit word.
    """
    if not 1 <= len(lists) <= TEXTS_MAX:
        raise InputRefused(f"{len(lists)} texts must be 1 to {TEXTS_MAX}")
    ends, total = [], 0
    for tokens in lists:
        total += len(tokens)
        ends.append(total)
    words = [len(lists), *ends, *(token for tokens in lists for token in tokens)]
    if len(words) * _WORD_BYTES > BYTES_MAX:
        raise InputRefused(f"texts of {total} tokens must take at most {BYTES_MAX} bytes")
    if not all(0 <= word <= _WORD_MAX for word in words):
        raise InputRefused(f"tokens must be in [0, {_WORD_MAX}]")
    return struct.pack(f"<{len(words)}I", *words)


class TokenLists:
    """Some texts' tokens, read from the bytes of `pack` as they are asked for.

    Raises:
        InputRefused: the bytes aren't what `pack` makes.
    """

    def __init__(self, data: bytes) -> None:
        words = len(data) // _WORD_BYTES
        count = int.from_bytes(data[:_WORD_BYTES], "little")
        if len(data) % _WORD_BYTES or not 1 <= count <= min(TEXTS_MAX, max(words - 1, 0)):
            raise InputRefused(f"{len(data)} bytes don't hold the tokens of {count} texts")
        ends = struct.unpack_from(f"<{count}I", data, _WORD_BYTES)
        if any(left > right for left, right in pairwise(ends)) or ends[-1] != words - 1 - count:
            raise InputRefused(f"tokens of {count} texts must end in order, the last at {words - 1 - count}")
        self._data = data
        self._starts = (0, *ends)

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self._starts) - 1

    def __getitem__(self, text: int) -> tuple[int, ...]:
        """The tokens of one text."""
        start, stop = self._starts[text : text + 2]
        return struct.unpack_from(f"<{stop - start}I", self._data, (1 + len(self) + start) * _WORD_BYTES)
