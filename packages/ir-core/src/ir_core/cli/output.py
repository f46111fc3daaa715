# SPDX-License-Identifier: Apache-2.0
"""Where things are printed: data on stdout, talk on stderr, colours and progress only on a terminal."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from ir_core.errors import IrError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH: Final = 160
"""Columns of a table that goes to a pipe or a file, where there is no terminal to ask; COLUMNS overrides it."""


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


ends_with_its_pipe = False
"""Whether this process is the command line's own: it may then end, as others do, when its reader has gone."""


def _mind_the_pipe() -> None:
    """From now on, writing into a pipe without a reader ends the process without a word (exit code 141)."""
    if ends_with_its_pipe and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def out() -> Console:
    """The console for data."""
    _mind_the_pipe()
    return _console(sys.stdout)


def talk() -> Console:
    """The console for everything that is not data."""
    return _console(sys.stderr)


def print_json(data: Any) -> None:
    """Print data as JSON on stdout."""
    _mind_the_pipe()
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


class UndeliveredError(IrError, OSError):
    """Standard output takes no more data."""


@contextlib.contextmanager
def delivered() -> Iterator[None]:
    """Make sure that what the block printed has arrived: a full disk is an error, not a lost result.

    Raises:
        UndeliveredError: it has not; what is left is thrown away.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if isinstance(error, IrError) or error.errno not in _FULL:
            raise
        with contextlib.suppress(OSError, ValueError):  # else the end of the process would try once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UndeliveredError(
            "Standard output cannot be written.",
            why=f"{error.strerror or error}.",
            fix="Print into another file, or make room.",
        ) from error


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


class _FileError(IrError, OSError):
    pass


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which file it was when the block cannot write one.

    Raises:
        IrError: it cannot be written (also an ``OSError``).
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise _FileError(f"{path} cannot be written.", why=f"{why}.", fix="Name another place.") from error


def check_folder(path: Path) -> None:
    """Say before the work, not after it, that there is no folder to save ``path`` in.

    Raises:
        IrError: there is none (also an ``OSError``).
    """
    with writing(path):
        os.stat(path.absolute().parent)


def write_json(path: Path, data: Any) -> None:
    """Save data as JSON.

    Raises:
        IrError: the file cannot be written (also an ``OSError``).
    """
    with writing(path):
        path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")


def note(text: str) -> None:
    """Say something on stderr."""
    talk().print(text, style="dim", markup=False)


def show_error(error: IrError, *, as_json: bool) -> None:
    """Print what happened, why, and what to do next, on stderr; with ``as_json`` also as data on stdout."""
    console = talk()
    console.print(f"error: {error.what}", style="bold red", markup=False)
    for part in (error.why, error.fix):
        if part:
            console.print(part, markup=False)
    if as_json:
        kind = type(error).__name__
        print_json({"error": {"type": kind, "what": error.what, "why": error.why, "fix": error.fix}})


def table(
    *columns: str, title: str = "", rows: Iterable[Iterable[object]] = (), unbroken: Sequence[str] = ()
) -> Table:
    """A table, at least as wide as its title. Cells are shown as they are, without markup.

    Args:
        unbroken: columns whose cells stay in one line however narrow the terminal is.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, min_width=len(title) or None)
    if title:
        made.title, made.title_justify, made.title_style = Text(title), "left", "bold"
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=column in unbroken)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made


def styled(text: str, style: str) -> Any:
    """A cell with a style, which shows on a terminal only."""
    from rich.text import Text

    return Text(text, style=style)


def yes_no(value: bool) -> Any:
    """A cell that says yes or no."""
    return styled("yes", "green") if value else styled("no", "red")


@contextlib.contextmanager
def progress(total: int | None, doing: str = "") -> Iterator[Callable[..., None]]:
    """A progress bar on stderr while the block runs, if stderr is a terminal.

    Yields:
        ``advance(doing="", steps=1)``: name what comes next and move the bar on.
    """
    if not sys.stderr.isatty():
        yield lambda doing="", steps=1: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=talk(), transient=True) as bar:
        task = bar.add_task(doing, total=total)

        def advance(doing: str = "", steps: int = 1) -> None:
            bar.update(task, advance=steps, description=doing or None)

        yield advance
