"""Exported graphs as programs: against eager torch, in disputes, and against archives that lie."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from protocols.blobs import blob_of
from protocols.effects import Case
from protocols.events import Finding
from protocols.units import FALSE_UNITS
from protocols.values import value_digest as digest_of
from workloads.blobs import MemoryBlobs
from workloads.errors import InputRefused, ModelRefused, ProgramRefused, WorkloadRefused
from workloads.exported.budget import budget_of
from workloads.exported.content import identity_of, pack, parameters_of, unpack
from workloads.exported.input import Kept, RunInput, encode_input
from workloads.exported.kind import NAME, PROGRAM
from workloads.exported.source import ports_of, run_input
from workloads.exported.workload import ProgramRun
from workloads.program import Builder, Program, run
from workloads.program.disputes import judge_case, open_chunk, trace_chunk
from workloads.program.exported import Template, import_archive, with_profile
from workloads.program.native import NativeRun
from workloads.program.program import ValueSpec, encode_program, value_digest

TOLERANCES = {"exact14": 2e-3, "exact21": 1e-5}


class Mlp(nn.Module):
    """Elementwise functions between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x)) + 0.5
        x = F.leaky_relu(self.second(x)) * 2 - x**2
        x = torch.where(x > 0.1, x, x.exp()).clamp(-3, 3)
        return self.third(x).masked_fill(x[..., :3] < 0, 0.0) / 3


class Cnn(nn.Module):
    """Convolutions, norms and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.batch, self.group = nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
        self.second = nn.Conv2d(8, 16, 3, stride=2, groups=2)
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.batch(self.first(x))), 2)
        x = F.silu(self.second(self.group(F.pad(x, (1, 1, 1, 1)))))
        x = F.interpolate(self.up(x), scale_factor=2.0, mode="nearest")
        x = torch.cat(F.avg_pool2d(x, 2).chunk(2, dim=1), dim=1)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 2), 1)
        scores = F.log_softmax(self.last(x), dim=-1)
        return scores, scores.argmax(-1)


class Block(nn.Module):
    """A transformer block over token ids, with a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.positions = nn.Parameter(torch.randn(9, 32))
        self.before, self.after = nn.LayerNorm(32), nn.RMSNorm(32)
        self.mixed, self.out = nn.Linear(32, 96, bias=False), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.register_buffer("scale", torch.tensor(0.7))

    def forward(self, ids: Tensor) -> Tensor:
        count = ids.shape[1]
        x = self.embedding(ids) + self.positions[torch.arange(count)]
        heads = self.mixed(self.before(x)).view(*ids.shape, 3, 4, 8).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
        x = x + self.down(F.gelu(self.up(self.after(x)), approximate="tanh")) * self.scale
        return torch.softmax(x.mean(1).unsqueeze(1) @ self.embedding.weight.T / 8, dim=-1).squeeze(1)


