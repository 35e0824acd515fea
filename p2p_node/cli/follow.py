"""Shows a job while it runs: live on a terminal, as plain lines elsewhere; always on stderr.

Stdout is for results, so that a job's text can be piped; it holds only what was verified.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from p2p_node.cli.story import Line, Story, harmless, plural

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["follow", "say"]

_STYLES = {"good": "green", "bad": "bold red", "": ""}


class _Display(Protocol):
    def show(self, story: Story, line: Line | None) -> None: ...


def follow(events: Iterable[Mapping[str, Any]], *, quiet: bool = False, unit: str = "token") -> Story:
    """Show a job's events as they come, and return its story when they end.

    Args:
        events: of one job, from its first.
        quiet: show nothing.
        unit: what one unit of its output is called.
    """
    story = Story(unit=unit)
    if quiet:
        for event in events:
            story.hear(event)
        return story
    with _display() as display:
        for event in events:
            display.show(story, story.hear(event))
    return story


def say(label: str, text: str) -> None:
    """A line of progress that isn't a job's event."""
    click.echo(f"{'':9}  {label:<11} {text}", err=True)


@contextmanager
def _display() -> Iterator[_Display]:
    if not sys.stderr.isatty():
        yield _PlainDisplay()
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    # Gone at the end: by then the text has become a result, or nothing.
    with Live(console=console, transient=True, refresh_per_second=12) as live:
        yield _LiveDisplay(console, live.update)


class _PlainDisplay:
    """One line for each event; text as far as it has come."""

    def __init__(self) -> None:
        self._units = 0
        self._progress = self._phase = ""
        self._tenth = 0

    def show(self, story: Story, line: Line | None) -> None:
        if line is not None:
            click.echo(str(line), err=True)
        elif story.text and story.units > self._units:
            tail = harmless(story.text[-60:]).replace("\n", " ")
            click.echo(f"{'':9}  {plural(story.unit):<11} {story.units}: …{tail}", err=True)
        elif story.phase.text and story.phase.text != self._phase:
            # A log needs no more than tenths.
            tenth = story.phase.done * 10 // max(1, story.phase.total)
            if tenth != self._tenth:
                click.echo(f"{'':9}  {'progress':<11} {story.phase.text}", err=True)
            self._phase, self._tenth = story.phase.text, tenth
        elif story.parts.progress != self._progress:
            self._progress = story.parts.progress
            click.echo(f"{'':9}  {'progress':<11} {self._progress}", err=True)
        self._units = story.units


class _LiveDisplay:
    """Events scroll by, and below them the text grows."""

    def __init__(self, console: Console, update: Any) -> None:
        self._console = console
        self._update = update

    def show(self, story: Story, line: Line | None) -> None:
        from rich.text import Text

        if line is not None:
            self._console.print(Text(str(line), style=_STYLES[line.tone]), soft_wrap=True)
        self._update(self._tail(story))

    def _tail(self, story: Story) -> Text:
        """The end of the text, as much as fits on the screen."""
        from rich.text import Text

        # What isn't text can't be shown here, but that it grows can.
        shown = (
            story.phase.text or story.text or story.parts.progress or f"{story.units} {plural(story.unit)}"
        )
        text = Text(harmless(shown), style="italic")
        lines = text.wrap(self._console, self._console.width)[-(self._console.height // 2) :]
        return Text("\n").join(lines)
