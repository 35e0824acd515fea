"""A report of the simulator as a picture: four panels of bars, with their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workloads.png import png

__all__ = ["draw"]

WIDTH, HEIGHT = 960, 640
_PANEL_WIDTH, _PANEL_HEIGHT, _MARGIN = WIDTH // 2, HEIGHT // 2, 28
_BARS_MAX = 30
_SCALE = 2
_WHITE, _GREY, _BLACK = (255, 255, 255), (222, 222, 222), (50, 50, 50)
_BLUE, _GREEN, _RED, _PALE = (31, 95, 180), (44, 140, 80), (190, 50, 40), (170, 200, 235)
# Letters of five rows of three points; each row's bits from the left.
_ROWS = (
    "75557 26227 71747 71717 55711 74717 74757 71111 75757 75717 25755 65656 34443 65556 74647 74644 "
    "34553 55755 72227 11152 55655 44447 57755 65555 25552 65644 25531 65655 34216 72222 55557 55552 "
    "55775 55255 55222 71247 00002 00022 51245 00700 11244 02020"
)
_GLYPHS = dict(zip("0123456789abcdefghijklmnopqrstuvwxyz.,%-/:", _ROWS.split(), strict=True))


class _Canvas:
    def __init__(self) -> None:
        self.samples = bytearray(bytes(_WHITE) * (WIDTH * HEIGHT))

    def box(self, x: int, y: int, width: int, height: int, colour: tuple[int, int, int]) -> None:
        first, last = max(0, x), min(WIDTH, x + width)
        row = bytes(colour) * max(0, last - first)
        for line in range(max(0, y), min(HEIGHT, y + height)):
            at = 3 * (line * WIDTH + first)
            self.samples[at : at + len(row)] = row

    def text(self, words: str, x: int, y: int) -> None:
        for letter in words.lower():
            for line, digit in enumerate(_GLYPHS.get(letter, "00000")):
                for column in range(3):
                    if int(digit) >> (2 - column) & 1:
                        self.box(x + _SCALE * column, y + _SCALE * line, _SCALE, _SCALE, _BLACK)
            x += 4 * _SCALE


class _Panel:
    """One quarter of the picture."""

    def __init__(self, canvas: _Canvas, number: int, title: str) -> None:
        self._canvas = canvas
        self._left = (number % 2) * _PANEL_WIDTH + _MARGIN
        self._top = (number // 2) * _PANEL_HEIGHT + _MARGIN
        self._width, self._height = _PANEL_WIDTH - 2 * _MARGIN, _PANEL_HEIGHT - 2 * _MARGIN
        canvas.text(title, self._left, self._top - 18)
        canvas.box(self._left, self._top + self._height, self._width, 2, _GREY)

    def bars(self, bars: Sequence[tuple[str, int, tuple[int, int, int]]], *, most: int = 0) -> None:
        """Bars side by side, as high as their values are to the largest, with name and value."""
        most = max(1, most, *(value for _, value, _ in bars)) if bars else 1
        step = self._width // max(1, len(bars))
        bottom = self._top + self._height
        for place, (name, value, colour) in enumerate(bars):
            x, height = self._left + place * step, (self._height - 16) * value // most
            self._canvas.box(x, bottom - height, max(2, step * 4 // 5), height, colour)
            letters = max(1, step // (4 * _SCALE))
            if letters >= 3:
                self._canvas.text(_short(value)[:letters], x, bottom - height - 14)
                self._canvas.text(name[: letters - 1], x, bottom + 6)

    def pairs(self, rows: Sequence[tuple[int, int]]) -> None:
        """For each place, a part of a whole."""
        most = max((whole for whole, _ in rows), default=1) or 1
        step = self._width // max(1, len(rows))
        bottom = self._top + self._height
        for place, (whole, part) in enumerate(rows):
            x, width = self._left + place * step, max(2, step * 4 // 5)
            for value, colour in ((whole, _RED), (part, _GREEN)):
                height = (self._height - 16) * value // most
                self._canvas.box(x, bottom - height, width, height, colour)
        self._canvas.text(_short(most), self._left, self._top - 4)


def _short(value: int) -> str:
    """At most four letters."""
    for unit, size in (("g", 10**9), ("m", 10**6), ("k", 10**3)):
        if value >= size:
            tenths = 10 * value // size
            return f"{tenths // 10}{unit}" if tenths >= 100 else f"{tenths // 10}.{tenths % 10}{unit}"
    return str(value)


def draw(report: dict[str, Any]) -> bytes:
    """A PNG of 960 by 640: jobs by minute, times to a result, traffic, earnings.

    Args:
        report: as `p2p_node.sim.play.Play.report` gives it.
    """
    canvas = _Canvas()
    minutes = report["by_minute"]
    each = -(-len(minutes) // _BARS_MAX) or 1
    groups = [minutes[first : first + each] for first in range(0, len(minutes), each)]
    done = _Panel(canvas, 0, "jobs by minute: verified of submitted")
    done.pairs([(sum(row[1] for row in group), sum(row[2] for row in group)) for group in groups])
    times = _Panel(canvas, 1, "ms to result: p50 p95 p99")
    times.bars(
        [
            (kind, row["result"][rank], colour)
            for kind, row in report["times_ms"].items()
            for rank, colour in (("p50", _BLUE), ("p95", _PALE), ("p99", _GREY))
        ]
    )
    traffic, peers = report["traffic"], report["peers"]
    jobs = max(1, report["jobs"]["submitted"])
    bytes_each = _Panel(canvas, 2, "bytes per peer and job: direct, gossip")
    bytes_each.bars(
        [
            ("direct", traffic["frame_bytes"] // (peers * jobs), _BLUE),
            ("gossip", traffic["gossip_bytes"] // (peers * jobs), _PALE),
        ]
    )
    earned = _Panel(canvas, 3, "micros earned per peer")
    earned.bars(
        [
            (group, row["mean_micros"], _GREEN if group == "honest" else _RED)
            for group, row in report["earnings"].items()
        ]
    )
    return png(WIDTH, HEIGHT, bytes(canvas.samples))
