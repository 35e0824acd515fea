"""What an operator chooses: `config.toml` in the data directory, overridden by flags.

The file is closed: a key that is not a setting is refused with its line, since a misspelt
``price_micros`` would otherwise sell work at the default price.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from p2p_node.errors import UserError
from p2p_node.network.access import PeerAccess, access_of
from p2p_node.network.relaypolicy import RelayPolicy
from protocols import limits

__all__ = ["ConfigError", "NodeConfig", "load_config"]

_FILE_BYTES_MAX = 64 * 1024
_LISTS = ("allow_peers", "deny_peers", "allow_addresses", "deny_addresses")

_Multiaddr = Annotated[str, Meta(pattern=r"^/(ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/[0-9]{1,5}$", max_length=256)]
_PeerMultiaddr = Annotated[
    str, Meta(pattern=r"^/(ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/[0-9]{1,5}/p2p/12D3Koo\w+$", max_length=320)
]
_PeerId = Annotated[str, Meta(pattern=r"^12D3Koo\w+$", max_length=64)]
_HostPort = Annotated[str, Meta(pattern=r"^(\[[0-9a-fA-F:.]+\]|[^:/\s]+):[0-9]{1,5}$")]
_ApiPlace = Annotated[str, Meta(pattern=r"^(unix|(\[[0-9a-fA-F:.]+\]|[^:/\s]+):[0-9]{1,5})$")]
_Profile = Literal["exact14", "exact21", "homogeneous", "native"]
_Folder = Annotated[str, Meta(pattern=r"^[/~]", max_length=4_096)]
_Device = Annotated[str, Meta(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:[0-9]+)?)$")]


class ConfigError(UserError):
    """A setting is unknown or breaks its rule."""


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one node."""

    listen: tuple[_Multiaddr, ...] = ("/ip4/0.0.0.0/tcp/4150",)
    """Where peers reach us; port 0 lets the system choose."""
    bootstrap: tuple[_PeerMultiaddr, ...] = ()
    """Peers to dial first, each with its /p2p/ id."""
    network: Annotated[
        str, Meta(pattern="^[a-z0-9][a-z0-9-]*$", max_length=limits.NETWORK_NAME_BYTES_MAX)
    ] = "main"
    """Peers of different networks don't hear each other."""
    network_key: _Folder | None = None
    """File with the key of a private network, from p2p-node network-key; absolute, or beginning with ~."""
    allow_peers: tuple[_PeerId, ...] = ()
    """If there are any, nobody else may connect, nor is dialled."""
    deny_peers: tuple[_PeerId, ...] = ()
    """Who may not connect and isn't dialled, whatever is allowed."""
    allow_addresses: tuple[str, ...] = ()
    """IP addresses or ranges such as 192.0.2.0/24: if there are any, no others."""
    deny_addresses: tuple[str, ...] = ()
    """IP addresses or ranges that are kept out, whatever is allowed."""
    devices: Annotated[tuple[_Device, ...], Meta(min_length=1)] = ("auto",)
    """Torch devices to offer: auto, cpu, cuda, cuda:0, … Exact profiles need the CPU among them."""
    models: tuple[_Folder, ...] = ()
    """Directories with models to offer beside the built-in ones; absolute, or beginning with ~."""
    price_micros: Annotated[int, Meta(ge=0, le=limits.PRICE_MICROS_MAX)] = 100
    """What we ask for one output unit."""
    profile_percent: dict[_Profile, Annotated[int, Meta(ge=0, le=10_000)]] = msgspec.field(
        default_factory=dict
    )
    """What we ask in a numerics profile, in percent of ``price_micros``; see `p2p_node.offerings`."""
    elector_age_s: Annotated[int, Meta(ge=0, le=30 * 86_400)] = 0
    """How long a key must have been known before it may be drawn to verify our jobs."""
    blob_bytes_max: Annotated[int, Meta(ge=64 * 1024**2, le=2**50)] = 16 * 1024**3
    """Room for blobs: what jobs read and leave. The longest unused go first."""
    blob_serve_bytes_per_s: Annotated[int, Meta(ge=64 * 1024, le=2**40)] = 128 * 1024**2
    """What peers may draw from us, all together."""
    blob_serve_peer_bytes_per_s: Annotated[int, Meta(ge=64 * 1024, le=2**40)] = 64 * 1024**2
    """And each of them."""
    share_pulled: bool = False
    """Whether models that were pulled from peers are given to others, too; see p2p-node model pull."""
    api: _ApiPlace | None = "127.0.0.1:4151"
    """Local HTTP API as host:port, port 0 lets the system choose; or unix, for a socket in the data
    directory; None turns it off."""
    metrics: _HostPort | None = None
    """Prometheus metrics as host:port; None turns them off."""
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    idle_only: bool = False
    """Whether to work for others only while nobody uses the machine; see `p2p_node.pausing`."""
    relay: RelayPolicy = RelayPolicy()
    """What to give to peers that can't be reached; a table."""
    relays: Literal["auto", "always", "never"] = "auto"
    """Whether to be reached through others' relays; auto: if no peer that dialled back got through."""
    mdns: bool = True
    """Whether to find peers on the local network by multicast."""

    @property
    def network_key_path(self) -> Path | None:
        """Where the network's key is, if it has one."""
        return None if self.network_key is None else Path(self.network_key).expanduser()

    @property
    def access(self) -> PeerAccess:
        """The lists of peers and addresses.

        Raises:
            ValueError: an entry is none; `load_config` has seen to it.
        """
        return access_of(**{name: getattr(self, name) for name in _LISTS})


