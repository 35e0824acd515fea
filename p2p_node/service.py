"""`p2p-node start`: everything one node runs, put together, until it is told to stop."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import structlog
import trio

from p2p_node import networkkey
from p2p_node.accesslists import AccessLists
from p2p_node.admission import fitting, worker_memory_bytes
from p2p_node.blobaccess import StoreBlobs
from p2p_node.blobrights import BlobRights
from p2p_node.blobs import BlobService, BlobStore
from p2p_node.blobs.sealing import opening_key
from p2p_node.blobtasks import BlobTasks
from p2p_node.calibrated import Finding
from p2p_node.catalogue import Catalogue
from p2p_node.config import NodeConfig
from p2p_node.core.keyring import Keyring, RealCrypto
from p2p_node.core.node import Capability, NodeCore
from p2p_node.datadir import DataDir
from p2p_node.errors import UserError
from p2p_node.executor import RUN_OWNER, WorkerExecutor
from p2p_node.finding import Finder
from p2p_node.hostile import hostile_core, worker_variant
from p2p_node.jobs import JobBook
from p2p_node.kernels import find_kernels
from p2p_node.listening import UNIX, host_and_port, loopback_host_and_port
from p2p_node.logs import configure_logging, hide
from p2p_node.models import Served, find_models, model_folders, places_of
from p2p_node.modelshares import ModelShares
from p2p_node.network.delayed import delayed
from p2p_node.network.port import Network, NetworkError
from p2p_node.node import Node, NodeNotes
from p2p_node.offerings import abilities_of
from p2p_node.pausing import Pausing, watch_use
from p2p_node.reachable import Reachable
from p2p_node.records import AddressRecords, recover, tell_earnings
from p2p_node.runtime import Runtime, topic_names
from p2p_node.steps import Steps
from p2p_node.store import Store
from p2p_node.workers import WorkerSettings, readable_places
from p2p_node.workshop import Workshop
from protocols.bidding import Ability
from protocols.digest import tagged
from protocols.identity import peer_id
from protocols.messages import Accelerator
from workloads.registry import PLUGIN_FAULTS

__all__ = ["Options", "is_offered", "run"]

log = structlog.get_logger(__name__)

DRAIN_S = 3
"""Time to close after Ctrl-C; the rest of the promised 5 s is the system's."""


@dataclass(frozen=True, slots=True)
class Options:
    """What tests and local swarms set beyond an operator's configuration."""

    cheat: str = ""
    """How this node deceives, for hostile test peers."""
    latency_ms: int = 0
    """Added to everything that this node sends."""
    measured: dict[str, Any] | None = None
    """What this machine was measured to do; None measures it now."""
    calibrations: Path | None = None
    """Where what it does with each model is kept, for several nodes; None for the data directory."""


def run(config: NodeConfig, place: DataDir, seed: bytes, options: Options | None = None) -> None:
    """Run a node until SIGINT or SIGTERM, and end the process with it.

    Args:
        config: the operator's choices.
        place: a data directory whose lock we hold.
        seed: Ed25519 seed of the node's identity.
        options: for test peers.

    Raises:
        UserError: something the operator must mend, e.g. a port that is taken.
    """
    configure_logging(config.log_format, level=logging.getLevelNamesMapping()[config.log_level.upper()])
    hide(seed)
    try:
        trio.run(_main, config, place, seed, options or Options())
    except BaseExceptionGroup as group:
        fault = _operators_fault(group)
        if fault is None:
            raise
        raise UserError(str(fault)) from group
    # All is closed. To take the interpreter apart would be most of a stop's work, and would free what the
    # system takes back at once.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def is_offered(device: str, choices: tuple[str, ...]) -> bool:
    """Whether an operator's ``--devices`` name a torch device: itself, its kind, or auto for all."""
    return not {"auto", device, device.partition(":")[0]}.isdisjoint(choices)


def wall_clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


