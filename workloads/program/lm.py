"""A chunk of ``lm.generate`` as a program: one prefill, and the draw of every token of the chunk.

The last value is the digest that `workloads.lm.generate.LmExecutor.recompute` gives. The sequence is cut into
blocks of rows and the heads into groups, so that what one operator takes stays small enough to be shown to
strangers; the cut follows from the model's configuration, so every peer makes the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from protocols.effects import Case
from workloads.errors import InputRefused, ModelRefused
from workloads.llama.config import LlamaConfig, read_config
from workloads.llama.weights import expected_shapes
from workloads.lm.input import LmInput, chunk_range, decode_input
from workloads.program.builder import Builder, Value
from workloads.program.context import open_context
from workloads.program.program import JOB, PARAMETER, Program, ValueSpec, value_digest
from workloads.program.referee import Rebuilt

__all__ = ["TOKENS", "block_rows", "build_program", "chunk_tokens", "rebuild"]

TOKENS = "tokens"
"""The input that the job gives: prompt and claimed output up to the chunk's end."""

_EXACT = ("exact14", "exact21")
_BLOCK_BYTES = 1 << 19
_BLOCK_ROWS_MIN = 16


def block_rows(config: LlamaConfig) -> int:
    """Positions that one operator takes: a power of two whose widest float64 rows fit half a mebibyte."""
    widest = max(config.hidden_size, config.intermediate_size, config.query_size + 2 * config.key_value_size)
    fitting = _BLOCK_BYTES // (8 * widest)
    return max(_BLOCK_ROWS_MIN, 1 << max(fitting, 1).bit_length() - 1)


def chunk_tokens(job: LmInput, units: Sequence[int], chunk: int) -> Tensor:
    """The value of `TOKENS`: int64 (prompt and output up to the chunk's end,).

    Raises:
        InputRefused: the chunk doesn't exist.
    """
    positions = chunk_range(chunk, len(units))
    return torch.tensor((*job.prompt, *units[: positions.stop]), dtype=torch.int64)


def build_program(
    config: LlamaConfig,
    dtypes: Mapping[str, str],
    *,
    model: bytes,
    profile: str,
    job: LmInput,
    units: int,
    chunk: int,
) -> Program:
    """The program of one chunk.

    Args:
        config: of the model.
        dtypes: of its tensors, as its file has them.
        model: its digest.
        profile: an exact one.
        job: what is generated.
        units: length of the output, or of a part of it that ends no sooner than the chunk.
        chunk: its number.

    Raises:
        InputRefused: the profile isn't exact, the job doesn't fit the model, or the chunk doesn't exist.
        ProgramRefused: a tensor's dtype isn't floating-point, or the model is too large for its operators.
    """
    if profile not in _EXACT:
        raise InputRefused(f"profile {profile!r} has no programs, must be one of {_EXACT}")
    job.check(vocabulary=config.vocab_size, positions=config.max_position_embeddings)
    if units > job.max_tokens:
        raise InputRefused(f"output of {units} tokens exceeds max_tokens={job.max_tokens}")
    positions = chunk_range(chunk, units)
    return _Writer(config, dtypes, profile).write(model, job, positions, chunk)


