"""What is fuzzed: every decoder of strangers' or users' bytes, and the machines behind them.

A target takes any bytes. It may refuse them by one of its own errors, or pass; all else that escapes is a
bug. Decoders that have an encoder are held to it: what they accept is the one encoding of what they read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from p2p_node.batchfiles import pack_items, read_items, unpack_items
from p2p_node.config import load_config
from p2p_node.errors import UserError
from p2p_node.frauds import FraudRefused
from p2p_node.frauds import read_file as read_fraud
from p2p_node.imagefiles import read_image
from p2p_node.jobspec import parse_job_spec
from p2p_node.keystore import load as load_key
from p2p_node.modelmanifest import read_manifest
from p2p_node.network.frames import FrameSplitter, read_control
from p2p_node.network.libp2p.mdns import from_text
from p2p_node.network.libp2p.varint import VarintSplitter
from p2p_node.receipts import check_file
from p2p_node.sim.scenariofile import load_scenario
from p2p_node.yamltree import Fault
from protocols.blobs import parse_blob_name, read_blob_message
from protocols.codec import decode, encode
from protocols.crypto import Crypto
from protocols.envelope import open_envelope
from protocols.errors import PeerFault
from protocols.messages import KINDS
from tests.fuzzing import directories, machines
from verification.receipt import ReceiptError
from workloads.errors import WorkloadRefused
from workloads.frames import Command, Event, FrameReader, MalformedFrame
from workloads.lm.logprobs import read_logprobs
from workloads.program.archive import read_archive
from workloads.program.onnx.model import read_model as read_onnx
from workloads.program.program import decode_program
from workloads.registry import KINDS as WORKLOADS
from workloads.render.files import read_surfaces
from workloads.render.mesh import decode_mesh, encode_mesh
from workloads.speech.audio import read_wav
from workloads.tensorfile import hash_tensors

__all__ = ["TARGETS", "Target"]

_VECTORS = Path(__file__).parents[1] / "vectors"


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to fuzz.

    Args:
        run: takes the bytes.
        refusals: errors by which it may refuse them.
        seeds: inputs to begin with, made on demand.
        bytes_max: the longest input worth trying.
    """

    run: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    seeds: Callable[[], Iterator[bytes]] = lambda: iter(())
    bytes_max: int = 4_096


