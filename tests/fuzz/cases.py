"""What is fuzzed: for each kind of input good samples, how they are spoiled, what reads them, and what it must refuse.

A case takes a `random.Random` and returns "refused" or "accepted". It raises what a reader lets through beside its own
errors, and `WrongError` where something was accepted that contradicts what is stated here, whatever the schemas say.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal, cast

import jax
import numpy as np
from fuzz.mutation import VALUES, dumps, mend_png, spoil_bytes, spoil_json
from PIL import Image

from f2pad_jax.checkpoint import SUMS, _digests, flat, load_arrays, nested, save_arrays
from f2pad_jax.core import Settings
from f2pad_jax.data.images import read_image, read_mask
from f2pad_jax.detectors.patchcore import PatchCore
from f2pad_jax.errors import InputError
from f2pad_jax.experiments.records import check_parts, digest_of, model_of, read_plan, write_record
from f2pad_jax.model_file import VERSION, ModelFacts, _fields
from f2pad_jax.picture_files import _earlier_records, _has_files
from f2pad_jax.procedure import Procedure
from f2pad_jax.schemas import read_facts
from f2pad_jax.weights.torch_file import read_checkpoint, read_torch
from f2pad_jax.weights.weight_files import read_weights

Verdict = Literal["refused", "accepted"]
SIZE, PLACES, CHANNELS = 64, 64, 152  # of the coarser maps of EfficientNet-Lite0


class WrongError(AssertionError):
    """Something was accepted that must not be."""


@cache
def scratch() -> Path:
    """A folder of this process."""
    return Path(tempfile.mkdtemp(prefix="f2pad-fuzz-"))


@cache
def mark() -> Path:
    """The file that a pickle makes if it is run."""
    return scratch() / "executed"


def clean_up() -> None:
    """Removes the folder of this process."""
    shutil.rmtree(scratch(), ignore_errors=True)


# Pictures


@cache
def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    grey, rgb = rng.integers(0, 256, (12, 16), np.uint8), rng.integers(0, 256, (12, 16, 3), np.uint8)
    rgba = np.concatenate([rgb, grey[..., None]], axis=-1)
    made = [(Image.fromarray(rgb), name, {}) for name in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")]
    made += [(Image.fromarray(grey).convert("P"), "GIF", {}), (Image.fromarray(rgba), "PNG", {})]
    made += [(Image.fromarray(grey.astype(np.uint16) * 257), "PNG", {}), (Image.fromarray(grey), "JPEG", {})]
    made += [(Image.fromarray(rgb), "TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", "tiff_deflate")]
    samples = []
    for picture, name, options in made:
        buffer = io.BytesIO()
        picture.save(buffer, format=name, **options)
        samples.append(buffer.getvalue())
    return samples


def picture(random: Random) -> Verdict:
    data = spoil_bytes(random, random.choice(pictures()), pictures())
    if data.startswith(b"\x89PNG") and random.random() < 0.7:
        data = mend_png(data)
    path = scratch() / "picture.png"
    path.write_bytes(data)
    try:
        image, mask = read_image(path), read_mask(path)
    except InputError:
        return "refused"
    if image.dtype != np.uint8 or image.shape[2:] != (3,) or mask.dtype != bool or mask.shape != image.shape[:2]:
        raise WrongError(f"a picture of {image.dtype} {image.shape}, a mask of {mask.dtype} {mask.shape}")
    return "accepted"


# Weight files


@cache
def state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a": rng.standard_normal((2, 3)).astype("<f4"), "b": np.arange(4, dtype="<i8"), "c": np.zeros(0, "<f4")}


def tensor(name: str, array: np.ndarray, key: int) -> bytes:
    """Opcodes for a name and a tensor, as torch has them."""
    kind = {"<f4": "Float", "<i8": "Long"}[array.dtype.str]
    sides = tuple(step // array.itemsize for step in array.strides)

    def ints(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"K" + bytes([value]) for value in values) + b"t"

    storage = b"(Vstorage\nctorch\n%sStorage\nV%d\nVcpu\nK%ctQ" % (kind.encode(), key, array.size)
    rest = b"K\x00" + ints(array.shape) + ints(sides) + b"\x89ccollections\nOrderedDict\n)Rt"
    return b"V%s\nctorch._utils\n_rebuild_tensor_v2\n(" % name.encode() + storage + rest + b"R"


@cache
def torch_pickle() -> bytes:
    body = b"".join(tensor(name, array, key) for key, (name, array) in enumerate(state().items()))
    return b"\x80\x02ccollections\nOrderedDict\n)Rq\x00(" + body + b"u}V_metadata\nNsb."


@cache
def lightning_pickle() -> bytes:
    """What Lightning keeps around the tensors, and objects beside them."""
    inner = torch_pickle()[len(b"\x80\x02") : -1]
    things = b"Vpath\ncpathlib\nPosixPath\n(VA\ntRVthing\ncmodule\nThing\n)\x81}(Vstate\nK\x01ub"
    beside = b"Vpytorch-lightning_version\nV2\nVhyper_parameters\n}(" + things + b"u"
    return b"\x80\x02}(" + beside + b"Vstate_dict\n" + inner + b"u."


def attack(random: Random) -> bytes:
    """Opcodes that ask for something to be run, or that hurt."""
    call = b"(V%s\ntR" % f"touch {mark()}".encode()
    name = random.choice(
        [b"posix\nsystem", b"os\nsystem", b"builtins\neval", b"subprocess\ngetoutput", b"builtins\nexec"]
    )
    module, function = name.split(b"\n")
    return random.choice(
        [
            b"c" + name + b"\n" + call,
            b"V" + module + b"\nV" + function + b"\n\x93" + call,
            b"(i" + name + b"\n",
            b"(c" + name + b"\nV" + f"touch {mark()}".encode() + b"\no",
            b")" + b"\x85" * random.choice([10, 5000, 200_000]),
            b"N0" * random.choice([10, 300_000]),
            b"]" + b"q\x00h\x00\x86" * random.choice([3, 40]),
            b"\x8b" + struct.pack("<i", random.choice([1, -1, 1000, 2**31 - 1])),
            b"r" + struct.pack("<I", random.choice([5, 2**20, 2**32 - 1])),
            b"\x8d" + struct.pack("<Q", random.choice([5, 2**40])),
        ]
    )


def torch_file(random: Random) -> Verdict:
    return _torch_file(random, torch_pickle(), read_torch)


def lightning_file(random: Random) -> Verdict:
    return _torch_file(random, lightning_pickle(), lambda data: read_checkpoint(data)[0])


def _torch_file(random: Random, root: bytes, read: Callable[[bytes], dict[str, np.ndarray]]) -> Verdict:
    if random.random() < 0.5:
        place = random.randrange(len(root))
        root = root[:place] + attack(random) + root[place:]
    if random.random() < 0.7:
        root = spoil_bytes(random, root)
    raw = {str(key): array.tobytes() for key, array in enumerate(state().values())}
    if random.random() < (0.5 if read is read_torch else 1):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", random.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])) as archive:
            archive.writestr("archive/data.pkl", root)
            for key, data in raw.items():
                archive.writestr(f"archive/data/{key}", data)
        data = buffer.getvalue()
    else:
        head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        data = b"".join(pickle.dumps(part, 2) for part in head) + root + pickle.dumps(list(raw), 2)
        data += b"".join(struct.pack("<q", array.size) + array.tobytes() for array in state().values())
    if random.random() < 0.3:
        data = spoil_bytes(random, data)
    try:
        found = read(data)
    except ValueError:
        return "refused"
    finally:
        if mark().exists():
            raise WrongError("a pickle was executed")
    for name, array in found.items():
        if not isinstance(array, np.ndarray) or array.size and not np.shape(array.copy()) == array.shape:
            raise WrongError(f"{name} is {type(array)}")
    return "accepted"


@cache
def weight_samples() -> list[bytes]:
    from safetensors.numpy import save

    plain, packed = io.BytesIO(), io.BytesIO()
    arrays: dict[str, Any] = dict(state())
    np.savez(plain, **arrays)
    np.savez_compressed(packed, **arrays)
    objects = io.BytesIO()
    np.savez(objects, x=np.array([{"a": 1}], object))
    return [plain.getvalue(), packed.getvalue(), save(state()), objects.getvalue()]


def weight_file(random: Random) -> Verdict:
    path = scratch() / "weights.bin"
    path.write_bytes(spoil_bytes(random, random.choice(weight_samples()), weight_samples()))
    try:
        found, _ = read_weights(path)
    except InputError:
        return "refused"
    if not all(isinstance(array, np.ndarray) and not array.dtype.hasobject for array in found.values()):
        raise WrongError("a weight file with something else than numbers")
    return "accepted"


# Model folders


@cache
def model_facts() -> dict[str, Any]:
    return {
        "format": "f2pad_jax model",
        "version": VERSION,
        "detector": {"name": "patchcore"},
        "extractor": {"name": "efficientnet_lite0", "sha256": "0" * 64, "precision": "parity"},
        "shape": [SIZE, SIZE],
        "seen": [SIZE, SIZE],
        "windowed": False,
        "limits": {"peak": 0.1, "spread": 0.25, "pixel": 0.05, "cost": 1.5, "bound": 3.0},
        "settings": vars(Settings()),
        "procedure": vars(Procedure(threshold=0.5)),
        "tuned_on": "default",
        "seed": 3,
    }


@cache
def model_arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    bank = rng.random((10, CHANNELS), np.float32)
    ones = np.ones(CHANNELS, np.float32), np.ones(PLACES, np.float32)
    detector = PatchCore(*cast(Any, (*ones, bank, np.square(bank).sum(-1))))
    return {
        "detector": jax.tree.map(np.asarray, detector.state()[0]),
        "normals": np.zeros((2, SIZE, SIZE, 3), np.uint8),
        "held_out": np.zeros((1, SIZE, SIZE, 3), np.uint8),
        "mixture": {"mean": np.zeros((2, 3), np.float32), "precision": np.ones((2, 3, 3), np.float32)},
        "scales": {name: np.float32(0.5) for name in ("score", "pixel", "variation")},
    }


POSITIVE = {"bound", "rate", "rise", "clip", "limit", "patience", "levels", "components", "false_alarms", "largest"}
SIGNED = {"threshold", "pixel"}  # scores may have any sign


def _check_number(name: str, good: Any, found: Any) -> None:
    """What a number of a model may be, said again."""
    if name in ("bound", "threshold") and found is None:
        return
    if isinstance(good, bool) or isinstance(found, bool) or not isinstance(found, int | float):
        raise WrongError(f"{name} is {found!r}")
    if isinstance(good, int) and not isinstance(found, int):
        raise WrongError(f"{name} is {found!r}, no whole number")
    if not np.isfinite(float(found)) or (found < 0 and name not in SIGNED) or (name in POSITIVE and found <= 0):
        raise WrongError(f"{name} is {found!r}")
    if name in ("false_alarms", "largest") and found > 1:
        raise WrongError(f"{name} is {found!r}")


CHOICES = {
    "region": {"pieces", "threshold"},
    "sparsity": {"levels", "constant", "area"},
    "start": {"auto", "image", "matching", "harmonic", "autoencoder"},
    "cleaning": {"whole", "opening"},
}


def model_json(random: Random) -> Verdict:
    spoiled = json.loads(dumps(spoil_json(random, model_facts())))
    try:
        known = read_facts(ModelFacts, spoiled, kind="model", where="model", hint="")
        _fields(model_arrays(), known)
    except (InputError, AttributeError, IndexError, KeyError, TypeError, ValueError):  # as `load_model` has it
        return "refused"
    for group in ("settings", "procedure", "limits"):
        good = model_facts()[group]
        if spoiled[group].keys() != good.keys():
            raise WrongError(f"{group} has other names")
        for name, value in spoiled[group].items():
            if name in CHOICES:
                if value not in CHOICES[name]:
                    raise WrongError(f"{name} is {value!r}")
            elif isinstance(good[name], bool):
                if not isinstance(value, bool):
                    raise WrongError(f"{name} is {value!r}")
            else:
                _check_number(name, good[name], value)
    if spoiled["shape"] != [SIZE, SIZE] or not isinstance(spoiled["windowed"], bool):
        raise WrongError("another shape")
    if any(not isinstance(side, int) or side < 1 for side in spoiled["seen"]):
        raise WrongError("another size of what the extractor sees")
    if spoiled["extractor"]["name"] != "efficientnet_lite0" or spoiled["seed"] < 0:
        raise WrongError("another extractor or seed")
    if spoiled.keys() - {"inpainter"} != model_facts().keys() or spoiled["detector"]["name"] != "patchcore":
        raise WrongError("other names")
    return "accepted"


FREE = {"normals", "held_out"}  # of any number


def model_array(random: Random) -> Verdict:
    arrays = flat(model_arrays())
    name = random.choice(sorted(arrays))
    good = np.asarray(arrays[name])
    match random.randrange(6):
        case 0:
            spoiled = good.astype(random.choice([np.int32, np.float64, np.uint8, np.float16, bool]))
        case 1:
            spoiled = good[None]
        case 2:
            spoiled = good.reshape(-1) if good.ndim != 1 else good[:, None]
        case 3:
            spoiled = np.concatenate([np.atleast_1d(good)] * 2)
        case 4:
            spoiled = np.atleast_1d(good)[: random.randrange(2)]
        case _:
            spoiled = np.moveaxis(good, 0, -1)[..., :2] if good.ndim else good[None, None]
    same = spoiled.dtype == good.dtype and spoiled.shape == good.shape
    free = name in FREE and spoiled.dtype == good.dtype and spoiled.shape[1:] == good.shape[1:]
    known = read_facts(ModelFacts, model_facts(), kind="model", where="model", hint="")
    try:
        _fields(nested(arrays | {name: spoiled}), known)
    except (InputError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        return "refused"
    if not same and not free:
        raise WrongError(f"{name} is {spoiled.dtype} {spoiled.shape}")
    return "accepted"


@cache
def checkpoint() -> Path:
    folder = scratch() / "model"
    save_arrays(folder, model_arrays(), model_facts(), kind="model", version=VERSION)
    return folder


def model_folder(random: Random) -> Verdict:
    """Bytes of any file; now and then with sums that are right again, as somebody who forges would make them."""
    good = checkpoint()
    names = [path.relative_to(good) for path in sorted(good.rglob("*")) if path.is_file()]
    folder, name = scratch() / "spoiled", random.choice(names)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder, copy_function=os.link)
    data = (good / name).read_bytes()
    spoiled = spoil_bytes(random, data)
    (folder / name).unlink()
    (folder / name).write_bytes(spoiled)
    forged = name.name != SUMS and random.random() < 0.1
    if forged:
        (folder / SUMS).unlink()
        (folder / SUMS).write_text("".join(f"{digest}  {each}\n" for each, digest in _digests(folder).items()))
    try:
        load_arrays(folder, kind="model", version=VERSION)
    except InputError:
        return "refused"
    if not forged and spoiled != data and (name.name != SUMS or sorted(spoiled.split()) != sorted(data.split())):
        raise WrongError(f"{name} was changed")
    return "accepted"


# Results of experiments and of `segment`


@cache
def results() -> Path:
    folder = scratch() / "results"
    unit = folder / "parts" / "brick-padim-all-full"
    unit.mkdir(parents=True)
    common = {"dataset": "textures", "images": 2, "size": 32, "seed": 0, "kinds": ["colour"], "tuning": "default"}
    selection = {"categories": ["brick"], "detectors": ["padim"], "command": "f2pad experiment table1"}
    write_record(folder / "plan.json", common | {"experiments": {"table1": selection}})
    facts: dict[str, Any] = {
        "unit": unit.name, "plan": digest_of(common), "dataset": "textures", "category": "brick", "detector": "padim",
        "extractor": "tiny", "train_images": 3, "seed": 0, "tuned_on": "default", "settings": {"rate": 0.1},
        "device": "cpu", "jax": "0", "threshold": 0.5,
    }  # fmt: skip
    write_record(unit / "unit.json", facts | {"fit_seconds": 1.0, "tune_seconds": 0.0, "machine": "m"})
    for index in range(2):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(unit / f"{index:03d}_mask.png")
        digest = _digests(unit)[f"{index:03d}_mask.png"]
        part = {"image": f"color/{index:03d}", "iterations": 3, "status": "converged", "residual": 0.1, "covered": 1.0,
                "seconds": 0.1, "model": model_of(facts), "files": {f"{index:03d}_mask.png": digest}}  # fmt: skip
        write_record(unit / f"{index:03d}.json", part)
    return folder


def results_folder(random: Random) -> Verdict:
    """A record that is edited, half of the time with a digest that is right again, or a file that is."""
    good, folder = results(), scratch() / "spoiled-results"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    path = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data, resealed = path.read_bytes(), False
    if path.suffix == ".json" and random.random() < 0.7:
        value = spoil_json(random, json.loads(data))
        if isinstance(value, dict) and random.random() < 0.5:
            value, resealed = {name: each for name, each in value.items() if name != "sha256"}, True
            value["sha256"] = digest_of(value)
        path.write_text(dumps(value))
        changed = json.dumps(value) != json.dumps(json.loads(data))
    else:
        path.write_bytes(spoil_bytes(random, data))
        changed = path.read_bytes() != data
    try:
        read_plan(folder)
        check_parts(folder)
    except InputError:
        return "refused"
    if changed and not resealed:
        try:  # blanks are no change
            changed = json.loads(path.read_bytes()) != json.loads(data)
        except ValueError:
            changed = True
    if changed and (not resealed or path.name == "plan.json" and "experiments" not in json.loads(path.read_text())):
        raise WrongError(f"{path.name} was changed")
    return "accepted"


def records(random: Random) -> Verdict:
    """What `segment --resume` finds."""
    folder = scratch() / "segmented"
    folder.mkdir(exist_ok=True)
    (folder / "a_mask.png").touch()
    good = {"image": "a.png", "key": "0" * 16, "status": "converged", "size": [4, 4], "defects": []}
    good |= {kind: "a_mask.png" for kind in ("mask", "normal", "panel", "score", "refined")}
    text = dumps(spoil_json(random, good)) if random.random() < 0.7 else dumps(random.choice(VALUES))
    data = f"{dumps(good)}\n{text}\n".encode()
    (folder / "results.jsonl").write_bytes(spoil_bytes(random, data) if random.random() < 0.5 else data)
    found = [record for record in _earlier_records(folder)[0] if _has_files(record, folder)]
    if not all((folder / str(record["mask"])).is_file() for record in found):
        raise WrongError("a record without its files")
    return "accepted" if found else "refused"


def damaged_training(random: Random) -> Verdict:
    """The state of a training that was cut off."""
    from f2pad_jax.detectors.cflow_training import Progress, State

    zero = np.zeros((), np.int32)
    weights = {"w": np.zeros((2, 3), np.float32)}
    fresh = State(*cast(Any, (weights, (zero,), weights, np.float32(1), zero, np.int32(1))))
    progress = Progress(None, (), epochs=5, rate=0.1, blocks=1, seed=0)
    kept = {f"{k:03d}": np.asarray(leaf) for k, leaf in enumerate(jax.tree.leaves(fresh))}
    name = random.choice(sorted(kept))
    good = kept[name]
    kept[name] = random.choice(
        [good[None], good.astype(np.float32) + 7, good.astype(np.int32) - 3, np.array(99, np.int32)]
    )
    progress.kept["map0"] = kept
    try:
        state = progress.restore(0, fresh)
    except InputError:
        return "refused"
    if any(np.shape(a) != np.shape(b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True)):
        raise WrongError(f"{name} has another shape")
    if not 1 <= int(state.epoch) <= 5 or int(state.stale) < 0:
        raise WrongError(f"meta-epoch {state.epoch}")
    return "accepted"


CASES: dict[str, tuple[Callable[[Random], Verdict], int]] = {
    "picture": (picture, 30),
    "torch file": (torch_file, 25),
    "checkpoint": (lightning_file, 5),
    "other weight file": (weight_file, 12),
    "model.json": (model_json, 12),
    "array of a model": (model_array, 4),
    "model folder": (model_folder, 4),
    "results folder": (results_folder, 4),
    "results.jsonl": (records, 3),
    "unfinished training": (damaged_training, 1),
}
"""Each kind with its share of a run, in per cent."""