async def _main(config: NodeConfig, place: DataDir, seed: bytes, options: Options) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, signals, nursery.cancel_scope)
            await _serve(config, place, seed, options, stop=nursery.cancel_scope.cancel)


def _operators_fault(group: BaseExceptionGroup[BaseException]) -> Exception | None:
    """The first leaf that the operator can mend, if nothing else went wrong."""
    theirs, others = group.split((UserError, NetworkError))
    if theirs is None or others is not None:
        return None
    error: BaseException = theirs
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else None


async def _stop_on_signal(signals: Any, scope: trio.CancelScope) -> None:
    async for number in signals:
        log.info("stopping", signal=signal.Signals(number).name)
        scope.cancel()
        return


async def _serve(
    config: NodeConfig, place: DataDir, seed: bytes, options: Options, *, stop: Callable[[], None]
) -> None:
    started_ms = wall_clock_ms()
    log.debug("starting", datadir=str(place.path), listen=config.listen, devices=config.devices)
    network_key = _network_key(config)
    if config.api is not None and config.api != UNIX:
        loopback_host_and_port(config.api, flag="--api")
    if config.metrics is not None:
        host_and_port(config.metrics, flag="--metrics")
    if not is_offered("cpu", config.devices):
        raise UserError(
            f"--devices {','.join(config.devices)} must include cpu or auto: exact profiles run on the CPU"
        )
    for name, why in PLUGIN_FAULTS.items():
        log.warning("a plug-in can't be used", plugin=name, why=why)
    steps = Steps()
    store = Store.open(place.store)
    with ExitStack() as stack:
        stack.callback(store.close)
        node_notes = NodeNotes()
        blob_store = await trio.to_thread.run_sync(_open_blobs, place, config)
        stack.callback(blob_store.close)
        steps.end("store")
        kernels = await find_kernels()
        steps.end("kernels")
        # Hashing large models takes a while, and signals are to be heard meanwhile.
        served = await trio.to_thread.run_sync(find_models, model_folders(place, config.models))
        steps.end("models")
        memory_bytes = worker_memory_bytes(psutil.virtual_memory().total)
        readable = (*readable_places(places_of(served).values()), blob_store.folder)
        settings = WorkerSettings(kernels=kernels, readable=readable, memory_bytes_max=memory_bytes)
        measured: dict[str, Any] = dict(options.measured or {})
        workshop = Workshop(settings, blob_store, node_notes.worker_died, measured)
        async with trio.open_nursery() as nursery:
            catalogue = Catalogue(
                measure=workshop.calibrate,
                abilities_of=partial(_abilities, config, measured),
                fitting=partial(fitting, worker_bytes=memory_bytes),
                find=lambda: find_models(model_folders(place, config.models)),
            )
            catalogue.take(served)
            models = catalogue.places
            cheat = options.cheat if options.cheat == "withheld-blob" else worker_variant(options.cheat)
            executor = WorkerExecutor(
                workshop.working, workshop.checking, catalogue.by_digest, cheat=cheat, blobs=blob_store
            )
            core = _make_core(config, seed, cheat=options.cheat)
            blobs = BlobService(
                blob_store,
                serve_bytes_per_s=config.blob_serve_bytes_per_s,
                serve_peer_bytes_per_s=config.blob_serve_peer_bytes_per_s,
                addresses_of=lambda key: _addresses(core, key),
                # The book of jobs is made later; nothing is served before.
                may_have=lambda peer, blob: node_notes.may_have(peer, blob),  # noqa: PLW0108
                key=opening_key(seed),
            )
            tasks = BlobTasks(executor, store=blob_store, fetch=blobs.fetch, nursery=nursery)
            runtime = Runtime(core, executor=tasks, keeper=store, clock=wall_clock_ms, on_notify=node_notes)
            async with AsyncExitStack() as links:
                steps.end("core")
                reachable = Reachable(config.relays, listens=bool(config.listen))
                direct = await links.enter_async_context(
                    _network(
                        config,
                        seed,
                        runtime,
                        store,
                        network_key=network_key,
                        is_unreachable=reachable.wants_relays,
                    )
                )
                network: Network = direct
                if options.latency_ms:
                    network = await links.enter_async_context(delayed(network, options.latency_ms))
                core.capability = replace(core.capability, addresses=tuple(network.addresses[:8]))
                steps.end("network")
                book = JobBook(
                    runtime,
                    store,
                    models,
                    clock=wall_clock_ms,
                    blobs=StoreBlobs(blob_store),
                    blob_store=blob_store,
                )
                node_notes.book = book
                steps.end("jobs")
                rights = BlobRights(blob_store, parties=core.parties, jobs_of=book.jobs_of)
                node_notes.may_have = rights.may_have
                pausing = Pausing(("cpu",), runtime.pause)
                shares = ModelShares(blob_store, runtime.share)
                finder = node_notes.finder = Finder(runtime, network)
                core.discovery.directory.is_on = True
                node = Node(
                    config,
                    place,
                    core,
                    runtime,
                    network,
                    store,
                    book,
                    executor,
                    models,
                    measured,
                    started_ms,
                    node_notes.earned,
                    node_notes.activity,
                    stop,
                    pausing,
                    blobs,
                    catalogue,
                    direct.reachability,
                    finder=finder,
                    shares=shares,
                    lists=AccessLists(place.config, direct.admit),
                )

                def on_change(abilities: tuple[Ability, ...]) -> None:
                    book.models_changed()
                    runtime.offer(abilities)

                catalogue.on_change = on_change
                shares.restore()
                _restore(node)
                steps.end("core restored")
                await nursery.start(blobs.run, network)
                await nursery.start(runtime.run, network)
                nursery.start_soon(finder.tell_of_blobs, blob_store)
                nursery.start_soon(book.wholes.run)
                nursery.start_soon(tell_earnings, store, core, node.earned)
                nursery.start_soon(reachable.watch, direct.reachability)
                nursery.start_soon(reachable.follow, lambda: direct.addresses, runtime.move)
                if node.lists is not None:
                    await nursery.start(node.lists.reload_on_hangup)
                if config.idle_only:
                    nursery.start_soon(watch_use, pausing, wall_clock_ms)
                await _serve_http(node, nursery)
                steps.end("api")
                log.info(
                    "node is up",
                    peer=peer_id(core.key),
                    addresses=network.addresses,
                    took_ms=wall_clock_ms() - started_ms,
                    steps_ms=steps.ms,
                )
                nursery.start_soon(_open_workshop, node, workshop, catalogue, options)
                try:
                    await trio.sleep_forever()
                finally:
                    core.provider.is_paused = True
                    with trio.CancelScope(shield=True), trio.move_on_after(DRAIN_S):
                        await network.close()


