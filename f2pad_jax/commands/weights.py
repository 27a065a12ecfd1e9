"""The command about published weights."""

from __future__ import annotations

import argparse

from f2pad_jax import report
from f2pad_jax.commands.telling import DONE, UNUSABLE, complain
from f2pad_jax.errors import InputError
from f2pad_jax.startup import check_devices
from f2pad_jax.weights import fetch_weights, import_weights, list_weights, verify_weights
from f2pad_jax.weights.listing import describe, weights_table
from f2pad_jax.weights.weight_files import check_readable


def run_weights(arguments: argparse.Namespace) -> int:
    """Lists, fetches, imports or checks weights."""
    if arguments.action == "list":
        report.Terminal().print(weights_table(list_weights()))
        return DONE
    if arguments.action == "import":
        check_readable(arguments.file)
    check_devices()
    match arguments.action:
        case "fetch":
            found = (fetch_weights(arguments.name),)
        case "import":
            found = (import_weights(arguments.name, arguments.file, sha256=arguments.sha256),)
        case _:
            found = tuple(status for status in verify_weights() if status.origin != "absent")
    for status in found:
        print(describe(status))
    broken = [status for status in found if status.problem]
    for status in broken:
        complain(InputError(str(status.problem)))
    return UNUSABLE if broken else DONE
