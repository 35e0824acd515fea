"""The bytes that each token of a model stands for, straight from its ``tokenizer.json``.

Whether an output has come to a stop text must be decided alike by everybody who checks it. So that isn't left
to a library's decoder, which may hold text back or change it between releases: tokens are bytes, the output
is these bytes one after another, and a stop text is looked for in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from workloads.errors import ModelRefused

__all__ = ["TokenBytes"]

_WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """What each token of a tokenizer adds to an output.

    Two families are known: byte-level vocabularies, whose symbols each stand for a byte, and SentencePiece's,
    which write a space as U+2581 and a byte as ``<0x0A>``.

    Args:
        content: of ``tokenizer.json``.

    Raises:
        ModelRefused: it is malformed, or its decoder is of neither family.
    """

    def __init__(self, content: bytes) -> None:
        try:
            fields = json.loads(content)
            kinds = set(_decoders(fields.get("decoder")))
            vocabulary = fields["model"]["vocab"]
            if not isinstance(vocabulary, Mapping):
                vocabulary = {piece: token for token, (piece, *_) in enumerate(vocabulary)}
            added = {entry["id"]: entry["content"].encode() for entry in fields.get("added_tokens") or ()}
            if "ByteLevel" in kinds:
                symbols = _byte_symbols()
                table = {
                    token: bytes(symbols[symbol] for symbol in piece if symbol in symbols)
                    for piece, token in vocabulary.items()
                }
            elif kinds & {"Metaspace", "ByteFallback"}:
                table = {token: _sentence_piece(piece) for piece, token in vocabulary.items()}
            else:
                raise ModelRefused(
                    f"stop texts need a byte-level or SentencePiece tokenizer, got {sorted(kinds)}"
                )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelRefused(f"tokenizer.json is malformed: {type(error).__name__}: {error}") from error
        self._table: dict[int, bytes] = table | added

    def of(self, token: int) -> bytes:
        """The bytes of a token; none for one that isn't in the vocabulary."""
        return self._table.get(token, b"")


def _decoders(fields: Any) -> Iterator[str]:
    if fields:
        yield fields["type"]
        for inner in fields.get("decoders") or ():
            yield from _decoders(inner)


def _sentence_piece(piece: str) -> bytes:
    found = _BYTE.fullmatch(piece)
    return bytes.fromhex(found[1]) if found else piece.replace(_WORD_START, " ").encode()


def _byte_symbols() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes of Latin-1 as they are, the others from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }
