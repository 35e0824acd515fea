"""`p2p-node start`."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import click

from p2p_node.cli.options import datadir_option, models_option, passphrase, password_file_option

__all__ = ["start"]


@click.command(short_help="Run the node until Ctrl-C.")
@datadir_option
@password_file_option
@click.option(
    "--listen", multiple=True, metavar="MULTIADDR", help="Where peers reach us, e.g. /ip4/0.0.0.0/tcp/4150."
)
@click.option(
    "--bootstrap", multiple=True, metavar="MULTIADDR", help="Peer to dial first, ending in /p2p/<peer id>."
)
@click.option("--network", metavar="NAME", help="Network to join.")
@click.option(
    "--network-key",
    type=click.Path(dir_okay=False, resolve_path=True, path_type=Path),
    help="File with the key of a private network.",
)
@click.option("--devices", metavar="LIST", help="Torch devices to offer, by commas: auto, cpu, cuda:0, …")
@models_option
@click.option("--price", type=int, metavar="MICROS", help="Asked for one output unit, in micro-units.")
@click.option("--api", metavar="HOST:PORT", help="Where the local API listens: unix for a socket, or off.")
@click.option("--metrics", metavar="HOST:PORT", help="Where Prometheus reads metrics; off turns them off.")
@click.option("--log-format", type=click.Choice(["console", "json"]), help="Form of the log on stderr.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    envvar="P2P_NODE_LOG_LEVEL",
    show_envvar=True,
    help="The least severe that is logged.",
)
@click.option(
    "--idle-only/--always", default=None, help="Work for others only while nobody uses the machine."
)
@click.option(
    "--relay/--no-relay",
    default=None,
    envvar="P2P_NODE_RELAY",
    show_envvar=True,
    help="Relay for peers that can't be reached.",
)
@click.option("--mdns/--no-mdns", default=None, help="Find peers on the local network.")
# What local swarms of test peers set; see p2p_node.swarm.
@click.option("--cheat", default="", hidden=True)
@click.option("--latency-ms", type=click.IntRange(0, 60_000), default=0, hidden=True)
@click.option("--measured", type=click.Path(path_type=Path), hidden=True)
@click.option("--calibrations", type=click.Path(path_type=Path), hidden=True)
@click.option("--parent", type=int, hidden=True)
def start(
    *,
    datadir: Path | None,
    password_file: Path | None,
    listen: tuple[str, ...],
    bootstrap: tuple[str, ...],
    network: str | None,
    network_key: Path | None,
    devices: str | None,
    models: tuple[Path, ...],
    price: int | None,
    api: str | None,
    metrics: str | None,
    log_format: str | None,
    log_level: str | None,
    idle_only: bool | None,
    relay: bool | None,
    mdns: bool | None,
    cheat: str,
    latency_ms: int,
    measured: Path | None,
    calibrations: Path | None,
    parent: int | None,
) -> None:
    """Run the node until Ctrl-C or SIGTERM.

    Flags win over config.toml in the data directory.
    """
    if parent is not None:
        from workloads.lockdown import die_with_parent

        die_with_parent(parent, signal.SIGTERM)
    from p2p_node import keystore
    from p2p_node.config import load_config
    from p2p_node.datadir import DataDir
    from p2p_node.package_names import refuse_foreign_packages

    refuse_foreign_packages()
    place = DataDir.open(datadir)
    config = load_config(
        place.config,
        {
            "listen": listen or None,
            "bootstrap": bootstrap or None,
            "network": network,
            "network_key": str(network_key) if network_key is not None else None,
            "devices": devices.split(",") if devices is not None else None,
            "models": [str(folder) for folder in models] or None,
            "price_micros": price,
            "api": api,
            "metrics": metrics,
            "log_format": log_format,
            "log_level": log_level,
            "idle_only": idle_only,
            "relay": relay,
            "mdns": mdns,
        },
    )
    with place.lock():
        secret = passphrase(password_file) if keystore.is_encrypted(place.keystore) else None
        identity = keystore.load(place.keystore, secret)
        from p2p_node import service

        options = service.Options(
            cheat=cheat,
            latency_ms=latency_ms,
            measured=json.loads(measured.read_bytes()) if measured is not None else None,
            calibrations=calibrations,
        )
        service.run(config, place, identity.seed, options)