class Assorted(nn.Module):
    """What the others don't use, each for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor([[2, 0], [1, 1]]))
        self.register_buffer("other", torch.randn(4, 6))
        self.register_buffer("kernel", torch.randn(3, 4, 2))
        self.register_buffer("image", torch.randn(1, 2, 4, 4))
        self.register_buffer("spread", torch.randn(6, 4).t())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        whole = torch.arange(2, 14, 3)
        first, second, third = x.split_with_sizes([1, 2, 3], dim=-1)
        return (
            torch.stack((x, self.other), dim=-1).select(1, -1),
            x.unflatten(-1, (2, -1)).transpose(0, -1),
            x.unsqueeze(0).squeeze(0)[1:, ::2] - second[:3].sum(-1, keepdim=True),
            torch.cat((first, third), 1).t() @ self.other,
            torch.addmm(self.other.sum(0), x, self.other.t() @ x),
            x.index_select(0, self.places[0]) * self.other[self.places].mean((0, 1)),
            torch.gather(x, 1, self.places),
            x.amax(0) / 2 + x.var(0) - x.mean(),
            x.abs().add(0.25).sqrt().rsqrt().log().reciprocal(),
            x.sin() + x.cos() + torch.erf(x) - 1.5 * x.sigmoid() - (1 - x),
            x**3 + (x.abs() + 1) ** 0.5 + (x.abs() + 1) ** -1,
            torch.maximum(x, self.other) - torch.minimum(x, self.other * 2),
            torch.where(x >= self.other, x, torch.zeros_like(x)) + torch.full_like(x, 0.5),
            (x != self.other).to(torch.float32) + (x <= 0).to(torch.float64),
            whole.to(torch.float32) * torch.ones(4) + torch.full((), 2.0),
            whole + whole * 2 - 1,
            x[0].expand(3, -1).contiguous().flatten(),
            F.conv1d(x[None, :, :], self.kernel, stride=2, padding=1),
            F.conv_transpose1d(x[None, :, :], self.kernel.permute(1, 0, 2), stride=2, output_padding=1),
            F.interpolate(self.image, size=(7, 5), mode="bilinear", align_corners=True),
            F.interpolate(self.image, scale_factor=3, mode="bilinear"),
            F.max_pool2d(self.image, 3, stride=1, padding=1),
            F.hardtanh(x, -0.5, 0.25) + x.clamp(min=0.1) + F.dropout(x, 0.5, training=False),
            F.group_norm(x[None, :, :], 2) + F.layer_norm(x, (6,)) + F.softmax(x, 0),
            F.scaled_dot_product_attention(x[None, None], self.other[None, None], x[None, None], scale=0.3),
            torch.bmm(x.view(2, 2, 6), self.spread.reshape(2, 2, 6).transpose(1, 2)),
            F.pad(x, (0, 2, 1, 0), value=-1.0).chunk(4, dim=-1)[3],
            self.spread * 1.0,
        )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (Mlp, lambda: torch.randn(2, 4, 8)),
    "cnn": (Cnn, lambda: torch.randn(2, 2, 12, 12)),
    "block": (Block, lambda: torch.randint(0, 50, (2, 9))),
    "assorted": (Assorted, lambda: torch.randn(4, 6)),
}


def exported(folder: Path, name: str) -> tuple[Path, nn.Module, Tensor]:
    torch.manual_seed(7)
    make, sample = MODELS[name]
    module, x = make().eval(), sample()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    if isinstance(module, Cnn):
        module.batch.running_mean = torch.randn(8)
        module.batch.running_var = torch.rand(8) + 0.5
    path = folder / f"{name}.pt2"
    with warnings.catch_warnings():
        # A buffer that is a view without its whole is what one of the modules is for.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(torch.export.export(module, (x,)), path)
    return path, module, x


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, nn.Module, Tensor]]:
    folder = tmp_path_factory.mktemp("archives")
    return {name: exported(folder, name) for name in MODELS}


Archives = dict[str, tuple[Path, nn.Module, Tensor]]


def outputs_of(program: Program, template: Template, x: Tensor) -> list[Tensor]:
    values = [template.parameters.get(item.name, x) for item in program.inputs]
    everything = [*values, *run(program, values)]
    return [everything[number] for number in program.steps[-1].inputs]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_program_agrees_with_eager_torch(archives: Archives, name: str) -> None:
    path, module, x = archives[name]
    with torch.no_grad():
        expected = module.double()(x.double() if x.is_floating_point() else x)
        module.float()
    template = import_archive(path)
    for profile, tolerance in TOLERANCES.items():
        results = outputs_of(with_profile(template.program, profile), template, x)
        for result, wanted in zip(
            results, expected if isinstance(expected, tuple) else [expected], strict=True
        ):
            assert result.shape == wanted.shape
            if wanted.is_floating_point():
                assert (result - wanted).abs().max() <= tolerance * wanted.abs().max()
            elif profile == "exact21":
                assert torch.equal(result, wanted)
    values = [template.parameters.get(item.name, x) for item in template.program.inputs]
    native = NativeRun(template.program, template.program.steps[-1].inputs).run(values)
    for result, wanted in zip(native, expected if isinstance(expected, tuple) else [expected], strict=True):
        assert result.shape == wanted.shape
        assert (result.double() - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_a_packed_program_is_named_by_its_content(archives: Archives) -> None:
    template = import_archive(archives["block"][0])
    again = unpack(pack(template))
    assert again.program == template.program
    assert pack(again) == pack(template)
    name = identity_of(encode_program(template.program), parameters_of(template))
    other = replace(again, parameters=again.parameters | {"scale": torch.tensor(0.5)})
    assert identity_of(encode_program(other.program), parameters_of(other)) != name
    for parameters, message in (
        ({k: v for k, v in again.parameters.items() if k != "scale"}, "tensors must be"),
        (again.parameters | {"more": torch.zeros(1)}, "tensors must be"),
        (again.parameters | {"scale": torch.zeros(2)}, "'scale' is"),
        (again.parameters | {"scale": torch.tensor(float("nan"))}, "'scale' holds NaN"),
    ):
        with pytest.raises(WorkloadRefused, match=message):
            unpack(pack(replace(again, parameters=parameters)))


# --- Jobs and disputes --------------------------------------------------------------------------


def job_of(template: Template, x: Tensor, batches: int = 1) -> RunInput:
    (port,), _ = ports_of(template)
    return run_input(template, {port.name: [x.tolist()] * batches}, "npz")


def done(workload: ProgramRun, input: bytes) -> tuple[list[int], dict[int, bytes]]:
    units: list[int] = []
    digests: dict[int, bytes] = {}
    workload.generate(input, (), lambda _, new: units.extend(new), digests.__setitem__, lambda: False)
    return units, digests


@pytest.mark.parametrize("name", ["block", "cnn", "mlp"])
def test_every_operator_can_be_judged(archives: Archives, name: str) -> None:
    path, _, x = archives[name]
    workload = ProgramRun("exact14")
    input = encode_input(job_of(import_archive(path), x))
    units, digests = done(workload, input)
    assert workload.recompute(input, units, [0]) == digests
    program, traced = trace_chunk(workload, input, units, 0)
    assert traced[-1] == value_digest(torch.frombuffer(bytearray(digests[0]), dtype=torch.uint8))
    case = Case(
        NAME, workload.model, "exact14", input, tuple(units), 0, program, len(traced), 0, b"", (), b""
    )
    for index, claimed in enumerate(traced):
        values, context = open_chunk(workload, input, units, 0, index)
        honest = replace(case, index=index, claimed=claimed, values=values, context=context)
        assert judge_case(honest)[0] is Finding.ACQUITTED
        assert judge_case(replace(honest, claimed=bytes(32)))[0] is Finding.GUILTY
    wrong = [units[0] ^ 1, *units[1:]]
    assert workload.recompute(input, wrong, [0]) == {0: FALSE_UNITS}
    assert trace_chunk(workload, input, wrong, 0)[1][-1] == value_digest(torch.zeros(32, dtype=torch.uint8))


def test_a_chunk_may_hold_many_batches_and_parts_of_others(archives: Archives) -> None:
    path, module, x = archives["mlp"]
    workload, job = ProgramRun("exact21"), job_of(import_archive(path), x, batches=90)
    input = encode_input(job)
    units, digests = done(workload, input)
    assert (len(units), len(digests)) == (90 * 24, 3)
    with torch.no_grad():
        expected = module(x).flatten().tolist() * 90
    assert struct.unpack(f"<{len(units)}f", struct.pack(f"<{len(units)}I", *units)) == pytest.approx(
        expected, abs=1e-5
    )
    for chunk in digests:
        program, values = workload.chunk_program(input, units, chunk)
        assert bytes(list(run(program, values))[-1].tolist()) == digests[chunk]
    # Each chunk has batches of its own, and one that it shares.
    assert next(item.name for item in program.inputs if item.source == "job") == "x 85"
    assert workload.recompute(input, units, digests) == digests


@pytest.mark.parametrize("variant", PROGRAM.variants)
@pytest.mark.parametrize("name", ["block", "cnn", "mlp"])
def test_cheaters_state_what_they_did(archives: Archives, name: str, variant: str) -> None:
    path, _, x = archives[name]
    input = encode_input(job_of(import_archive(path), x))
    cheat, honest = ProgramRun("exact14", variant), ProgramRun("exact14")
    units, digests = done(cheat, input)
    program, told = trace_chunk(cheat, input, units, 0)
    assert told[-1] == value_digest(torch.frombuffer(bytearray(digests[0]), dtype=torch.uint8))
    same, truth = trace_chunk(honest, input, units, 0)
    assert same == program
    assert digests != honest.recompute(input, units, [0])
    first = next(index for index, pair in enumerate(zip(told, truth, strict=True)) if pair[0] != pair[1])
    values, context = open_chunk(honest, input, units, 0, first)
    case = Case(
        NAME, honest.model, "exact14", input, tuple(units), 0, program, len(told), first, told[first], values,
        context,
    )  # fmt: skip
    finding, detail = judge_case(case)
    assert finding is Finding.GUILTY and detail.startswith("step "), detail


def test_what_a_job_says_of_its_program_must_be_true(archives: Archives) -> None:
    path, _, x = archives["mlp"]
    job, workload = job_of(import_archive(path), x), ProgramRun("exact14")
    change = msgspec.structs.replace
    (into,), (out,) = job.inputs, job.outputs
    for lie, message in (
        (change(job, identity=bytes(32)), "must be 0000"),
        (change(job, content=job.content[:-1]), "not a _Content"),
        (change(job, outputs=(change(out, shape=(2, 4, 4)),)), "program has outputs"),
        (change(job, inputs=(change(into, shape=(2, 8, 4)),)), "program has inputs"),
    ):
        with pytest.raises(WorkloadRefused, match=message):
            workload.recompute(encode_input(lie), [0] * lie.units_total, [0])
    for lie, message in (
        (change(job, content=b""), "either with the input or as a blob"),
        (change(job, identity=b""), "identity of 0 bytes"),
        (change(job, values=()), "0 values must have 1"),
        (change(job, values=(b"1",)), "must have 256"),
        (change(job, batches=0), r"batches=0 must be in \[1, 4096\]"),
        (change(job, outputs=(change(out, shape=(2**20,)),)), "must be 1 to 65536 words"),
        (change(job, outputs=(change(out, dtype="float8"),)), "dtype 'float8'"),
        (change(job, outputs=(change(out, shape=(1,) * 9),)), "at most 8 dimensions"),
        (change(job, file="pickle"), "must be one of npz, safetensors"),
    ):
        with pytest.raises(InputRefused, match=message):
            encode_input(lie)
    for units, chunk in ((23, 0), (25, 0), (24, 1)):
        with pytest.raises(InputRefused):
            workload.chunk_program(encode_input(job), [0] * units, chunk)


def test_a_program_may_lie_in_a_blob(archives: Archives) -> None:
    path, _, x = archives["mlp"]
    job = job_of(import_archive(path), x)
    there = msgspec.structs.replace(job, content=b"", blob=blob_of(job.content))
    assert PROGRAM.input_blobs(encode_input(there)) == (blob_of(job.content),)
    inline = done(ProgramRun("exact14"), encode_input(job))
    assert done(ProgramRun("exact14", blobs=MemoryBlobs(job.content)), encode_input(there)) == inline
    with pytest.raises(InputRefused, match="isn't here"):
        done(ProgramRun("exact14"), encode_input(there))


def test_too_dear_a_program_is_refused_before_it_is_run() -> None:
    def program(side: int, steps: int, op: str = "matmul") -> Program:
        builder = Builder()
        x = builder.input("x", ValueSpec("float32", (side, side)), "job")
        for _ in range(steps):
            x = builder.apply("matmul", x, x, precision="exact21") if op == "matmul" else builder.apply(op, x)
        builder.apply("digest", x, header=b"")
        return builder.build()

    assert budget_of(program(64, 3)).work == 3 * (64**3 + 2 * 64**2) + 64**2 + 32
    assert budget_of(program(64, 3, "relu")).held_bytes == 3 * 8 * 64**2
    with pytest.raises(ProgramRefused, match=r"step 0: matmul is \d+ multiply-adds, more than"):
        budget_of(program(4_096, 1))
    with pytest.raises(ProgramRefused, match=r"step 0: relu has a value of \d+ bytes as float64"):
        budget_of(program(1 << 13, 1, "relu"))
    with pytest.raises(ProgramRefused, match=r"step 17 \(matmul\): \d+ multiply-adds exceed"):
        budget_of(program(2_500, 20))


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("conv", {"stride": [65_536] * 2, "padding": [65_535] * 2, "dilation": [1, 1], "groups": 1}),
        ("max_pool2d", {"stride": [65_536] * 2, "padding": [32_768] * 2, "kernel": [65_536] * 2}),
        (
            "conv_transpose",
            {
                "stride": [65_536] * 2,
                "padding": [0, 0],
                "output_padding": [0, 0],
                "dilation": [1, 1],
                "groups": 1,
            },
        ),
    ],
)
def test_margins_that_make_much_out_of_little_are_refused(op: str, attributes: dict[str, Any]) -> None:
    builder = Builder()
    x = builder.input("x", ValueSpec("float32", (1, 1, 1, 1)), "job")
    if op != "max_pool2d":
        attributes = attributes | {"precision": "exact14"}
    operands = [x] if op == "max_pool2d" else [x, x]
    with pytest.raises(ProgramRefused, match="elements with margins exceed"):
        builder.apply(op, *operands, **attributes)


# --- Archives that lie --------------------------------------------------------------------------


def rewritten(source: Path, target: Path, edit: Callable[[str, bytes], bytes | None], **options: Any) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for info in old.infolist():
            data = edit(info.filename.partition("/")[2], old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return target


def edited(part: str, change: Callable[[Any], object]) -> Callable[[str, bytes], bytes]:
    def edit(name: str, data: bytes) -> bytes:
        if name != part:
            return data
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    return edit


GRAPH, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


def graph(change: Callable[[Any], object]) -> Callable[[str, bytes], bytes]:
    return edited(GRAPH, lambda value: change(value["graph_module"]["graph"]))


def weight(**changes: Any) -> Callable[[str, bytes], bytes]:
    return edited(WEIGHTS, lambda value: value["config"]["first.weight"].update(changes))


def shape(**changes: Any) -> Callable[[str, bytes], bytes]:
    return edited(WEIGHTS, lambda value: value["config"]["first.weight"]["tensor_meta"].update(changes))


def sizes(*numbers: int) -> list[dict[str, int]]:
    return [{"as_int": number} for number in numbers]


def first_node(**changes: Any) -> Callable[[str, bytes], bytes]:
    return graph(lambda value: value["nodes"][0].update(changes))


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


LIES: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "pickled weight": (weight(use_pickle=True), "pickled"),
    "weight elsewhere": (weight(path_name="../../etc/passwd"), "is no tensor"),
    "custom object": (weight(path_name="custom_obj_0"), "is no tensor"),
    "no such weight": (weight(path_name="weight_99"), "lacks data/weights/weight_99"),
    "beyond its file": (shape(storage_offset={"as_int": 1}), "reaches beyond"),
    "far beyond": (shape(strides=sizes(2**39, 1)), "reaches beyond"),
    "much of little": (shape(sizes=sizes(2**30, 2**20), strides=sizes(0, 0)), "bytes together"),
    "negative stride": (shape(strides=sizes(-8, 1)), "must be an integer"),
    "symbolic size": (shape(sizes=[{"as_expr": {"expr_str": "evil()"}}, {"as_int": 8}]), "must be as_int"),
    "strange type": (shape(dtype=28), "element type 28"),
    "other operator": (first_node(target="torch.os.system"), r"operator torch\.os\.system isn't among"),
    "other namespace": (first_node(target="torch.ops.mine.linear.default"), "isn't among"),
    "in place": (first_node(target="torch.ops.aten.relu_.default"), "run_decompositions"),
    "odd argument": (
        graph(lambda g: g["nodes"][0]["inputs"].append({"name": "evil", "arg": {"as_int": 1}, "kind": 2})),
        "argument 'evil' isn't supported",
    ),
    "expression": (
        graph(lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_expr": "__import__('os')"})),
        "which isn't supported",
    ),
    "cycle": (
        graph(lambda g: g["nodes"][0]["inputs"][0]["arg"]["as_tensor"].update(name="tanh")),
        "before it is there",
    ),
    "name twice": (
        graph(lambda g: g["nodes"][1]["outputs"][0]["as_tensor"].update(name="linear")),
        "names 'linear' twice",
    ),
    "false shape": (
        graph(lambda g: g["tensor_values"]["linear"].update(sizes=sizes(1, 2, 3))),
        "the graph says",
    ),
    "symbols": (graph(lambda g: g.update(sym_int_values={"s0": {}})), "sym_int_values"),
    "objects": (graph(lambda g: g.update(custom_obj_values={"o": {}})), "custom_obj_values"),
    "no graph": (edited(GRAPH, lambda value: value.pop("graph_module")), "graph_module must be an object"),
    "newer schema": (
        edited(GRAPH, lambda value: value["schema_version"].update(major=9)),
        "schema version 9",
    ),
    "deep": (lambda name, data: b"[" * 10**6 if name == GRAPH else data, "isn't JSON|is not JSON"),
    "key twice": (lambda name, data: b'{"a":1,"a":1}' if name == GRAPH else data, "stands twice"),
    "big-endian": (lambda name, data: b"big" if name == "byteorder" else data, "little-endian"),
    "lacking": (lambda name, data: None if name == GRAPH else data, "lacks models/model.json"),
}


@pytest.mark.parametrize("name", LIES)
def test_archives_that_lie_are_refused(archives: Archives, tmp_path: Path, name: str) -> None:
    edit, message = LIES[name]
    with pytest.raises((ModelRefused, ProgramRefused), match=message):
        import_archive(rewritten(archives["mlp"][0], tmp_path / "lie.pt2", edit))


def test_what_the_stock_loader_would_run_is_never_touched(archives: Archives, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save({"x": Planted(str(marker))}, buffer)
    code = f"__import__('os').system('touch {marker}') or True"

    def plant(name: str, data: bytes) -> bytes:
        if "sample_inputs" in name:
            return buffer.getvalue()
        return edited(GRAPH, lambda value: value.update(guards_code=[code]))(name, data)

    path = rewritten(archives["mlp"][0], tmp_path / "planted.pt2", plant)
    import_archive(path)
    assert not marker.exists()
    # The sample's payload is live: only not reading it keeps it from running.
    pickle.loads(pickle.dumps(Planted(str(marker))))
    assert marker.exists()


def test_zip_files_that_lie_are_refused(archives: Archives, tmp_path: Path) -> None:
    path = archives["mlp"][0]
    good = path.read_bytes()
    same: Callable[[str, bytes], bytes] = lambda _, data: data  # noqa: E731
    bad = tmp_path / "bad.pt2"
    with pytest.raises(ModelRefused, match="must be stored"):
        import_archive(rewritten(path, bad, same, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("a/byteorder", "little")
        archive.writestr("b/models/model.json", "{}")
    with pytest.raises(ModelRefused, match="one folder"):
        import_archive(bad)
    end, record = good.rfind(b"PK\x05\x06"), good.rfind(b"PK\x06\x06")
    many = good[: record + 32] + struct.pack("<QQ", 2**40, 2**50) + good[record + 48 :]
    elsewhere = good[: end - 12] + struct.pack("<Q", 0) + good[end - 4 :]
    for data, message in (
        (b"", "no zip archive"),
        (good[:-30], "no zip archive|malformed"),
        (many, "lists 1099511627776 entries"),
        (elsewhere, "end record is malformed"),
    ):
        bad.write_bytes(data)
        with pytest.raises(ModelRefused, match=message):
            import_archive(bad)
    with pytest.raises(ModelRefused, match="cannot be read"):
        import_archive(tmp_path / "nowhere.pt2")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_archives_are_refused_or_read(
    archives: Archives, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(archives["mlp"][0].read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.pt2"
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(WorkloadRefused):
        assert import_archive(path).program.steps


def test_damaged_programs_are_refused_or_read(archives: Archives) -> None:
    good = pack(import_archive(archives["mlp"][0]))
    for place in range(0, len(good), 13):
        with contextlib.suppress(WorkloadRefused):
            unpack(good[:place] + bytes([good[place] ^ 0x11]) + good[place + 1 :])


# --- Values in blobs ----------------------------------------------------------------------------


def kept_job(template: Template, batches: int = 3) -> tuple[RunInput, MemoryBlobs]:
    """A job of several batches whose values lie in a blob."""
    (port,), _ = ports_of(template)
    shape = (batches * port.shape[0], *port.shape[1:])
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    job = run_input(template, {port.name: values.tolist()}, "npz")
    data = job.values[0]
    assert isinstance(data, bytes)
    digests = tuple(
        digest_of(port.dtype, port.shape, data[start : start + port.size_bytes])
        for start in range(0, len(data), port.size_bytes)
    )
    # Not at the blob's beginning, as in a part of a job.
    blobs = MemoryBlobs(b"1234" + data)
    return msgspec.structs.replace(job, values=(Kept(blob_of(b"1234" + data), 4, digests),)), blobs


def test_values_in_a_blob_give_what_values_in_the_job_give(archives: Archives) -> None:
    template = import_archive(archives["mlp"][0])
    job, blobs = kept_job(template)
    kept = job.values[0]
    assert isinstance(kept, Kept)
    data = blobs.read(kept.blob)[4:]
    plain = encode_input(msgspec.structs.replace(job, values=(data,)))
    input = encode_input(job)
    assert PROGRAM.input_blobs(input) == (kept.blob,)
    assert len(input) < len(plain) or job.inputs[0].size_bytes < 64
    expected, found = done(ProgramRun("exact14"), plain), done(ProgramRun("exact14", blobs=blobs), input)
    assert found[0] == expected[0]
    split = PROGRAM.split
    assert split is not None
    parts = [split.part(input, first, count).input for first, count in ((0, 1), (1, 2))]
    workload = ProgramRun("exact14", blobs=blobs)
    assert [unit for part in parts for unit in done(workload, part)[0]] == expected[0]
    # Whoever judges has no blob: the digests in the input stand for the values.
    program, traced = trace_chunk(workload, input, found[0], 0)
    values, context = open_chunk(workload, input, found[0], 0, 0)
    case = Case(
        NAME, workload.model, "exact14", input, tuple(found[0]), 0, program, len(traced), 0, traced[0],
        values, context,
    )  # fmt: skip
    assert judge_case(case)[0] is Finding.ACQUITTED


def test_kept_values_must_be_those_that_the_job_says(archives: Archives) -> None:
    template = import_archive(archives["mlp"][0])
    job, blobs = kept_job(template)
    kept = job.values[0]
    assert isinstance(kept, Kept)
    lying = msgspec.structs.replace(kept, digests=(bytes(32), *kept.digests[1:]))
    with pytest.raises(InputRefused, match=r"has value .* at byte 4 of its blob, must be 0000"):
        done(
            ProgramRun("exact14", blobs=blobs),
            encode_input(msgspec.structs.replace(job, values=(lying,))),
        )
    for wrong, rule in (
        ({"start": 8}, "must lie within"),
        ({"start": -1}, "must lie within"),
        ({"digests": kept.digests[:2]}, "must have one or 3"),
        ({"digests": (b"x",) * 3}, "must have 32 bytes"),
        ({"blob": msgspec.structs.replace(kept.blob, size_bytes=2**34)}, "must have at most"),
    ):
        bad = msgspec.structs.replace(job, values=(msgspec.structs.replace(kept, **wrong),))
        with pytest.raises(InputRefused, match=rule):
            encode_input(bad)
