from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import WhisperConfig as HuggingFaceConfig
from transformers import WhisperForConditionalGeneration

from protocols.units import FALSE_UNITS
from tests.support.tiny_whisper import FIELDS, tiny_whisper, whisper_tensors
from workloads.blobs import MemoryBlobs
from workloads.errors import InputRefused, ModelRefused
from workloads.speech.config import load_config, parse_config
from workloads.speech.decoding import choose
from workloads.speech.input import PADDING, WINDOW_TOKENS, TranscribeInput, encode_input
from workloads.speech.kind import SPEECH
from workloads.speech.mel import SPECTRUM, log_mel
from workloads.speech.workload import Transcriber

CONFIG = parse_config(FIELDS)
TIMES = CONFIG.first_time_token_id
END = CONFIG.eos_token_id


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("models") / "whisper")


def sound(count: int) -> bytes:
    steps = torch.arange(count, dtype=torch.float64)
    wave = torch.sin(steps * steps * 2e-5) * 9_000
    return wave.to(torch.int16).numpy().tobytes()


JOB = TranscribeInput(sound(24_000), None, 0, (9_000, 24_000))


def transcribe(runner: Transcriber, job: TranscribeInput) -> tuple[list[int], dict[int, bytes]]:
    units: list[int] = []
    digests: dict[int, bytes] = {}
    outcome = runner.generate(
        encode_input(job), (), lambda _, new: units.extend(new), digests.__setitem__, lambda: False
    )
    assert outcome.units_total == len(units) == job.units_total
    return units, digests


@pytest.fixture(scope="module")
def runner(model_dir: Path) -> Transcriber:
    return Transcriber(model_dir, "exact14")


@pytest.fixture(scope="module")
def honest(runner: Transcriber) -> tuple[list[int], dict[int, bytes]]:
    return transcribe(runner, JOB)


def test_the_spectrogram_is_whispers() -> None:
    samples = torch.from_numpy(torch.frombuffer(bytearray(sound(30_000)), dtype=torch.int16).numpy())
    filters = torch.rand((8, SPECTRUM), generator=torch.Generator().manual_seed(1)) / 50
    padded = torch.zeros(480_000, dtype=torch.float64)
    padded[:30_000] = samples.double() / 32_768
    window = torch.hann_window(400, dtype=torch.float64)
    spectrum = torch.stft(padded, 400, 160, window=window, return_complex=True)[:, :-1].abs() ** 2
    decades = (filters.double() @ spectrum).clamp(min=1e-10).log10()
    expected = (decades.maximum(decades.max() - 8) + 4) / 4
    assert log_mel(samples, filters).sub(expected).abs().max() < 1e-4


def test_states_are_those_of_transformers(model_dir: Path) -> None:
    fields = {name: value for name, value in FIELDS.items() if name not in ("model_type", "prompt_tokens")}
    with torch.random.fork_rng():
        theirs = WhisperForConditionalGeneration(
            HuggingFaceConfig(**fields, pad_token_id=0, bos_token_id=0)
        ).eval()
    table = {name: tensor for name, tensor in whisper_tensors(CONFIG).items() if name != "mel_filters"}
    table["proj_out.weight"] = table["model.decoder.embed_tokens.weight"]
    theirs.load_state_dict(table)
    ours = Transcriber(model_dir, "exact21")._network
    spectrogram = torch.randn((8, 3_000), generator=torch.Generator().manual_seed(3))
    tokens = torch.tensor([41, 5, 7, 50, 9])
    with torch.inference_mode():
        heard = theirs.model.encoder(spectrogram[None]).last_hidden_state
        states = theirs.model.decoder(input_ids=tokens[None], encoder_hidden_states=heard).last_hidden_state
    found = ours.encode(spectrogram)
    assert found.sub(heard[0]).abs().max() < 2e-4
    written = ours.decode(tokens, ours.listen(found))
    assert written.sub(states[0]).abs().max() < 2e-4
    expected = states[0] @ table["proj_out.weight"].T
    assert ours.logits(written).sub(expected).abs().max() < 2e-3


def test_tokens_one_by_one_give_the_bits_of_all_at_once(runner: Transcriber) -> None:
    network = runner._network
    heard = network.encode(torch.randn((8, 3_000), generator=torch.Generator().manual_seed(4)))
    tokens = torch.randint(0, 60, (40,), generator=torch.Generator().manual_seed(5))
    whole = network.decode(tokens, network.listen(heard))
    memory = network.listen(heard)
    pieces = [network.decode(part, memory) for part in tokens.split([3, 1, 17, 1, 18])]
    assert torch.equal(torch.cat(pieces), whole)


def test_what_is_written_is_confirmed(
    runner: Transcriber, honest: tuple[list[int], dict[int, bytes]]
) -> None:
    units, digests = honest
    tokens = units[: units.index(PADDING)] if PADDING in units[:WINDOW_TOKENS] else units[:WINDOW_TOKENS]
    assert tokens[0] >= TIMES and any(token < END for token in tokens)
    assert runner.recompute(encode_input(JOB), units, (0, 1)) == digests


def test_a_window_can_be_a_blobs(model_dir: Path, honest: tuple[list[int], dict[int, bytes]]) -> None:
    blobs = MemoryBlobs(JOB.samples)
    job = TranscribeInput(b"", blobs.write(JOB.samples), 0, JOB.ends)
    units, digests = honest
    another = Transcriber(model_dir, "exact14", blobs=blobs)
    assert another.recompute(encode_input(job), units, (0, 1)) == digests


