"""Text to token ids and back, by a model's ``tokenizer.json``; without torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from workloads.errors import ModelRefused

__all__ = ["TextStream", "TextTokenizer"]

_FILE_BYTES_MAX = 64 << 20
# A UTF-8 character is spread over at most this many byte-level tokens.
_CHARACTER_BYTES_MAX = 4


class TextTokenizer:
    """The tokenizer of one model directory.

    Raises:
        ModelRefused: ``tokenizer.json`` is missing, too large or malformed.
    """

    def __init__(self, model_dir: Path) -> None:
        path = model_dir / "tokenizer.json"
        try:
            size = path.stat().st_size
            if size > _FILE_BYTES_MAX:
                raise ModelRefused(f"tokenizer.json of {size} bytes exceeds {_FILE_BYTES_MAX}")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelRefused(f"tokenizer.json cannot be read: {error}") from error
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise ModelRefused(f"tokenizer.json is malformed: {error}") from error

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of ``text``."""
        return tuple(self._tokenizer.encode(text).ids)

    def encode_many(self, texts: Sequence[str], tokens_max: int) -> list[tuple[int, ...]]:
        """Token ids of each text, as if it were alone; the end of a text that has more is cut off.

        What ``tokenizer.json`` says of cutting and filling up texts of a batch doesn't count.
        """
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(tokens_max)
        try:
            return [tuple(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts))]
        finally:
            self._tokenizer.no_truncation()

    def decode(self, units: Iterable[int]) -> str:
        """Text of token ids; bytes that are not UTF-8 show as U+FFFD."""
        return str(self._tokenizer.decode(list(units), skip_special_tokens=False))

    def stream(self) -> TextStream:
        """A decoder that is fed token ids as they come."""
        return TextStream(self)


class TextStream:
    """Turns arriving token ids into text, holding back a character until all its bytes are there."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def feed(self, units: Iterable[int]) -> str:
        """The text that ``units`` complete."""
        self._pending += units
        text = self._tokenizer.decode(self._pending)
        # A byte-level token may end inside a character, which decodes as U+FFFD until the next one arrives.
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._pending) < _CHARACTER_BYTES_MAX:
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        """What is held back, as it is."""
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        return text
