"""Runs a benchmark: `python benchmarks/run.py --list`, `python benchmarks/run.py NAME [--json FILE]`.

The file is written anew after every case, so that a run that is cut off keeps what it has.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from problems import Options

from f2pad_jax.errors import InputError
from f2pad_jax.output import write_json

BENCHMARKS = (
    "step_ratio",
    "extractor_vs_torch",
    "pytorch_loop",
    "lane_waste",
    "scaling",
    "native",
    "whole_job",
    "gpu_suite",
)
PACKAGES = ("f2pad-jax", "jax", "jaxlib", "numpy", "torch")


def versions() -> dict[str, str]:
    """Those of Python and of the packages that matter to a time."""
    known = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            continue
    return known


def device_name() -> str:
    """The first device, as a reader knows it."""
    device = jax.devices()[0]
    return f"cpu, {os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind


def _facts() -> dict[str, Any]:
    """What every case says about itself unless it knows better."""
    precision = jax.config.jax_default_matmul_precision or "default"  # pyright: ignore[reportAttributeAccessIssue]
    return {"device": device_name(), "jaxlib": version("jaxlib"), "precision": precision, "batch": 1}


def _line(case: dict[str, Any]) -> str:
    labels = " ".join(str(v) for k, v in case.items() if isinstance(v, str | int) and k not in ("ratio", "failed"))
    if "failed" in case:
        return f"{labels}: failed, {case['failed']}"
    spread = f"{case['min_s'] * 1e3:.1f} to {case['max_s'] * 1e3:.1f}"
    return f"{labels}: {case['median_s'] * 1e3:.1f} ms ({spread}), ratio {case['ratio']:.2f}"


def main(arguments: list[str] | None = None) -> int:
    """Runs one benchmark; the exit status is 1 where a case failed, and 2 where it could not be run."""
    parser = argparse.ArgumentParser(description="Benchmarks of f2pad_jax.")
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of ResNet-18")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="MVTec AD, for more cases of native")
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
    options = Options(
        asked.size, asked.repeats, tuple(asked.only), asked.weights, asked.images, asked.limit, asked.data
    )
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # other processes need the device, too
    cases: list[dict[str, Any]] = []
    try:
        for case in import_module(asked.name).cases(options):
            print(_line(case), flush=True)
            cases.append(_facts() | case)
            if asked.json is not None:
                facts = {"name": asked.name, "device": device_name(), "versions": versions()}
                write_json(asked.json, facts | {"cases": cases})
    except InputError as error:
        print(f"{asked.name}: {error}", file=sys.stderr)
        return 2
    return int(any("failed" in case for case in cases))


if __name__ == "__main__":
    sys.exit(main())
