"""Pictures in files, as samples that a classifier takes: decoded, cropped and resized by the client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from p2p_node.errors import UserError

__all__ = ["image_paths", "read_image"]

ENDINGS = (".png", ".jpg", ".jpeg")
PIXELS_MAX = 64 * 1024 * 1024
"""A file of a few kilobytes may claim to hold gigabytes of pixels."""


def image_paths(names: Iterable[str], folder: Path) -> list[Path]:
    """The files that are meant: a folder stands for all pictures in it, by name.

    Args:
        names: of files and folders.
        folder: that they are relative to.

    Raises:
        UserError: a folder can't be read, or has no pictures.
    """
    paths: list[Path] = []
    for name in names:
        path = folder / name
        if not path.is_dir():
            paths.append(path)
            continue
        inside = sorted(inner for inner in path.iterdir() if inner.suffix.lower() in ENDINGS)
        if not inside:
            raise UserError(f"{path}: must hold pictures called {', '.join(ENDINGS)}")
        paths += inside
    return paths


def read_image(path: Path, *, side: int, crop_permille: int) -> bytes:
    """The middle of a picture, resized.

    Args:
        path: of a PNG or JPEG file.
        side: pixels of the result's width and height.
        crop_permille: of the shorter side, how much is taken.

    Returns:
        Red, green and blue, a byte each, pixel by pixel, row by row.

    Raises:
        UserError: the file can't be read, isn't such a picture, or is too large.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise UserError(f"{path}: reading pictures takes Pillow: pip install 'p2p-node[images]'") from None
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            width, height = opened.size
            if width * height > PIXELS_MAX:
                raise UserError(f"{path}: {width} x {height} pixels must be at most {PIXELS_MAX}")
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError:
        raise UserError(f"{path}: must be a PNG or JPEG picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"can't read the picture {path}: {reason}") from error
    resized = upright.resize((side, side), Image.Resampling.BICUBIC, box=_middle(upright.size, crop_permille))
    return resized.tobytes()


def _middle(size: Sequence[int], crop_permille: int) -> tuple[float, float, float, float]:
    taken = min(size) * crop_permille / 1_000
    left, top = ((length - taken) / 2 for length in size)
    return left, top, left + taken, top + taken