async def _serve_http(node: Node, nursery: trio.Nursery) -> None:
    if node.config.api is None and node.config.metrics is None:
        return
    # Imported late: a node without an API doesn't pay for one.
    if node.config.api is not None:
        from p2p_node import api

        await nursery.start(api.serve, node, node.config.api)
    if node.config.metrics is not None:
        from p2p_node import metrics

        await nursery.start(metrics.serve_metrics, node, node.config.metrics)


# --- Parts -----------------------------------------------------------------------------------------


def _open_blobs(place: DataDir, config: NodeConfig) -> BlobStore:
    """The store, without the pins of runs that ended with the process before this one."""
    store = BlobStore.open(place.blobs, bytes_max=config.blob_bytes_max, clock=wall_clock_ms)
    for owner in {owner for stored in store.stored() for owner in stored.pins}:
        if owner.startswith(RUN_OWNER):
            store.unpin(owner)
    return store


def _addresses(core: NodeCore, key: bytes) -> tuple[str, ...]:
    """Where a peer says that it can be reached."""
    advert = core.registry.get(key)
    return advert.body.addresses if advert is not None else core.discovery.directory.addresses_of(key)


def _abilities(
    config: NodeConfig, measured: dict[str, Any], served: Served, finding: Finding
) -> list[Ability]:
    kind, model = served
    return abilities_of(
        kind,
        model,
        profiles=finding.profiles,
        rate_milli=finding.rate_milli,
        config=config,
        measured=measured,
    )


