"""The loss of a run as a picture: lines in a frame, with values marked from the smallest to the largest."""

from __future__ import annotations

from collections.abc import Sequence

from workloads.png import png

__all__ = ["loss_curve"]

_WIDTH, _HEIGHT, _MARGIN = 640, 320, 44
_WHITE, _GREY, _BLUE, _BLACK = (255, 255, 255), (222, 222, 222), (31, 95, 180), (60, 60, 60)
_PALE = (168, 196, 228)
_GRID_LINES = 5
_DIGIT_WIDTH, _DIGIT_HEIGHT, _DIGIT_SCALE = 3, 5, 2
# Rows of three points each, from the top.
_GLYPHS = {
    "0": (7, 5, 5, 5, 7),
    "1": (2, 6, 2, 2, 7),
    "2": (7, 1, 7, 4, 7),
    "3": (7, 1, 7, 1, 7),
    "4": (5, 5, 7, 1, 1),
    "5": (7, 4, 7, 1, 7),
    "6": (7, 4, 7, 5, 7),
    "7": (7, 1, 1, 1, 1),
    "8": (7, 5, 7, 5, 7),
    "9": (7, 5, 7, 1, 7),
    ".": (0, 0, 0, 0, 2),
}


class _Canvas:
    def __init__(self) -> None:
        self.samples = bytearray(bytes(_WHITE) * (_WIDTH * _HEIGHT))

    def point(self, x: int, y: int, colour: tuple[int, int, int]) -> None:
        if 0 <= x < _WIDTH and 0 <= y < _HEIGHT:
            at = 3 * (y * _WIDTH + x)
            self.samples[at : at + 3] = bytes(colour)

    def line(self, start: tuple[int, int], stop: tuple[int, int], colour: tuple[int, int, int]) -> None:
        (x, y), (to_x, to_y) = start, stop
        steps = max(abs(to_x - x), abs(to_y - y), 1)
        for step in range(steps + 1):
            across = x + (to_x - x) * step // steps
            down = y + (to_y - y) * step // steps
            self.point(across, down, colour)
            self.point(across, down + 1, colour)

    def number(self, text: str, x: int, y: int) -> None:
        for character in text:
            for row, bits in enumerate(_GLYPHS[character]):
                for column in range(_DIGIT_WIDTH):
                    if bits >> (_DIGIT_WIDTH - 1 - column) & 1:
                        self._block(x + column * _DIGIT_SCALE, y + row * _DIGIT_SCALE)
            x += (_DIGIT_WIDTH + 1) * _DIGIT_SCALE

    def _block(self, x: int, y: int) -> None:
        for across in range(_DIGIT_SCALE):
            for down in range(_DIGIT_SCALE):
                self.point(x + across, y + down, _BLACK)


def loss_curve(curves: Sequence[Sequence[float]]) -> bytes:
    """A PNG of the loss over the steps; of several peers their mean, and each peer's paler behind it.

    Args:
        curves: the losses of each peer, as many of each, finite.
    """
    canvas = _Canvas()
    mean = [sum(losses) / len(losses) for losses in zip(*curves, strict=True)]
    numbers = [loss for curve in curves for loss in curve] or [0.0]
    low = min(numbers)
    span = (max(numbers) - low) or 1.0
    right, bottom = _WIDTH - _MARGIN // 2, _HEIGHT - _MARGIN // 2

    def down(loss: float) -> int:
        return bottom - round((loss - low) / span * (bottom - _MARGIN // 2))

    for line in range(_GRID_LINES):
        loss = low + span * line / (_GRID_LINES - 1)
        canvas.line((_MARGIN, down(loss)), (right, down(loss)), _GREY)
        canvas.number(f"{abs(loss):.3f}"[:5], 2, down(loss) - _DIGIT_HEIGHT)
    for curve, colour in [*((curve, _PALE) for curve in curves if len(curves) > 1), (mean, _BLUE)]:
        places = [
            (_MARGIN + (right - _MARGIN) * step // max(1, len(curve) - 1), down(loss))
            for step, loss in enumerate(curve)
        ]
        for start, stop in zip(places, places[1:] or places, strict=False):
            canvas.line(start, stop, colour)
    return png(_WIDTH, _HEIGHT, bytes(canvas.samples))
