"""The layers of `workloads.llama.exact_model` in one call of the compiled kernels, with the same bits.

A decode step of a small model spends most of its time between array operations; one of a large model moves
its weights through the processor, here as 16-bit digits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads.exact.kernels import Kernels
from workloads.exact.kernels.library import MatrixStruct, Panels, aligned_zeros
from workloads.exact.quantise import Float64
from workloads.llama.config import LlamaConfig
from workloads.llama.spans import Lengths, Span

__all__ = ["FusedCache", "FusedLayers", "LayerPanels"]


class LayerPanels(NamedTuple):
    """The projections of one layer, gains multiplied in."""

    query_key_value: Panels
    output: Panels
    gate_up: Panels
    down: Panels


class _LayerStruct(ctypes.Structure):
    _fields_ = (
        *((name, MatrixStruct) for name in LayerPanels._fields),
        *((name, ctypes.c_void_p) for name in ("key_high", "key_low", "value_high", "value_low")),
        *((name, ctypes.c_void_p) for name in ("key_grains", "value_grains")),
    )


class _DecoderStruct(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("bits", "layers", "hidden", "intermediate")),
        *((name, ctypes.c_int64) for name in ("query_heads", "key_heads", "head_dim")),
        *((name, ctypes.c_double) for name in ("epsilon", "query_scale")),
        *((name, ctypes.c_void_p) for name in ("gain", "layer")),
    )


class _PassStruct(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("spans", "rows", "capacity")),
        *((name, ctypes.c_void_p) for name in ("span", "stream", "cosines", "sines", "result")),
    )


class FusedCache(Lengths):
    """Keys and values of all layers as digits, in the layout that the kernels multiply.

    Args:
        config: the model's shape.
        batch: sequences.
        capacity: positions.
        bits: magnitude bits of the profile.
        columns: `Kernels.columns`.
    """

    def __init__(self, config: LlamaConfig, batch: int, capacity: int, bits: int, columns: int) -> None:
        # Whole panels of keys, and so whole pairs of values.
        super().__init__(batch, -(-max(capacity, 1) // columns) * columns)
        heads = batch * config.num_key_value_heads
        key_digits = heads * self.capacity * config.head_dim
        value_digits = heads * self.capacity * (-(-config.head_dim // columns) * columns)
        digits = 1 if bits == 13 else 2
        self.layers = [
            (
                [aligned_zeros(key_digits) for _ in range(digits)],
                [aligned_zeros(value_digits) for _ in range(digits)],
                np.zeros((2, heads * self.capacity)),
            )
            for _ in range(config.num_hidden_layers)
        ]


class FusedLayers:
    """All layers and the final norm of a decoder.

    Args:
        kernels: that run them.
        config: the model's shape.
        layers: their projections, of one profile.
        gain: of the final norm, (hidden,).
        query_scale: what queries are multiplied by.
    """

    def __init__(
        self,
        kernels: Kernels,
        config: LlamaConfig,
        layers: Sequence[LayerPanels],
        gain: Float64,
        query_scale: float,
    ) -> None:
        self._kernels = kernels
        self._config = config
        self._panels = layers
        self._gain = gain
        self.bits = layers[0].output.bits
        # Ours, because a cache puts its arrays into it.
        self._layers = (_LayerStruct * len(layers))()
        for struct, panels in zip(self._layers, layers, strict=True):
            for name in LayerPanels._fields:
                setattr(struct, name, getattr(panels, name).struct)
        self._decoder = _DecoderStruct(
            self.bits,
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rms_norm_eps,
            query_scale,
            gain.ctypes.data,
            ctypes.addressof(self._layers),
        )
        self._cache: FusedCache | None = None

    def new_cache(self, batch: int, capacity: int) -> FusedCache:
        """An empty cache."""
        return FusedCache(self._config, batch, capacity, self.bits, self._kernels.columns)

    def run(
        self, stream: Float64, cosines: Float64, sines: Float64, spans: Sequence[Span], cache: FusedCache
    ) -> tuple[NDArray[np.float32], int]:
        """Final hidden states of embeddings that follow what the cache holds.

        Args:
            stream: (rows, hidden), contiguous: of all spans, one after another; overwritten.
            cosines: (rows, head_dim / 2), contiguous.
            sines: the same.
            spans: what the rows are.
            cache: extended in place.

        Returns:
            (rows, hidden), and 0 or one more than the number of the norm that a row out of range entered: two
            for each layer and the final one.

        Raises:
            ValueError: as `Lengths.check`.
        """
        cache.check(spans)
        result = np.empty(stream.shape, dtype=np.float32)
        if not spans:
            return result, 0
        self._attach(cache)
        places = np.array(
            [(sequence, cache.lengths[sequence], len(tokens)) for sequence, tokens in spans], dtype=np.int64
        )
        run = _PassStruct(
            len(spans),
            len(stream),
            cache.capacity,
            places.ctypes.data,
            stream.ctypes.data,
            cosines.ctypes.data,
            sines.ctypes.data,
            result.ctypes.data,
        )
        status = self._kernels.forward(self._decoder, run)
        if status == 0:
            cache.extend(spans)
        return result, status

    def _attach(self, cache: FusedCache) -> None:
        if self._cache is cache:
            return
        for struct, (keys, values, grains) in zip(self._layers, cache.layers, strict=True):
            struct.key_high, struct.value_high = keys[0].ctypes.data, values[0].ctypes.data
            struct.key_low, struct.value_low = keys[-1].ctypes.data, values[-1].ctypes.data
            struct.key_grains, struct.value_grains = grains[0].ctypes.data, grains[1].ctypes.data
        # Kept, so that no other array comes to lie where the kernels still point.
        self._cache = cache