class _Writer:
    def __init__(self, config: LlamaConfig, dtypes: Mapping[str, str], profile: str) -> None:
        self._config = config
        self._dtypes = dtypes
        self._profile = profile
        self._builder = Builder()
        self._weights: dict[str, Value] = {}

    def write(self, model: bytes, job: LmInput, positions: range, chunk: int) -> Program:
        count = len(job.prompt) + positions.stop
        tokens = self._builder.input(TOKENS, ValueSpec("int64", (count,)), JOB)
        for name, shape in sorted(expected_shapes(self._config).items()):
            spec = ValueSpec(self._dtypes[name], shape)
            self._weights[name] = self._builder.input(name, spec, PARAMETER)
        # Output token i is drawn from the hidden state of the token before it.
        first = len(job.prompt) + positions.start - 1
        streams = self._streams(tokens, range(count - 1), first)
        return self._finish(model, job, chunk, positions, tokens, first, streams)

    def _streams(self, tokens: Value, sequence: range, first: int) -> list[tuple[range, Value]]:
        """The residual stream after the last layer, of the blocks that hold positions from ``first`` on."""
        rows = block_rows(self._config)
        blocks = [sequence[start : start + rows] for start in sequence[::rows]]
        embedding = self._weights["model.embed_tokens.weight"]
        streams = [
            (
                block,
                self._builder.apply("llama.embed", embedding, tokens, start=block.start, count=len(block)),
            )
            for block in blocks
        ]
        for layer in range(self._config.num_hidden_layers):
            is_last = layer == self._config.num_hidden_layers - 1
            # Of positions before the chunk, the last layer needs no more than keys and values.
            streams = self._layer(f"model.layers.{layer}.", streams, first if is_last else 0)
        return streams

    def _layer(
        self, prefix: str, streams: Iterable[tuple[range, Value]], first: int
    ) -> list[tuple[range, Value]]:
        config = self._config
        heads, width = config.num_key_value_heads, config.head_dim
        group = config.num_attention_heads // heads
        seen: list[list[Value]] = [[] for _ in range(heads)]
        results = []
        for block, stream in streams:
            projected = self._project(prefix, stream)
            for head in range(heads):
                rotated = self._builder.apply(
                    "llama.keys_values",
                    projected,
                    start=block.start,
                    key=config.query_size + head * width,
                    value=config.query_size + (heads + head) * width,
                    width=width,
                    theta=config.rope_theta,
                )
                seen[head].append(rotated)
            if block.stop <= first:
                continue
            parts = []
            for head in range(heads):
                queries = self._builder.apply(
                    "llama.queries",
                    projected,
                    start=block.start,
                    column=head * group * width,
                    heads=group,
                    width=width,
                    theta=config.rope_theta,
                )
                parts.append(
                    self._builder.apply(
                        "llama.attend", queries, *seen[head], start=block.start, precision=self._profile
                    )
                )
            results.append((block, self._transform(prefix, stream, parts)))
        return results

    def _project(self, prefix: str, stream: Value) -> Value:
        gain = self._weights[prefix + "input_layernorm.weight"]
        weights = (self._weights[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv")
        return self._builder.apply(
            "llama.project",
            stream,
            gain,
            *weights,
            epsilon=self._config.rms_norm_eps,
            precision=self._profile,
        )

    def _transform(self, prefix: str, stream: Value, attended: Sequence[Value]) -> Value:
        output = self._weights[prefix + "self_attn.o_proj.weight"]
        stream = self._builder.apply("llama.add_linear", stream, output, *attended, precision=self._profile)
        inner = self._builder.apply(
            "llama.swiglu",
            stream,
            self._weights[prefix + "post_attention_layernorm.weight"],
            self._weights[prefix + "mlp.gate_proj.weight"],
            self._weights[prefix + "mlp.up_proj.weight"],
            epsilon=self._config.rms_norm_eps,
            precision=self._profile,
        )
        down = self._weights[prefix + "mlp.down_proj.weight"]
        return self._builder.apply("llama.add_linear", stream, down, inner, precision=self._profile)

    def _finish(  # noqa: PLR0917
        self,
        model: bytes,
        job: LmInput,
        chunk: int,
        positions: range,
        tokens: Value,
        first: int,
        streams: Sequence[tuple[range, Value]],
    ) -> Program:
        tied = self._config.tie_word_embeddings
        head = self._weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
        hidden = self._builder.apply(
            "llama.final_norm",
            self._weights["model.norm.weight"],
            *(stream for _, stream in streams),
            first=first - streams[0][0].start,
            count=len(positions),
            epsilon=self._config.rms_norm_eps,
            precision=self._profile,
        )
        logits = self._builder.apply("llama.logits", hidden, head, precision=self._profile)
        drawn = self._builder.apply(
            "lm.sample",
            logits,
            position=positions.start,
            seed=job.seed.to_bytes(8, "little"),
            temperature_milli=job.temperature_milli,
            top_k=job.top_k,
        )
        self._builder.apply(
            "lm.chunk_digest", hidden, drawn, tokens, model=model, precision=self._profile, chunk=chunk
        )
        return self._builder.build()


def rebuild(case: Case) -> Rebuilt:
    """The program of a case's chunk and the digests of its inputs, from the model's manifest.

    Raises:
        WorkloadRefused: the context isn't the model's, or the job has no such program.
    """
    manifest, content = open_context(case.context, case.model, "config.json")
    config = read_config(content)
    parameters = {parameter.name: parameter for parameter in manifest.parameters}
    shapes = expected_shapes(config)
    for name, shape in shapes.items():
        if name not in parameters or parameters[name].shape != shape:
            raise ModelRefused(f"the model's tensor {name} must have shape {shape}")
    job = decode_input(case.input)
    program = build_program(
        config,
        {name: parameters[name].dtype for name in shapes},
        model=case.model,
        profile=case.profile,
        job=job,
        units=len(case.units),
        chunk=case.chunk,
    )
    tokens = value_digest(chunk_tokens(job, case.units, case.chunk))
    return Rebuilt(
        program,
        tuple(tokens if item.source == JOB else parameters[item.name].value for item in program.inputs),
    )
