"""Vectors of texts: near what Hugging Face's model gives, the same whatever is around a text, and checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig as HuggingFaceConfig
from transformers import BertModel

from protocols.blobs import Blob
from protocols.units import FALSE_UNITS
from tests.support.tiny_models import BERT, tiny_bert
from workloads import exact
from workloads.blobs import MemoryBlobs, blob_from_words
from workloads.embedding.config import expected_shapes, load_config, parse_config
from workloads.embedding.encoder import Encoder, Exact, Native
from workloads.embedding.input import CHUNK_TEXTS, EmbedInput, decode_input, encode_input
from workloads.embedding.kind import COPIED_ITEM, EMBEDDING, QUANTIZED_ENCODER
from workloads.embedding.tokens import TokenLists, pack
from workloads.embedding.workload import TextEmbedder, load_weights
from workloads.errors import InputRefused, ModelRefused

CONFIG = parse_config(BERT)
TEXTS = [[2, *range(4, 4 + n % 17), 3] for n in range(2 * CHUNK_TEXTS + 5)]
JOB = encode_input(EmbedInput("mean", True, 0, len(TEXTS), pack(TEXTS)))


def embedder(variant: str | None = None, profile: str = "exact14", *contents: bytes) -> Any:
    blobs = MemoryBlobs(*contents)
    return TextEmbedder(tiny_bert(), profile, variant, blobs=blobs), blobs


class Done:
    def __init__(self, job: bytes, *contents: bytes, variant: str | None = None, **options: Any) -> None:
        workload, blobs = embedder(variant, options.get("profile", "exact14"), *contents)
        self.units: list[int] = []
        self.digests: dict[int, bytes] = {}
        self.outcome = workload.generate(
            job, (), lambda _, new: self.units.extend(new), self.digests.__setitem__, lambda: False
        )
        found = b"".join(blobs.read(blob) for blob in EMBEDDING.output_blobs(job, self.units))
        self.vectors = np.frombuffer(found, dtype="<f4").reshape(-1, CONFIG.hidden_size)


def references(pooling: str) -> Tensor:
    """What transformers makes of the texts, in float64, one at a time."""
    model = BertModel(HuggingFaceConfig(**BERT), add_pooling_layer=False).double().eval()
    model.load_state_dict(load_file(tiny_bert() / "model.safetensors"), strict=False)
    rows = []
    with torch.inference_mode():
        for text in TEXTS:
            states = model(input_ids=torch.tensor([text])).last_hidden_state[0]
            rows.append(states.mean(0) if pooling == "mean" else states[0])
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


@pytest.mark.parametrize(("profile", "least"), [("exact14", 0.9999), ("exact21", 0.999999)])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_close_to_hugging_faces(pooling: str, profile: str, least: float) -> None:
    job = encode_input(EmbedInput(pooling, True, 0, len(TEXTS), pack(TEXTS)))
    found = torch.from_numpy(Done(job, profile=profile).vectors.astype(np.float64))
    assert float((found * references(pooling)).sum(1).min()) > least
    assert torch.allclose(found.norm(dim=1), torch.ones(len(TEXTS), dtype=torch.float64))


def test_native_operators_run_the_same_network() -> None:
    weights = load_weights(tiny_bert(), CONFIG)
    native, precise = (Encoder(CONFIG, weights, ops) for ops in (Native(), Exact(exact.EXACT21)))
    for one, other in zip(native.states(TEXTS[:9]), precise.states(TEXTS[:9]), strict=True):
        assert torch.allclose(one.double(), other, atol=1e-4)


def test_the_packed_weights_give_the_bits_of_the_plain_operator() -> None:
    made = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(*shape, generator=made).double() for shape in ((40, 24), (7, 24), (7,)))
    for precision in (exact.EXACT14, exact.EXACT21):
        ops = Exact(precision)
        packed = ops.linear(x, ops.pack(weight.float()), bias)
        assert torch.equal(packed, exact.linear(x, weight.float(), bias, precision=precision))


def test_a_texts_vector_depends_on_no_other_text() -> None:
    whole = Done(JOB).vectors
    backwards = encode_input(EmbedInput("mean", True, 0, len(TEXTS), pack(TEXTS[::-1])))
    assert np.array_equal(Done(backwards).vectors[::-1], whole)


def test_a_verifier_derives_the_digests_without_the_vectors() -> None:
    done = Done(JOB)
    assert done.outcome.units_total == len(done.units) == 30
    verifier, _ = embedder()
    assert verifier.recompute(JOB, done.units, range(3)) == done.digests
    assert verifier.recompute(JOB, done.units[:20], [1]) == {1: done.digests[1]}
    other = [done.units[0] ^ 1, *done.units[1:]]
    assert verifier.recompute(JOB, other, [0]) == {0: FALSE_UNITS}


@pytest.mark.parametrize("variant", [COPIED_ITEM, QUANTIZED_ENCODER])
def test_a_cheater_hands_over_what_it_names_and_is_caught(variant: str) -> None:
    done, honest = Done(JOB, variant=variant), Done(JOB)
    assert len(done.vectors) == len(TEXTS)
    verifier, _ = embedder()
    assert set(verifier.recompute(JOB, done.units, range(3)).values()) == {FALSE_UNITS}
    if variant == COPIED_ITEM:
        assert np.array_equal(done.vectors[:8], honest.vectors[:8])
        assert np.array_equal(done.vectors[8:16], honest.vectors[:8])


def test_texts_may_be_a_blob() -> None:
    content = pack(TEXTS)
    blob = MemoryBlobs().write(content)
    job = encode_input(EmbedInput("mean", True, 0, len(TEXTS), blob=blob))
    assert EMBEDDING.input_blobs(job) == (blob,)
    assert EMBEDDING.input_blobs(JOB) == ()
    assert Done(job, content).units == Done(JOB).units
    with pytest.raises(InputRefused, match="isn't here"):
        Done(job)


def test_parts_give_the_vectors_of_the_whole() -> None:
    split = EMBEDDING.split
    assert split is not None
    assert split.items(JOB) == 3
    parts = [split.part(JOB, 0, 1), split.part(JOB, 1, 2)]
    units = [unit for part in parts for unit in Done(part.input).units]
    assert [part.units_max for part in parts] == [10, 20]
    assert units == Done(JOB).units
    for first, count in ((-1, 1), (0, 0), (2, 2)):
        with pytest.raises(InputRefused, match="must lie in"):
            split.part(JOB, first, count)


def test_the_chunks_blobs_have_their_names_in_the_units() -> None:
    done = Done(JOB)
    names = EMBEDDING.output_blobs(JOB, done.units)
    assert [blob.size_bytes for blob in names] == [16 * 96, 16 * 96, 5 * 96]
    assert names[1] == blob_from_words(done.units[10:20])


def changed(**fields: Any) -> EmbedInput:
    plain: dict[str, Any] = {"pooling": "mean", "is_normalised": True, "first": 0, "count": 1}
    return EmbedInput(**plain | {"packed": pack([[1]])} | fields)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"pooling": "max"}, "pooling='max' must be one of mean, cls"),
        ({"count": 0}, "0 texts must be 1 to"),
        ({"count": 10**6}, "1000000 texts must be 1 to 104848"),
        ({"first": -1}, "first=-1"),
        ({"packed": b""}, "either with the input or as a blob"),
        ({"blob": Blob(bytes(32), 8)}, "either with the input or as a blob"),
        ({"packed": b"", "blob": Blob(bytes(31), 8)}, "blob digest of 31 bytes"),
        ({"packed": b"", "blob": Blob(bytes(32), 1 << 30)}, "must have at most"),
    ],
)
def test_inputs_that_break_a_rule_are_refused(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputRefused, match=rule):
        encode_input(changed(**fields))


def test_inputs_that_do_not_fit_the_model_are_refused() -> None:
    for texts, count, rule in (
        ([[1]], 2, r"texts 0 to 2 must be in \[0, 1\]"),
        ([[]], 1, "text 0 of 0 tokens must have 1 to 20"),
        ([[1] * 21], 1, "text 0 of 21 tokens"),
        ([[CONFIG.vocab_size]], 1, "holds token 37, must be below 37"),
    ):
        with pytest.raises(InputRefused, match=rule):
            Done(encode_input(changed(packed=pack(texts), count=count)))
    assert decode_input(JOB).count == len(TEXTS)
    with pytest.raises(InputRefused):
        decode_input(b"rubbish")


def test_packed_texts_are_read_back_and_lies_about_them_refused() -> None:
    lists = TokenLists(pack([[5, 6], [], [7]]))
    assert [lists[n] for n in range(len(lists))] == [(5, 6), (), (7,)]
    good = pack([[5, 6], [7]])
    words = np.frombuffer(good, dtype="<u4")
    for position, value in ((0, 0), (0, 3), (0, 2**32 - 1), (1, 9), (2, 2), (2, 4)):
        lie = words.copy()
        lie[position] = value
        with pytest.raises(InputRefused):
            TokenLists(lie.tobytes())
    for data in (b"", good[:-1], good[:-4], good + bytes(4)):
        with pytest.raises(InputRefused):
            TokenLists(data)
    with pytest.raises(InputRefused, match="0 texts"):
        pack([])
    with pytest.raises(InputRefused, match="tokens must be in"):
        pack([[2**32]])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "relu"),
        ("hidden_size", 25),
        ("num_hidden_layers", 0),
        ("position_embedding_type", "relative_key"),
        ("layer_norm_eps", 0),
        ("is_decoder", True),
    ],
)
def test_encoders_that_are_not_computed_here_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ModelRefused, match=field):
        parse_config(BERT | {field: value})


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert(), tmp_path / "model"))


def test_a_broken_model_is_refused_by_name(tmp_path: Path) -> None:
    place = copied(tmp_path)
    tensors = load_file(place / "model.safetensors")
    name = "encoder.layer.1.output.dense.bias"

    def refused(changes: dict[str, Tensor | None], rule: str) -> None:
        changed = {key: value for key, value in (tensors | changes).items() if value is not None}
        save_file(changed, place / "model.safetensors")  # type: ignore[arg-type]
        with pytest.raises(ModelRefused, match=rule):
            TextEmbedder(place, "exact14", blobs=MemoryBlobs())

    refused({name: None}, f"lacks 1 tensors, first {name}")
    refused({name: torch.full((24,), torch.nan)}, f"{name} holds NaN or Inf")
    refused({name: torch.zeros(25)}, rf"{name} has shape \(25,\), must be \(24,\)")
    refused({name: torch.zeros(24, dtype=torch.float64)}, "has dtype float64")
    refused({"encoder.layer.2.output.dense.bias": torch.zeros(24)}, "1 unknown tensors")
    (place / "model.safetensors").write_bytes((tiny_bert() / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(ModelRefused, match="its tensors end at"):
        TextEmbedder(place, "exact14", blobs=MemoryBlobs())


def test_a_directory_is_this_kinds_model_another_kinds_or_broken(tmp_path: Path) -> None:
    model = EMBEDDING.read_model(tiny_bert())
    assert model is not None
    assert (model.name, model.path) == ("tiny-bert", tiny_bert())
    assert EMBEDDING.read_model(tmp_path) is None
    place = copied(tmp_path)
    (place / "config.json").write_text(json.dumps(BERT | {"model_type": "llama"}))
    assert EMBEDDING.read_model(place) is None
    (place / "config.json").write_text(json.dumps(BERT | {"hidden_size": "wide"}))
    with pytest.raises(ModelRefused, match="hidden_size='wide'"):
        EMBEDDING.read_model(place)
    assert load_config(tiny_bert()) == CONFIG


def test_what_a_checkpoint_holds_for_training_is_passed_over(tmp_path: Path) -> None:
    place = copied(tmp_path)
    extra = {"pooler.dense.bias": torch.zeros(24), "embeddings.position_ids": torch.arange(20)[None]}
    save_file(load_file(place / "model.safetensors") | extra, place / "model.safetensors")
    assert load_weights(place, CONFIG).keys() == expected_shapes(CONFIG).keys()
