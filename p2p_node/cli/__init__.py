"""The command line.

Only click is imported here; each command's module is imported when it is run, so that `--help`
answers at once. To add a command, write a module beside this one and name it in `COMMANDS`.
"""

from __future__ import annotations

import sys
from importlib import import_module, metadata

import click

from p2p_node.errors import UserError

__all__ = ["LazyCommand", "LazyGroup", "cli", "main"]


class LazyCommand:
    """Where a command lies (``module:attribute``) and what it does, in one line."""

    def __init__(self, target: str, summary: str) -> None:
        self.target = target
        self.summary = summary

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self.target.partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.target} must be a click command, got {type(command).__name__}")
        return command


class LazyGroup(click.Group):
    """A group that imports a command only when it is called, and lists them all without."""

    def __init__(self, *args: object, lazy: dict[str, LazyCommand], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order given."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now."""
        entry = self.lazy.get(cmd_name)
        return entry.load() if entry else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.lazy.items()])


COMMANDS = {
    "init": LazyCommand("p2p_node.cli.init:init", "Make this node's identity."),
    "id": LazyCommand("p2p_node.cli.identity:show_id", "Print this node's peer id and key."),
    "network-key": LazyCommand("p2p_node.cli.network_key:network_key", "Make the key of a private network."),
    "start": LazyCommand("p2p_node.cli.start:start", "Run the node until Ctrl-C."),
    "status": LazyCommand("p2p_node.cli.status:status", "Show what the running node is, has and does."),
    "doctor": LazyCommand("p2p_node.cli.doctor:doctor", "Say what this machine can do and is safe from."),
    "pause": LazyCommand("p2p_node.cli.pause:pause", "Take the machine back from the network."),
    "resume": LazyCommand("p2p_node.cli.pause:resume", "Give the machine to the network again."),
    "reload": LazyCommand("p2p_node.cli.reload:reload", "Read the lists of peers and addresses again."),
    "peers": LazyCommand("p2p_node.cli.peers:peers", "Show the peers that the running node knows."),
    "job": LazyCommand("p2p_node.cli.job:job", "Run jobs, follow them, check their receipts."),
    "verify": LazyCommand("p2p_node.cli.verify:verify", "Print what checking is worth."),
    "program": LazyCommand("p2p_node.cli.program:program", "Check graphs of your own before a job."),
    "model": LazyCommand("p2p_node.cli.model:model", "List the models on this machine, and calibrate them."),
    "blob": LazyCommand("p2p_node.cli.blob:blob", "Move and keep large content."),
    "store": LazyCommand("p2p_node.cli.store:store", "Mend what the node remembers, if it is damaged."),
    "swarm": LazyCommand("p2p_node.cli.swarm:swarm", "Run many peers on this machine, to try things."),
}


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"p2p-node {metadata.version('p2p-node')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """Verified AI compute, peer to peer: run a node, or have a job done by others and check it."""


def main() -> None:
    """The program ``p2p-node``: run a command, explain what the user can mend, exit with its code."""
    try:
        cli.main(prog_name="p2p-node")
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
