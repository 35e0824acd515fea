"""The file that holds the identity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from p2p_node import keystore
from p2p_node.keystore import KeystoreError, WrongPassphrase

SEED = bytes(range(32))
CHEAP = 4


def encrypted(path: Path) -> keystore.Identity:
    return keystore.create(path, "correct horse", seed=SEED, scrypt_log2_n=CHEAP)


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_what_is_written_is_read(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "keystore.json"
    made = keystore.create(path, passphrase, scrypt_log2_n=CHEAP)
    assert keystore.load(path, passphrase) == made
    assert keystore.public_key(path) == made.public == bytes(SigningKey(made.seed).verify_key)
    assert keystore.is_encrypted(path) == (passphrase is not None)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["keystore.json"]


def test_the_default_cost_opens_too(tmp_path: Path) -> None:
    path = tmp_path / "keystore.json"
    made = keystore.create(path, "correct horse")
    assert json.loads(path.read_text())["scrypt_log2_n"] == keystore.SCRYPT_LOG2_N
    assert keystore.load(path, "correct horse") == made


def test_two_nodes_differ(tmp_path: Path) -> None:
    first = keystore.create(tmp_path / "a", None)
    second = keystore.create(tmp_path / "b", None)
    assert first.seed != second.seed


def test_an_encrypted_file_does_not_hold_the_seed(tmp_path: Path) -> None:
    encrypted(tmp_path / "keystore.json")
    content = (tmp_path / "keystore.json").read_bytes()
    assert SEED.hex().encode() not in content
    assert SEED not in content


def test_the_node_secret_is_bound_to_the_seed_and_is_not_it(tmp_path: Path) -> None:
    one = keystore.create(tmp_path / "a", None, seed=SEED)
    other = keystore.create(tmp_path / "b", None, seed=bytes(32))
    assert one.node_secret == keystore.load(tmp_path / "a").node_secret
    assert len({one.node_secret, other.node_secret, one.seed, one.public}) == 4


def test_a_log_line_does_not_show_the_seed(tmp_path: Path) -> None:
    assert SEED.hex() not in repr(encrypted(tmp_path / "keystore.json"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keystore.json"
    made = encrypted(path)
    with pytest.raises(KeystoreError, match="never overwritten"):
        keystore.refuse_existing(path)
    with pytest.raises(KeystoreError, match="never overwritten"):
        keystore.create(path, None)
    assert keystore.load(path, "correct horse") == made
    assert [entry.name for entry in tmp_path.iterdir()] == ["keystore.json"]


def test_a_wrong_passphrase_is_named(tmp_path: Path) -> None:
    encrypted(tmp_path / "keystore.json")
    with pytest.raises(WrongPassphrase, match="does not open"):
        keystore.load(tmp_path / "keystore.json", "incorrect horse")


def test_a_missing_passphrase_is_asked_for(tmp_path: Path) -> None:
    encrypted(tmp_path / "keystore.json")
    with pytest.raises(KeystoreError, match="--password-file or P2P_NODE_PASSPHRASE"):
        keystore.load(tmp_path / "keystore.json")


def test_an_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeystoreError, match="must not be empty"):
        keystore.create(tmp_path / "keystore.json", "")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(KeystoreError, match="run: p2p-node init"):
        keystore.load(tmp_path / "keystore.json")


@pytest.mark.parametrize("field", ["public_key", "salt", "nonce", "ciphertext"])
def test_a_changed_field_is_found(tmp_path: Path, field: str) -> None:
    path = tmp_path / "keystore.json"
    encrypted(path)
    content = json.loads(path.read_text())
    content[field] = ("1" if content[field][0] == "0" else "0") + content[field][1:]
    path.write_text(json.dumps(content))
    with pytest.raises(WrongPassphrase):
        keystore.load(path, "correct horse")


def test_a_changed_plain_seed_is_found(tmp_path: Path) -> None:
    path = tmp_path / "keystore.json"
    keystore.create(path, None, seed=SEED)
    path.write_text(path.read_text().replace(SEED.hex(), bytes(32).hex()))
    with pytest.raises(KeystoreError, match="do not belong together"):
        keystore.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"cipher": "rot13"},
        {"scrypt_log2_n": 40},
        {"scrypt_log2_n": 0},
        {"ciphertext": "00"},
        {"comment": "hello"},
    ],
)
def test_a_file_that_breaks_the_format_is_explained(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "keystore.json"
    encrypted(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(KeystoreError, match="is not a keystore, or is damaged"):
        keystore.load(path, "correct horse")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"x" * 5_000])
def test_bytes_that_are_no_keystore_are_explained(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keystore.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeystoreError, match="is not a keystore"):
        keystore.load(path)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keystore.json"
    keystore.create(path, None)
    path.chmod(0o644)
    with pytest.raises(KeystoreError, match=r"mode 0644.*chmod 600"):
        keystore.load(path)
