"""A model by content, so that one of its tensors can be shown without the rest.

A model's digest covers the hashes of its small files and the Merkle root over its tensors in the order of
their names. A `ParameterProof` leads from one tensor's value digest to the model's digest in a few hundred
bytes; whoever judges a dispute needs neither the model nor its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from msgspec import Meta

from protocols import merkle
from protocols.codec import Wire
from protocols.digest import tagged
from protocols.errors import Rejected
from protocols.limits import MERKLE_DEPTH_MAX, MODEL_FILES_MAX, PARAMETER_NAME_BYTES_MAX, PARAMETERS_MAX
from protocols.messages import Digest

__all__ = [
    "FileHash",
    "Parameter",
    "ParameterProof",
    "check_files",
    "check_parameter",
    "model_digest",
    "parameter_leaf",
    "parameter_root",
    "prove_parameter",
]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a model.

    Args:
        name: as the model's file has it.
        dtype: one of `protocols.values.ELEMENT_BYTES`.
        shape: its sizes.
        value: its `protocols.values.value_digest`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: bytes


class FileHash(Wire, frozen=True):
    """Name and BLAKE3-256 of one small file of a model, e.g. ``config.json``."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    blake3: Digest


class ParameterProof(Wire, frozen=True):
    """That a model has a tensor of this name and value.

    Args:
        files: all small files of the model, by name.
        name: the tensor's.
        value: its value digest, which fixes dtype and shape too.
        index: of the tensor, in the order of names.
        count: tensors of the model.
        path: siblings from the leaf to the root, bottom up.
    """

    files: Annotated[tuple[FileHash, ...], Meta(min_length=1, max_length=MODEL_FILES_MAX)]
    name: Annotated[str, Meta(max_length=PARAMETER_NAME_BYTES_MAX)]
    value: Digest
    index: Annotated[int, Meta(ge=0, lt=PARAMETERS_MAX)]
    count: Annotated[int, Meta(ge=1, le=PARAMETERS_MAX)]
    path: Annotated[tuple[Digest, ...], Meta(max_length=MERKLE_DEPTH_MAX)]


def parameter_leaf(name: str, value: bytes) -> bytes:
    """The leaf of a tensor with this name and value digest."""
    return tagged("p2p-node/parameter/1", name.encode(), value)


def parameter_root(parameters: Sequence[Parameter]) -> bytes:
    """The root over a model's tensors.

    Args:
        parameters: in strictly rising order of their names' UTF-8, at least one.

    Raises:
        ValueError: another order, a name twice, none or more than `PARAMETERS_MAX`.
    """
    return merkle.root(_leaves(parameters))


def model_digest(files: Sequence[FileHash], root: bytes) -> bytes:
    """The 32 bytes by which a job names a model.

    Args:
        files: in the order of their names.
        root: `parameter_root`.
    """
    parts: list[bytes] = []
    for file in files:
        parts += (file.name.encode(), file.blake3)
    return tagged("p2p-node/model/2", *parts, root)


def prove_parameter(files: Sequence[FileHash], parameters: Sequence[Parameter], name: str) -> ParameterProof:
    """The proof of the tensor called ``name``.

    Args:
        files: as for `model_digest`.
        parameters: as for `parameter_root`.
        name: of one of them.

    Raises:
        KeyError: the model has no such tensor.
        ValueError: as `parameter_root`.
    """
    places = {parameter.name: index for index, parameter in enumerate(parameters)}
    index = places[name]
    path = merkle.prove(_leaves(parameters), index)
    return ParameterProof(tuple(files), name, parameters[index].value, index, len(parameters), path)


def check_parameter(model: bytes, proof: ParameterProof) -> None:
    """See that ``model`` has the tensor that the proof names, with the value digest that it states.

    Raises:
        Rejected: the proof leads elsewhere.
    """
    root = merkle.reached(
        leaf=parameter_leaf(proof.name, proof.value), index=proof.index, count=proof.count, proof=proof.path
    )
    if root is None or model_digest(proof.files, root) != model:
        raise Rejected(f"parameter {proof.name!r} isn't proved of model {model.hex()}")


def check_files(model: bytes, files: Sequence[FileHash], root: bytes) -> None:
    """See that ``model`` has these small files; their contents decide which program a job is.

    Raises:
        Rejected: it has others.
    """
    if model_digest(files, root) != model:
        raise Rejected(f"the files aren't those of model {model.hex()}")


def _leaves(parameters: Sequence[Parameter]) -> list[bytes]:
    if not 1 <= len(parameters) <= PARAMETERS_MAX:
        raise ValueError(f"a model has 1..{PARAMETERS_MAX} tensors, got {len(parameters)}")
    names = [parameter.name.encode() for parameter in parameters]
    for before, after in pairwise(names):
        if before >= after:
            raise ValueError(
                f"tensors must be in strictly rising order of names, got {after!r} after {before!r}"
            )
    return [parameter_leaf(parameter.name, parameter.value) for parameter in parameters]
