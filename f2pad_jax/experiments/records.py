"""JSON files of a results folder: each has the digest of its content, and a schema of what it may say.

A part of a unit names the unit's model, the unit its plan; so what comes from another run, or was changed, is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from f2pad_jax.errors import InputError
from f2pad_jax.output import write_json
from f2pad_jax.schemas import Digest, Facts, Seconds, Seed, read_facts

SEAL = "sha256"
AGAIN = "remove it and run again"
MAX_BYTES = 2**24
TIMES = ("fit_seconds", "tune_seconds", "machine")  # of a unit: what two runs of the same may differ in

Name = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$", max_length=255)]  # of a folder
Share = Annotated[float, Field(ge=0, le=1)]


class Selection(Facts):
    """What an experiment of a results folder is about."""

    categories: Annotated[list[Name], Field(min_length=1)]
    detectors: Annotated[list[Name], Field(min_length=1)]
    command: str


class PlanFacts(Facts):
    """What the experiments of a results folder have in common."""

    dataset: Literal["textures", "mvtec-cutpaste", "mvtec"]
    images: Annotated[int, Field(ge=1, le=10**6)]
    size: Annotated[int, Field(ge=1, le=2**15)]
    seed: Seed
    kinds: Annotated[list[Name], Field(min_length=1)]  # of the anomalies that are made
    tuning: Literal["synthetic", "oracle", "default", "paper"]
    extractor: Name | None = None  # of all detectors, where one was asked for
    experiments: dict[str, Selection]


class UnitFacts(Facts):
    """What a unit says about its model, and of which plan it is."""

    model_config = ConfigDict(extra="allow")

    unit: str
    plan: Digest
    dataset: str
    category: str
    detector: str
    extractor: str
    train_images: Annotated[int, Field(ge=1)]
    seed: Seed
    tuned_on: str
    settings: dict[str, str | bool | int | float | None]
    device: str
    jax: str
    threshold: float
    fit_seconds: Seconds
    tune_seconds: Seconds
    machine: str


class PartFacts(Facts):
    """What a unit found in one picture; `files` are the digests of the others of that picture."""

    model_config = ConfigDict(extra="allow")

    model: Digest
    files: dict[Name, Digest]
    image: str
    iterations: Annotated[int, Field(ge=0)]
    status: str
    residual: Annotated[float, Field(ge=0)]
    covered: Share
    seconds: Seconds
    threshold: float = 0.0  # a rule's own
    rounds: Annotated[int, Field(ge=0)] = 0
    losses: dict[str, list[float]] = {}


class FailureFacts(Facts):
    """Why a picture is not done."""

    image: str
    error: str


class ChosenFacts(Facts):
    """What tuning chose."""

    settings: dict[str, Any]
    tuned_on: Literal["default", "synthetic-validation", "oracle"]
    fit_seconds: Seconds
    tune_seconds: Seconds


def digest_of(value: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def model_of(unit: Mapping[str, Any]) -> str:
    """The digest by which the parts of a unit name its model."""
    return digest_of({name: value for name, value in unit.items() if name not in TIMES})


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with its digest."""
    write_json(path, {**value, SEAL: digest_of(value)})


def read_record(path: Path, schema: type[Facts]) -> dict[str, Any]:
    """A JSON object as it was written, without its digest.

    Raises:
      InputError: the file cannot be read, was changed, or does not hold what it should.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError
        value = json.loads(path.read_text("utf-8"))
        sound = value.pop(SEAL) == digest_of(value)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, hint=AGAIN) from error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        sound, value = False, {}
    if not sound:
        raise InputError("is not as it was written", where=path, hint=AGAIN)
    read_facts(schema, value, kind="record", where=path, hint=AGAIN)
    return value


def read_plan(folder: Path) -> dict[str, Any]:
    """What `f2pad experiment` keeps of a results folder.

    Raises:
      InputError: it is none, or its plan was changed.
    """
    path = folder / "plan.json"
    if not path.is_file():
        raise InputError("holds no experiment", where=folder, hint="name the --out folders of earlier runs")
    return read_record(path, PlanFacts)


def plan_of(folder: Path) -> str:
    """The digest of what all units of a results folder have in common."""
    return digest_of({name: value for name, value in read_plan(folder).items() if name != "experiments"})


def read_unit(folder: Path, plan: str) -> dict[str, Any]:
    """What the `unit.json` of a folder of parts says.

    Raises:
      InputError: as for `read_record`, or it is of another unit or plan.
    """
    path = folder / "unit.json"
    facts = read_record(path, UnitFacts)
    if (facts["unit"], facts["plan"]) != (folder.name, plan):
        raise InputError(f"is of another run ({facts['unit']})", where=path, hint="remove its folder and run again")
    return facts


def read_part(path: Path, model: str) -> dict[str, Any]:
    """The record of one picture, whose other files were compared with their digests.

    Raises:
      InputError: as for `read_record`, it is of another model, or a file is missing or was changed.
    """
    record = read_record(path, PartFacts)
    if record["model"] != model:
        raise InputError("is of another run than its unit.json", where=path, hint=AGAIN)
    for name, digest in record["files"].items():
        check_file(path.with_name(name), digest)
    return record


def check_file(path: Path, digest: str) -> None:
    """Compares a file with its digest; raises an `InputError` where it is missing or was changed."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, hint=AGAIN) from error
    if found != digest:
        raise InputError("is not as it was written", where=path, hint="remove it and its .json, and run again")


def check_parts(folder: Path) -> None:
    """Reads all units and parts of a results folder.

    Raises:
      InputError: names the first file that was changed or belongs to another run.
    """
    plan = plan_of(folder)
    for unit in sorted(path for path in (folder / "parts").glob("*") if path.is_dir()):
        records = sorted(unit.glob("[0-9][0-9][0-9].json"))
        if records or (unit / "unit.json").exists():
            model = model_of(read_unit(unit, plan))
            for record in records:
                read_part(record, model)
