"""Runs a benchmark: `python benchmarks/run.py --list`, `python benchmarks/run.py NAME [--json FILE]`."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import extractor_vs_torch
import jax
import lane_waste
import pytorch_loop
import scaling
import sharing
import step_ratio
from options import Options

from f2pad_jax.errors import InputError
from f2pad_jax.output import write_json

BENCHMARKS = {
    "step_ratio": step_ratio.cases,
    "extractor_vs_torch": extractor_vs_torch.cases,
    "pytorch_loop": pytorch_loop.cases,
    "lane_waste": lane_waste.cases,
    "sharing": sharing.cases,
    "scaling": scaling.cases,
}
PACKAGES = ("f2pad-jax", "jax", "jaxlib", "numpy", "torch")


def versions() -> dict[str, str]:
    """Those of Python and of the packages that matter to a time."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """The first device, as a reader knows it."""
    device = jax.devices()[0]
    return f"cpu, {os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind


def _facts() -> dict[str, Any]:
    """What every case says about itself unless it knows better."""
    precision = jax.config.jax_default_matmul_precision or "default"  # pyright: ignore[reportAttributeAccessIssue]
    return {"device": device_name(), "jaxlib": version("jaxlib"), "precision": precision, "batch": 1}


def _line(case: dict) -> str:
    labels = " ".join(str(v) for k, v in case.items() if isinstance(v, str | int) and k != "ratio")
    spread = f"{case['min_s'] * 1e3:.1f} to {case['max_s'] * 1e3:.1f}"
    return f"{labels}: {case['median_s'] * 1e3:.1f} ms ({spread}), ratio {case['ratio']:.2f}"


def main(arguments: list[str] | None = None) -> int:
    """Runs one benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Benchmarks of f2pad_jax.")
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of ResNet-18")
    parser.add_argument("--size", type=int, default=224, metavar="N", help="side of the pictures")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="measurements of each case")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="pictures of each case of whole solves")
    parser.add_argument("--limit", type=int, metavar="N", help="most iterations of these solves")
    parser.add_argument("--only", nargs="+", default=(), metavar="LABEL", help="cases that have all these labels")
    asked = parser.parse_args(arguments)
    if asked.list:
        print(*BENCHMARKS, sep="\n")
        return 0
    if asked.name is None:
        parser.error("give a NAME or --list")
    options = Options(asked.size, asked.repeats, tuple(asked.only), asked.weights, asked.images, asked.limit)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # other processes need the device, too
    results = []
    try:
        for case in BENCHMARKS[asked.name](options):
            print(_line(case), flush=True)
            results.append(_facts() | case)
    except InputError as error:
        print(f"{asked.name}: {error}", file=sys.stderr)
        return 2
    if asked.json is not None:
        write_json(
            asked.json,
            {"name": asked.name, "device": device_name(), "versions": versions(), "cases": results},
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
