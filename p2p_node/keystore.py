"""The file that holds a node's identity: an Ed25519 seed, encrypted or plain.

The file is JSON with a version. An encrypted one derives its key from the passphrase by scrypt
and seals the seed with ChaCha20-Poly1305; everything else in the file is authenticated with it,
so a changed parameter or public key reads as a wrong passphrase, never as another identity.
A keystore is never overwritten: a lost key is lost history and lost earnings.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from msgspec import Meta

from p2p_node.errors import UserError
from protocols.digest import tagged

__all__ = [
    "SEED_BYTES",
    "Identity",
    "KeystoreError",
    "WrongPassphrase",
    "create",
    "is_encrypted",
    "load",
    "public_key",
    "refuse_existing",
]

SEED_BYTES = 32
SCRYPT_LOG2_N = 17
"""Work of one guess at the passphrase: 128 MiB and some tenths of a second."""

_SCRYPT_LOG2_N_MAX = 20
_SCRYPT_R = 8
_SALT_BYTES = 16
_NONCE_BYTES = 12
_FILE_BYTES_MAX = 4_096
_VERSION: Final = 1

_Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class KeystoreError(UserError):
    """The keystore is missing, present where it must not be, damaged or exposed."""


class WrongPassphrase(KeystoreError):
    """The passphrase doesn't open the keystore, or the file was changed."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node is: a secret seed and the public key that names it."""

    seed: bytes
    public: bytes

    @property
    def node_secret(self) -> bytes:
        """32 secret bytes for commitment salts, bound to the seed yet telling nothing about it."""
        return tagged("p2p-node/node-secret/1", self.seed)

    def __repr__(self) -> str:
        return f"Identity(public={self.public.hex()})"


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="cipher"):
    version: Literal[1]
    public_key: _Hex32


class _Encrypted(_Content, frozen=True, tag="chacha20-poly1305", kw_only=True):
    scrypt_log2_n: Annotated[int, Meta(ge=1, le=_SCRYPT_LOG2_N_MAX)]
    salt: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    nonce: Annotated[str, Meta(pattern="^[0-9a-f]{24}$")]
    ciphertext: Annotated[str, Meta(pattern="^[0-9a-f]{96}$")]


class _Plain(_Content, frozen=True, tag="none", kw_only=True):
    seed: _Hex32


def create(
    path: Path, passphrase: str | None, *, seed: bytes | None = None, scrypt_log2_n: int = SCRYPT_LOG2_N
) -> Identity:
    """Make an identity and write it to ``path`` with mode 0600.

    Args:
        path: where nothing may be yet.
        passphrase: what encrypts the seed, or None to store it plain.
        seed: 32 bytes, or None to draw them.
        scrypt_log2_n: base-2 logarithm of scrypt's cost.

    Raises:
        KeystoreError: there is a file already, the passphrase is empty, or the disk refuses.
        ValueError: the seed isn't 32 bytes.
    """
    if passphrase == "":
        raise KeystoreError("the passphrase must not be empty; use --no-passphrase to store the key plain")
    identity = _identity(secrets.token_bytes(SEED_BYTES) if seed is None else seed)
    content = (
        _Plain(version=_VERSION, public_key=identity.public.hex(), seed=identity.seed.hex())
        if passphrase is None
        else _encrypt(identity, passphrase, scrypt_log2_n)
    )
    _write_new(path, msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    return identity


def load(path: Path, passphrase: str | None = None) -> Identity:
    """Read the identity in ``path``.

    Raises:
        WrongPassphrase: it is encrypted, and not with this passphrase.
        KeystoreError: it is missing, damaged, readable by others, or needs a passphrase.
    """
    content = _read(path)
    match content:
        case _Plain():
            seed = bytes.fromhex(content.seed)
        case _Encrypted():
            if passphrase is None:
                raise KeystoreError(
                    f"{path} is encrypted; give its passphrase by --password-file or P2P_NODE_PASSPHRASE"
                )
            seed = _decrypt(content, path, passphrase)
    identity = _identity(seed)
    if identity.public.hex() != content.public_key:
        raise KeystoreError(f"{path} is damaged: its seed and its public_key do not belong together")
    return identity


def public_key(path: Path) -> bytes:
    """The public key that ``path`` states, without its passphrase.

    Raises:
        KeystoreError: as `load`.
    """
    return bytes.fromhex(_read(path).public_key)


def refuse_existing(path: Path) -> None:
    """Check that ``path`` is free for a new keystore, as `create` will.

    Raises:
        KeystoreError: something is there.
    """
    if path.exists():
        raise _exists(path)


def is_encrypted(path: Path) -> bool:
    """Whether `load` will need a passphrase.

    Raises:
        KeystoreError: as `load`.
    """
    return isinstance(_read(path), _Encrypted)


def _identity(seed: bytes) -> Identity:
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, got {len(seed)}")
    return Identity(seed, Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())


def _encrypt(identity: Identity, passphrase: str, scrypt_log2_n: int) -> _Encrypted:
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    header = _Encrypted(
        version=_VERSION,
        public_key=identity.public.hex(),
        scrypt_log2_n=scrypt_log2_n,
        salt=salt.hex(),
        nonce=nonce.hex(),
        ciphertext="",
    )
    sealed = _cipher(header, passphrase).encrypt(nonce, identity.seed, _authenticated(header))
    return msgspec.structs.replace(header, ciphertext=sealed.hex())


def _decrypt(content: _Encrypted, path: Path, passphrase: str) -> bytes:
    try:
        return _cipher(content, passphrase).decrypt(
            bytes.fromhex(content.nonce), bytes.fromhex(content.ciphertext), _authenticated(content)
        )
    except InvalidTag:
        raise WrongPassphrase(f"the passphrase does not open {path}, or the file was changed") from None


def _cipher(header: _Encrypted, passphrase: str) -> ChaCha20Poly1305:
    kdf = Scrypt(salt=bytes.fromhex(header.salt), length=32, n=2**header.scrypt_log2_n, r=_SCRYPT_R, p=1)
    return ChaCha20Poly1305(kdf.derive(passphrase.encode()))


def _authenticated(header: _Encrypted) -> bytes:
    return tagged(
        "p2p-node/keystore/1",
        header.version.to_bytes(4, "little"),
        bytes.fromhex(header.public_key),
        header.scrypt_log2_n.to_bytes(4, "little"),
        bytes.fromhex(header.salt),
    )


def _exists(path: Path) -> KeystoreError:
    return KeystoreError(
        f"{path} exists, and a keystore is never overwritten; move it away, or choose another --datadir"
    )


def _write_new(path: Path, content: bytes) -> None:
    # Written aside and linked into place: the name appears with the whole content, or not at all.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.link(draft, path)
        finally:
            draft.unlink()
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise KeystoreError(f"can't write {path}: {error.strerror}") from error


def _read(path: Path) -> _Encrypted | _Plain:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise KeystoreError(f"there is no identity at {path}; run: p2p-node init") from None
    except OSError as error:
        raise KeystoreError(f"can't read {path}: {error.strerror}") from error
    if mode & 0o077:
        raise KeystoreError(
            f"{path} has mode {mode:04o}, and only its owner may read it; run: chmod 600 {path}"
        )
    if len(raw) > _FILE_BYTES_MAX:
        raise KeystoreError(f"{path} is not a keystore: it has more than {_FILE_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(raw, type=_Encrypted | _Plain)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise KeystoreError(f"{path} is not a keystore, or is damaged: {error}") from None
