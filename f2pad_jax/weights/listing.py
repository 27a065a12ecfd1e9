"""What the command line says of weights."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from f2pad_jax.weights.loading import WeightStatus

SHOWN = 8  # hexadecimal digits of a digest
_HERE = {"package": "installed", "cache": "imported", "absent": "no"}


def weights_table(found: Iterable[WeightStatus]) -> Table:
    """One line per network: name, megabytes, licence, digest where known, and whether it is here."""
    table = Table(
        caption="f2pad weights fetch NAME, or import NAME FILE, brings what is not here",
        caption_style="dim",
        header_style="bold",
        box=SIMPLE_HEAD,
    )
    table.add_column("name", no_wrap=True)
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("SHA-256", no_wrap=True)
    table.add_column("here", no_wrap=True)
    for status in found:
        known = status.entry
        size = f"{known.size / 1e6:.0f}" if known.size else "?"
        digest = f"{known.sha256[:SHOWN]}…" if known.sha256 else "?"
        table.add_row(known.name, size, known.licence, digest, _HERE[status.origin])
    return table


def describe(status: WeightStatus) -> str:
    """Two lines on weights that are here: licence, digest and what that is good for; where they are."""
    published = status.entry.sha256
    if status.digest is None:
        digest = "not usable"
    elif published and status.digest.startswith(published):
        digest = f"SHA-256 {status.digest}, as published"
    elif published:
        digest = f"SHA-256 {status.digest}, not the published file's"
    else:
        digest = f"SHA-256 {status.digest}, only recorded: none is known to check it by"
    return f"{status.name}: {status.origin}, {status.entry.licence}, {digest}\n    {status.path}"
