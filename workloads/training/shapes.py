"""What a training run trains: shapes of models and of what is added to them; readable without torch."""

from __future__ import annotations

from protocols.codec import Wire
from protocols.limits import UNITS_MAX
from workloads.errors import InputRefused

__all__ = ["Adapters", "ClassifierShape", "LlamaShape", "within"]

_WIDTH_MAX = 8_192
_VOCABULARY_MAX = 65_536
_RANK_MAX = 256
_MILLI = 1_000
_BYTE_VALUES = 256


def within(name: str, value: int, low: int, high: int) -> None:
    """Hold a field against its bounds, both included.

    Raises:
        InputRefused: it lies outside.
    """
    if not low <= value <= high:
        raise InputRefused(f"{name}={value} must be in [{low}, {high}]")


class ClassifierShape(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A multilayer perceptron with ReLUs.

    Args:
        widths: features, hidden layers and classes.
    """

    widths: tuple[int, ...]

    @property
    def record_bytes(self) -> int:
        """Bytes of one example: its features, then its class."""
        return self.widths[0] + 1

    @property
    def rows(self) -> int:
        """Rows that one example makes."""
        return 1

    @property
    def parameters(self) -> int:
        """Numbers to train."""
        pairs = zip(self.widths, self.widths[1:], strict=False)
        return sum((inputs + 1) * outputs for inputs, outputs in pairs)

    @property
    def mixing(self) -> int:
        """Multiply-adds between rows, for each row."""
        return 0

    @property
    def token_bytes(self) -> int:
        """Bytes of one number of the data."""
        return 1

    def check(self) -> None:
        """Hold every field against its rule.

        Raises:
            InputRefused: the first that breaks it.
        """
        if not 2 <= len(self.widths) <= 8:
            raise InputRefused(f"widths of {len(self.widths)} layers must be 2 to 8")
        for width in self.widths:
            within("widths", width, 1, UNITS_MAX)
        within("classes", self.widths[-1], 2, _BYTE_VALUES)


class LlamaShape(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A Llama-family decoder.

    Args:
        vocabulary: token ids lie below it. Up to 256 a token of the data is a byte, above it is two,
            little-endian.
        hidden: width of the stream.
        inner: width of the SwiGLU blocks.
        layers: of the decoder.
        heads: of queries, a multiple of ``key_value_heads``.
        key_value_heads: of keys and values.
        head_width: even.
        positions: tokens of one example that are predicted from.
        tied: the output matrix is the embedding.
        norm_epsilon_nano: in 1e-9, added to the mean of squares in norms.
        theta: of the rotary positions.
    """

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    positions: int
    tied: bool = True
    norm_epsilon_nano: int = 10_000
    theta: int = 10_000

    @property
    def record_bytes(self) -> int:
        """Bytes of one example: its tokens and the one after them."""
        return (self.positions + 1) * self.token_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of the data."""
        return 1 if self.vocabulary <= _BYTE_VALUES else 2

    @property
    def rows(self) -> int:
        """Rows that one example makes."""
        return self.positions

    @property
    def parameters(self) -> int:
        """Numbers to train."""
        attention = 2 * self.hidden * self.head_width * (self.heads + self.key_value_heads)
        layer = attention + 3 * self.hidden * self.inner + 2 * self.hidden
        tables = 1 if self.tied else 2
        return tables * self.vocabulary * self.hidden + self.layers * layer + self.hidden

    @property
    def mixing(self) -> int:
        """Multiply-adds between rows, for each row: scores, their softmax and their mix."""
        return self.layers * self.heads * self.positions * (2 * self.head_width + 32)

    def check(self) -> None:
        """Hold every field against its rule.

        Raises:
            InputRefused: the first that breaks it.
        """
        within("vocabulary", self.vocabulary, 2, _VOCABULARY_MAX)
        for name in ("hidden", "inner", "layers", "heads", "key_value_heads", "head_width"):
            within(name, getattr(self, name), 1, _WIDTH_MAX)
        within("positions", self.positions, 1, 1_024)
        within("norm_epsilon_nano", self.norm_epsilon_nano, 1, 10**7)
        within("theta", self.theta, 1, 10**9)
        if self.heads % self.key_value_heads:
            raise InputRefused(f"heads={self.heads} must be a multiple of {self.key_value_heads}")
        if self.head_width % 2:
            raise InputRefused(f"head_width={self.head_width} must be even")


class Adapters(Wire, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Low-rank additions to the projections of queries and values (LoRA; Hu et al., 2021).

    Args:
        rank: inner width of each.
        alpha_milli: their weight, times ``rank``, in thousandths.
    """

    rank: int
    alpha_milli: int

    def parameters(self, shape: LlamaShape) -> int:
        """Numbers to train beside a frozen model of this shape."""
        widths = 2 * shape.hidden + shape.head_width * (shape.heads + shape.key_value_heads)
        return shape.layers * self.rank * widths

    def check(self) -> None:
        """Hold every field against its rule.

        Raises:
            InputRefused: the first that breaks it.
        """
        within("rank", self.rank, 1, _RANK_MAX)
        within("alpha_milli", self.alpha_milli, 1, _RANK_MAX * _MILLI * 8)
