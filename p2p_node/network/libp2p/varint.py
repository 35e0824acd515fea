"""Cutting a byte stream at unsigned LEB128 length prefixes, as gossipsub frames its RPCs."""

from __future__ import annotations

from protocols.errors import Malformed, Oversized

__all__ = ["VarintSplitter"]

_PREFIX_BYTES_MAX = 5


class VarintSplitter:
    """Cuts a stream into length-prefixed pieces. Upstream reads the prefix byte by byte, a lock each."""

    def __init__(self, piece_bytes_max: int) -> None:
        self._piece_bytes_max = piece_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was read; the pieces it completes.

        Raises:
            Oversized: a piece is announced that exceeds the bound.
            Malformed: a length prefix longer than five bytes.
        """
        buffer = self._buffer
        buffer += data
        pieces = []
        start = 0
        while True:
            size = shift = 0
            position = start
            while position < len(buffer):
                byte = buffer[position]
                position += 1
                size |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
                if position - start >= _PREFIX_BYTES_MAX:
                    raise Malformed(f"length prefix exceeds {_PREFIX_BYTES_MAX} bytes")
            else:
                break
            if size > self._piece_bytes_max:
                raise Oversized(f"piece of {size} bytes exceeds {self._piece_bytes_max}")
            if len(buffer) < position + size:
                break
            pieces.append(bytes(memoryview(buffer)[position : position + size]))
            start = position + size
        if start:
            del buffer[:start]
        return pieces
