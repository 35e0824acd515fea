"""A model by content, so that one of its tensors can be shown without the rest.

A model's digest covers the hashes of its small files and the Merkle root over its tensors in the order of
their names. A `ParameterProof` leads from one tensor to the model's digest in a few hundred bytes. A
`Manifest` lists them all: from it and the small files follows which program a job is, so whoever judges a
dispute needs none of the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from msgspec import Meta

from protocols import merkle
from protocols.codec import Wire
from protocols.digest import tagged
from protocols.errors import Rejected
from protocols.limits import (
    MERKLE_DEPTH_MAX,
    MODEL_FILES_MAX,
    PARAMETER_NAME_BYTES_MAX,
    PARAMETERS_MAX,
)
from protocols.messages import Digest
from protocols.values import DIMENSIONS_MAX, value_bytes

__all__ = ["FileHash", "Manifest", "Parameter", "ParameterProof", "check_parameter", "model_digest"]


class FileHash(Wire, frozen=True):
    """Name and BLAKE3-256 of one small file of a model, e.g. ``config.json``."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    blake3: Digest


class Parameter(Wire, frozen=True):
    """One tensor of a model.

    Args:
        name: as the model's file has it.
        dtype: one of `protocols.values.ELEMENT_BYTES`.
        shape: its sizes.
        value: its `protocols.values.value_digest`.
    """

    name: Annotated[str, Meta(max_length=PARAMETER_NAME_BYTES_MAX)]
    dtype: Annotated[str, Meta(max_length=16)]
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**40)], ...], Meta(max_length=DIMENSIONS_MAX)]
    value: Digest

    @property
    def leaf(self) -> bytes:
        """The tensor's leaf in the model's tree.

        Raises:
            ValueError: as `protocols.values.value_bytes`.
        """
        value_bytes(self.dtype, self.shape)
        sizes = b"".join(size.to_bytes(8, "little") for size in self.shape)
        return tagged("p2p-node/parameter/1", self.name.encode(), self.dtype.encode(), sizes, self.value)


Files = Annotated[tuple[FileHash, ...], Meta(max_length=MODEL_FILES_MAX)]


class ParameterProof(Wire, frozen=True):
    """That a model has a tensor.

    Args:
        files: all small files of the model.
        parameter: the tensor.
        index: its place in the order of names.
        count: tensors of the model.
        path: siblings from the leaf to the root, bottom up.
    """

    files: Files
    parameter: Parameter
    index: Annotated[int, Meta(ge=0, lt=PARAMETERS_MAX)]
    count: Annotated[int, Meta(ge=1, le=PARAMETERS_MAX)]
    path: Annotated[tuple[Digest, ...], Meta(max_length=MERKLE_DEPTH_MAX)]


class Manifest(Wire, frozen=True):
    """A model's small files and its tensors, each in strictly rising order of their names' UTF-8."""

    files: Files
    parameters: Annotated[tuple[Parameter, ...], Meta(min_length=1, max_length=PARAMETERS_MAX)]

    @property
    def root(self) -> bytes:
        """The Merkle root over the tensors.

        Raises:
            ValueError: names are out of order, or a dtype or shape breaks a rule.
        """
        return merkle.root(self._leaves())

    @property
    def digest(self) -> bytes:
        """The 32 bytes by which a job names the model.

        Raises:
            ValueError: as `root`.
        """
        return model_digest(self.files, self.root)

    def prove(self, name: str) -> ParameterProof:
        """The proof that the model has a tensor of this name, with the value it has.

        Raises:
            KeyError: it has none.
        """
        places = {parameter.name: index for index, parameter in enumerate(self.parameters)}
        index = places[name]
        path = merkle.prove(self._leaves(), index)
        return ParameterProof(self.files, self.parameters[index], index, len(self.parameters), path)

    def check(self, model: bytes) -> None:
        """See that it is the manifest of ``model``.

        Raises:
            Rejected: it is another model's, or breaks a rule.
        """
        try:
            digest = self.digest
        except ValueError as error:
            raise Rejected(f"manifest: {error}") from error
        if digest != model:
            raise Rejected(f"the manifest is of model {digest.hex()}, must be {model.hex()}")

    def _leaves(self) -> list[bytes]:
        _check_rising([parameter.name for parameter in self.parameters])
        _check_rising([file.name for file in self.files])
        return [parameter.leaf for parameter in self.parameters]


def model_digest(files: Sequence[FileHash], root: bytes) -> bytes:
    """The 32 bytes by which a job names a model.

    Args:
        files: in the order of their names.
        root: over its tensors.
    """
    parts: list[bytes] = []
    for file in files:
        parts += (file.name.encode(), file.blake3)
    return tagged("p2p-node/model/2", *parts, root)


def check_parameter(model: bytes, proof: ParameterProof) -> Parameter:
    """The tensor that ``model`` has according to the proof.

    Raises:
        Rejected: the proof leads to another model.
    """
    try:
        leaf = proof.parameter.leaf
    except ValueError as error:
        raise Rejected(f"parameter {proof.parameter.name!r}: {error}") from error
    root = merkle.reached(leaf=leaf, index=proof.index, count=proof.count, proof=proof.path)
    if root is None or model_digest(proof.files, root) != model:
        raise Rejected(f"parameter {proof.parameter.name!r} isn't proved of model {model.hex()}")
    return proof.parameter


def _check_rising(names: Sequence[str]) -> None:
    for before, after in pairwise(name.encode() for name in names):
        if before >= after:
            raise ValueError(f"names must strictly rise, got {after!r} after {before!r}")