def load_config(path: Path, flags: Mapping[str, Any]) -> NodeConfig:
    """Settings from ``flags``, else from the file at ``path`` if there is one, else the defaults.

    Args:
        path: a TOML file; it may be absent.
        flags: settings by name; None means that the flag was not given.

    Raises:
        ConfigError: a setting is unknown or breaks its rule, or the file can't be read.
    """
    content, settings = _read(path)
    _validated(settings, where=str(path), content=content)
    given = _without_off({name: value for name, value in flags.items() if value is not None})
    if "relay" in given:
        # A flag says only whether; how much is the file's.
        given["relay"] = settings.get("relay", {}) | {"volunteer": given["relay"]}
    return _validated(settings | given, where="flag", content="")


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return "", {}
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    if len(raw) > _FILE_BYTES_MAX:
        raise ConfigError(f"{path} has more than {_FILE_BYTES_MAX} bytes")
    try:
        content = raw.decode("utf-8")
        settings = tomllib.loads(content)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    return content, _without_off(settings)


def _without_off(settings: dict[str, Any]) -> dict[str, Any]:
    """``off`` is how a file or a flag says None for an address."""
    return {
        name: None if name in ("api", "metrics") and value == "off" else value
        for name, value in settings.items()
    }


def _validated(settings: dict[str, Any], *, where: str, content: str) -> NodeConfig:
    known = NodeConfig.__struct_fields__
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}{_line(content, name)}: {name} is not a setting; {hint}")
    for name, value in settings.items():
        try:
            # One at a time, so that the message names the one at fault.
            msgspec.convert({name: value}, NodeConfig)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"{where}{_line(content, name)}: {name}: {_rule(str(error), name)}, got {value!r}"
            ) from None
    for name in _LISTS:
        try:
            access_of(**{name: settings.get(name, ())})
        except ValueError as error:
            raise ConfigError(f"{where}{_line(content, name)}: {name}: {error}") from None
    return msgspec.convert(settings, NodeConfig)


def _line(content: str, name: str) -> str:
    match = re.search(rf"^[ \t]*\[*[ \t]*[\"']?{re.escape(name)}[\"']?[ \t]*[=.\]]", content, re.MULTILINE)
    return f":{content.count(chr(10), 0, match.start()) + 1}" if match else ""


def _rule(message: str, name: str) -> str:
    return message.replace(f" - at `$.{name}`", "").replace(f"`$.{name}", f"`{name}")