def _make_core(config: NodeConfig, seed: bytes, *, cheat: str) -> NodeCore:
    capability = Capability(
        slots_total=1,
        # Half of it: output needs room too, and what others asked for a while ago.
        blob_bytes_max=config.blob_bytes_max // 2,
    )
    make = hostile_core(cheat)
    core = make(
        keys=Keyring(seed),
        crypto=RealCrypto(),
        secret=tagged("p2p-node/node-secret/1", seed),
        network=config.network,
        capability=capability,
        # Only spreads periodic work: seeded by the identity so that peers differ.
        jitter=random.Random(seed),  # noqa: S311
    )
    core.market.elector_age_ms = 1_000 * config.elector_age_s
    return core


async def _open_workshop(node: Node, workshop: Workshop, catalogue: Catalogue, options: Options) -> None:
    """Start the workers, and offer what this machine can do with them."""
    async with trio.open_nursery() as nursery:
        is_exact = await nursery.start(workshop.run, node.place.path)
        node.core.capability = _measured(node.core.capability, node.config, workshop.measured)
        node.pausing.know(_devices(node.config, workshop.measured))
        log.info("workers are ready", took_ms=wall_clock_ms() - node.started_ms)
        catalogue.open(workshop.findings(options.calibrations or node.place.calibrations, is_exact=is_exact))
        await catalogue.run()


def _measured(capability: Capability, config: NodeConfig, measured: dict[str, Any]) -> Capability:
    return replace(
        capability,
        software=f"p2p-node torch {measured['torch']}",
        cores=measured["cores"],
        ram_bytes=measured["memory_bytes"],
        gemm_fp32_mflops=measured["gemm_fp32_mflops"],
        gemm_bf16_mflops=measured["gemm_bf16_mflops"],
        memory_mib_per_s=measured["memory_mib_s"],
        disk_mib_per_s=measured["disk_mib_s"],
        accelerators=tuple(
            Accelerator(device["device"], device["name"], device["memory_bytes"])
            for device in measured["accelerators"]
            if is_offered(device["device"], config.devices)
        ),
    )


def _devices(config: NodeConfig, measured: dict[str, Any]) -> list[str]:
    """Torch names of what this node offers."""
    there = ["cpu", *(device["device"] for device in measured["accelerators"])]
    return [device for device in there if is_offered(device, config.devices)]


def _network(
    config: NodeConfig,
    seed: bytes,
    runtime: Runtime,
    store: Store,
    *,
    network_key: bytes | None,
    is_unreachable: Callable[[], bool],
) -> Any:
    # Imported late: libp2p takes over a second.
    from p2p_node.network.libp2p import open_network

    return open_network(
        seed=seed,
        listen=list(config.listen),
        topics=topic_names(config.network),
        rule=runtime.rule,
        network_name=config.network,
        bootstrap=list(config.bootstrap),
        address_book=AddressRecords(store, wall_clock_ms),
        mdns=config.mdns,
        jitter=random.Random(seed),  # noqa: S311
        clock=wall_clock_ms,
        access=config.access,
        network_key=network_key,
        relay=config.relay,
        is_unreachable=is_unreachable,
    )


def _network_key(config: NodeConfig) -> bytes | None:
    if config.network_key_path is None:
        return None
    key = networkkey.load(config.network_key_path)
    hide(key)
    return key


def _restore(node: Node) -> None:
    store = node.store
    acts = recover(store, node.core, wall_clock_ms())
    node.runtime.perform(acts)