class _Credulous(Crypto):
    """Takes every signature for good, so that what lies behind signatures is reached."""

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        return True

    def vrf_output(self, key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
        return proof[:1] * 64 if proof else None


_CREDULOUS = _Credulous()


# --- The wire ----------------------------------------------------------------------------------


def _envelope(data: bytes) -> None:
    signed = open_envelope(data, network="vectors", crypto=_CREDULOUS)
    assert encode(signed.body) in data


def _envelopes() -> Iterator[bytes]:
    from tests.vectors.examples import examples

    for _, signed in examples().values():
        yield signed.raw


_BODIES = sorted(KINDS.items())


def _body(data: bytes) -> None:
    if data:
        _, kind = _BODIES[data[0] % len(_BODIES)]
        assert encode(decode(data[1:], kind)) == data[1:]


def _bodies() -> Iterator[bytes]:
    from tests.vectors.examples import examples

    numbers = {kind: number for number, (_, kind) in enumerate(_BODIES)}
    for _, signed in examples().values():
        yield bytes([numbers[type(signed.body)]]) + encode(signed.body)


def _frames(data: bytes) -> None:
    """Cut anywhere, the same frames come out; the first byte says where it is cut."""
    if not data:
        return
    cut, stream = data[0], data[1:]
    splitter = FrameSplitter()
    pieces = splitter.feed(stream[:cut]) + splitter.feed(stream[cut:])
    assert pieces == FrameSplitter().feed(stream)
    for lead, payload in pieces:
        if lead == 0:
            read_control(payload)


def _varints(data: bytes) -> None:
    splitter = VarintSplitter(1_024)
    halves = splitter.feed(data[: len(data) // 2]) + splitter.feed(data[len(data) // 2 :])
    assert halves == VarintSplitter(1_024).feed(data)


def _worker_frames(kind: object) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        for _ in FrameReader(kind).feed(data):
            pass

    return run


# --- Files of users and strangers --------------------------------------------------------------


@cache
def _folder() -> Path:
    return Path(
        tempfile.mkdtemp(prefix="p2p-node-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )


def _as_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        path = _folder() / name
        path.write_bytes(data)
        path.chmod(0o600)
        read(path)

    return run


def _items(data: bytes) -> None:
    items = unpack_items(data)
    assert unpack_items(pack_items(items)) == items


def _mesh(data: bytes) -> None:
    assert encode_mesh(decode_mesh(data)) == data


def _surfaces(data: bytes) -> None:
    read_surfaces(data[1:], ("obj", "ply", "stl", "glb")[data[0] % 4] if data else "obj")


def _sound(data: bytes) -> None:
    assert read_wav(data).dtype == np.int16


def _example(*names: str) -> Callable[[], Iterator[bytes]]:
    def seeds() -> Iterator[bytes]:
        root = Path(__file__).parents[2] / "examples"
        for name in names:
            for path in sorted(root.glob(name)):
                yield path.read_bytes()

    return seeds


# --- Inputs of jobs ----------------------------------------------------------------------------


def _job_input(name: str) -> Callable[[bytes], None]:
    """What a node does, without a worker, with the input and the output of a job that it hears of."""
    kind = WORKLOADS[name]

    def run(data: bytes) -> None:
        kind.input_blobs(data)
        if kind.segments is not None:
            kind.segments(data)
        if kind.leaves_blobs is not None:
            kind.leaves_blobs(data)
        units = list(data[:40])
        kind.output_blobs(data, units)
        kind.remark(data, units)

    return run


def _probe(name: str) -> Callable[[], Iterator[bytes]]:
    return lambda: iter((WORKLOADS[name].probe(),))


_REFUSED = (WorkloadRefused,)

TARGETS: dict[str, Target] = {
    "envelope": Target(_envelope, (PeerFault,), _envelopes),
    "body": Target(_body, (PeerFault,), _bodies),
    "blob-message": Target(read_blob_message, (PeerFault,)),
    "frames": Target(_frames, (PeerFault,), lambda: iter((b"\3\0\0\0\2\1x", b"\0\0\0\0\1\0"))),
    "varints": Target(_varints, (PeerFault,), lambda: iter((b"\3abc\0",))),
    "mdns": Target(from_text, ()),
    "worker-commands": Target(_worker_frames(Command), (MalformedFrame,)),
    "worker-events": Target(_worker_frames(Event), (MalformedFrame,)),
    "blob-name": Target(lambda data: parse_blob_name(data.decode("latin-1")), (ValueError, UserError)),
    "receipt-file": Target(lambda data: check_file(data, _CREDULOUS), (ReceiptError,)),
    "fraud-file": Target(lambda data: read_fraud(data, _CREDULOUS), (FraudRefused, ReceiptError)),
    "manifest": Target(read_manifest, (*_REFUSED, UserError, PeerFault)),
    "job-file": Target(parse_job_spec, (UserError, Fault), _example("*.yaml")),
    "settings": Target(_as_file("node.toml", lambda path: load_config(path, {})), (UserError,)),
    "scenario": Target(_as_file("world.toml", load_scenario), (UserError,), _example("sim/*.toml")),
    "keystore": Target(_as_file("identity.key", lambda path: load_key(path, "secret")), (UserError,)),
    "items-jsonl": Target(
        _as_file("items.jsonl", lambda path: read_items(path, column="text", id_column="id")),
        (UserError,),
        lambda: iter((b'{"id": "1", "text": "x"}\n',)),
    ),
    "items": Target(_items, (*_REFUSED, UserError, PeerFault), lambda: iter((pack_items([]),))),
    "image": Target(
        _as_file("image.png", lambda path: read_image(path, side=8, crop_permille=1_000)),
        (UserError, *_REFUSED),
    ),
    "sound": Target(_sound, _REFUSED),
    "mesh": Target(_mesh, _REFUSED),
    "surfaces": Target(_surfaces, _REFUSED, lambda: iter((b"\0v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",))),
    "safetensors": Target(_as_file("m.safetensors", hash_tensors), _REFUSED),
    "exported": Target(_as_file("m.pt2", read_archive), _REFUSED, bytes_max=16_384),
    "onnx": Target(_as_file("m.onnx", read_onnx), _REFUSED, bytes_max=16_384),
    "program": Target(decode_program, _REFUSED),
    "logprobs": Target(lambda data: read_logprobs(data[1:], data[0] if data else 0), _REFUSED),
    **{f"input-{name}": Target(_job_input(name), _REFUSED, _probe(name)) for name in WORKLOADS},
    "machine-node": Target(machines.node, (), machines.seeds, bytes_max=2_048),
    "machine-whole": Target(machines.whole, (), machines.seeds, bytes_max=2_048),
    "machine-dispute": Target(machines.dispute, (), machines.seeds, bytes_max=512),
    "machine-receipt": Target(machines.receipt, (ReceiptError,), machines.seeds, bytes_max=256),
    "machine-routing": Target(directories.routing, (), machines.seeds, bytes_max=2_048),
    "machine-recordstore": Target(directories.recordstore, (), machines.seeds, bytes_max=2_048),
    "machine-lookup": Target(directories.lookup, (), machines.seeds, bytes_max=2_048),
    "machine-directory": Target(directories.directory, (), machines.seeds, bytes_max=512),
}
"""By name."""