@pytest.mark.parametrize("is_blob", [False, True])
def test_a_part_has_the_wholes_bits(
    model_dir: Path, honest: tuple[list[int], dict[int, bytes]], is_blob: bool
) -> None:
    blobs = MemoryBlobs(JOB.samples)
    whole = TranscribeInput(b"", blobs.write(JOB.samples), 0, JOB.ends) if is_blob else JOB
    assert SPEECH.split is not None
    part = SPEECH.split.part(encode_input(whole), 1, 1)
    units, _ = honest
    found = Transcriber(model_dir, "exact14", blobs=blobs).recompute(part.input, units[WINDOW_TOKENS:], (0,))
    assert found[0] not in (FALSE_UNITS, b"")
    assert part.units_max == WINDOW_TOKENS and SPEECH.split.items(encode_input(whole)) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda tokens: [tokens[0], (tokens[1] + 1) % 40, *tokens[2:]],
        lambda tokens: [*tokens[:3], PADDING, *tokens[4:]],
        lambda tokens: [*tokens[:3], *[PADDING] * (WINDOW_TOKENS - 3)],
        lambda tokens: [60, *tokens[1:]],
        lambda tokens: [PADDING] * WINDOW_TOKENS,
    ],
    ids=["another word", "padding within", "too early an end", "no such token", "silence"],
)
def test_other_words_are_false(
    runner: Transcriber, honest: tuple[list[int], dict[int, bytes]], change: Any
) -> None:
    units = honest[0]
    claimed = change(units[:WINDOW_TOKENS]) + units[WINDOW_TOKENS:]
    assert runner.recompute(encode_input(JOB), claimed, (0,)) == {0: FALSE_UNITS}


def test_who_hears_half_commits_to_other_digests(model_dir: Path, runner: Transcriber) -> None:
    job = TranscribeInput(sound(9_000), None, 0, (9_000,))
    units, digests = transcribe(Transcriber(model_dir, "exact14", "short-hearing"), job)
    assert runner.recompute(encode_input(job), units, (0,)) != digests


# --- Which token follows ----------------------------------------------------------------------------


def logits(**likely: float) -> Tensor:
    values = torch.zeros(60, dtype=torch.float64)
    for name, value in likely.items():
        values[int(name[1:])] = value
    return values


@pytest.mark.parametrize(
    ("written", "values", "expected"),
    [
        ([], logits(t10=9, t45=2), 45),  # First comes a time.
        ([45], logits(t1=9, t10=3, t46=8), 10),  # Then words, but none that is suppressed.
        ([45, 10], logits(t11=9), 11),
        ([45, 10], logits(t45=9, t46=8), 46),  # Time goes on.
        ([45, 10], logits(t40=5, t12=4), 40),
        ([45, 10], logits(t12=3, **{f"t{token}": 1.0 for token in range(46, 60)}), 46),  # Times together.
        ([45, 10, 46], logits(t10=9, t46=3, t44=8), 46),  # A time ends, the same begins.
        ([45, 10, 46], logits(t10=9, t40=4), 40),
        ([45, 10, 46, 46], logits(t47=9, t10=2), 10),
        ([45, 10, 59, 59], logits(t42=9, t43=9, t10=1), 10),  # Nothing that steers the model.
    ],
)
def test_the_rules_of_times(written: list[int], values: Tensor, expected: int) -> None:
    assert choose(CONFIG, values, written) == expected


# --- What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"model_type": "bert"}, "model_type"),
        ({"d_model": 0}, "d_model=0"),
        ({"d_model": 15}, "must divide d_model=15"),
        ({"eos_token_id": 60}, "eos_token_id=60"),
        ({"suppress_tokens": [-1]}, "suppress_tokens"),
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"prompt_tokens": []}, "prompt_tokens"),
        ({"vocab_size": 44}, "tokens for times"),
    ],
)
def test_configurations_that_break_a_rule(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ModelRefused, match=rule):
        parse_config(FIELDS | change)


@pytest.mark.parametrize(
    ("job", "rule"),
    [
        (TranscribeInput(b"", None, 0, (1,)), "either with the input or as a blob"),
        (TranscribeInput(bytes(3), None, 0, (1,)), "whole samples"),
        (TranscribeInput(bytes(8), None, 0, ()), "0 windows"),
        (TranscribeInput(bytes(8), None, 0, (5,)), "must lie in"),
        (TranscribeInput(bytes(8), None, 0, (3, 3, 4)), "window 1 of 0 samples"),
        (TranscribeInput(bytes(1_000_000), None, 0, (500_000,)), "window 0 of 500000 samples"),
    ],
)
def test_inputs_that_break_a_rule(job: TranscribeInput, rule: str) -> None:
    with pytest.raises(InputRefused, match=rule):
        encode_input(job)


def test_a_recording_that_nobody_brought(runner: Transcriber) -> None:
    blob = MemoryBlobs().write(JOB.samples)
    with pytest.raises(InputRefused, match="isn't here"):
        transcribe(runner, TranscribeInput(b"", blob, 0, JOB.ends))


@pytest.mark.parametrize(("change", "rule"), [("missing", "is missing"), ("shape", "must have")])
def test_weights_that_dont_fit(model_dir: Path, tmp_path: Path, change: str, rule: str) -> None:
    table = whisper_tensors(load_config(model_dir))
    if change == "missing":
        del table["model.encoder.conv1.bias"]
    else:
        table["model.encoder.conv1.bias"] = torch.zeros(3)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((model_dir / name).read_bytes())
    save_file(table, tmp_path / "model.safetensors")
    with pytest.raises(ModelRefused, match=rule):
        Transcriber(tmp_path, "exact14")
