"""The reader of torch files: what torch writes is read, and nothing else is built, run or believed."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from f2pad_jax.weights.torch_file import read_torch


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_round_trip(zipped: bool):  # noqa: FBT001
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32)
    tensors = OrderedDict(
        plain=torch.randn(3, 4, 2, 2),
        parameter=torch.nn.Parameter(torch.randn(5), requires_grad=False),
        view=base[4:16].reshape(3, 4).T,
        shared=base,
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        half=torch.randn(4).half(),
        double=torch.randn(4).double(),
        bfloat=torch.randn(64).bfloat16(),
        flags=torch.tensor([True, False]),
        last=torch.randn(6, 2).contiguous(memory_format=torch.contiguous_format)[::2],
    )
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    arrays = read_torch(file.getvalue())
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(arrays[name], expected.numpy(), strict=True)


class Hostile:
    """Asks its reader to call a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def torch_zip(root: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", root)
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
    return file.getvalue()


def tensor_pickle(
    count: int = 4,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    rebuild: str = "torch._utils\n_rebuild_tensor_v2",
) -> bytes:
    """What torch writes for {"x": tensor}, by hand, so that its numbers can be wrong."""

    def ints(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"L" + str(value).encode() + b"L\n" for value in values) + b"t"

    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n" + b"I%d\n" % count + b"tQ"
    arguments = b"(" + storage + b"I%d\n" % offset + ints(shape) + ints(strides) + b"I00\nNt"
    return b"\x80\x02}Vx\nc" + rebuild.encode() + b"\n" + arguments + b"Rs."


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_and_unused_tensors_of_a_checkpoint_are_left_out(zipped: bool):  # noqa: FBT001
    """What Lightning and anomalib keep beside the tensors, and names of classes among them."""
    torch = pytest.importorskip("torch")
    checkpoint = {
        "epoch": 24,
        "global_step": 1 << 40,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict({"model.w": torch.arange(3.0), "image_threshold_class": "anomalib.metrics.F1"}),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 25, "done": [True, None]}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "best_k_models": {}}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(4, 5).double()}}, "param_groups": [{"lr": 1e-4}]}],
        "hyper_parameters": {"layers": ("layer2", "layer3"), "clamp": 1.9, "seen": {1, 2}},
    }
    file = io.BytesIO()
    torch.save(checkpoint, file, _use_new_zipfile_serialization=zipped)
    (found,) = read_torch(file.getvalue()).items()
    assert found[0] == "model.w"
    np.testing.assert_array_equal(found[1], np.arange(3, dtype=np.float32))
    checkpoint["hyper_parameters"]["root"] = Path("datasets")
    file = io.BytesIO()
    torch.save(checkpoint, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"refused: the pickle asks for pathlib"):
        read_torch(file.getvalue())


def test_a_tensor_written_by_hand_is_read():
    raw = np.arange(4, dtype="<f4").tobytes()
    np.testing.assert_array_equal(read_torch(torch_zip(tensor_pickle(), {"0": raw}))["x"], np.arange(4))


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": (10,)},
        {"offset": 1},
        {"offset": -1},
        {"strides": (2,)},
        {"strides": (-1,)},
        {"shape": (2**40,), "strides": (0,)},
        {"shape": (2, 2), "strides": (1,)},
        {"count": 8, "shape": (8,)},
        {"rebuild": "torch._utils\n_rebuild_device_tensor_from_numpy"},
    ],
)
def test_tensors_outside_their_storage_are_refused(fields: dict):
    with pytest.raises(ValueError, match=r"outside|malformed|truncated|refused"):
        read_torch(torch_zip(tensor_pickle(**fields), {"0": bytes(16)}))


STORAGE = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"


@pytest.mark.parametrize(
    ("behind", "change"),
    [
        (b"NtR", b"(" + STORAGE + b"I0\n(I1000\nt(I1\nttb"),  # a tensor of another shape than was checked
        (b"FloatStorage\n", b"(VDoubleStorage\ntb"),  # another type of number, in this file and all that follow
    ],
)
def test_what_was_checked_cannot_be_changed(behind: bytes, change: bytes):
    root = tensor_pickle()
    assert root.count(behind) == 1
    with pytest.raises(ValueError, match="state is not"):
        read_torch(torch_zip(root.replace(behind, behind + change), {"0": bytes(16)}))
    np.testing.assert_array_equal(read_torch(torch_zip(root, {"0": bytes(16)}))["x"], np.zeros(4))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, eval, print, getattr, zipfile.ZipFile])
def test_hostile_pickles_are_refused_and_not_run(tmp_path: Path, function: object, zipped: bool):  # noqa: FBT001
    mark = tmp_path / "mark"
    root = {"x": Hostile(function, f"touch {mark}")}
    legacy = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, root, []]
    data = torch_zip(pickle.dumps(root, 2), {}) if zipped else b"".join(pickle.dumps(part, 2) for part in legacy)
    with pytest.raises(ValueError, match="refused: the pickle asks for"):
        read_torch(data)
    assert not mark.exists()


TENSOR = tensor_pickle(count=2**22, shape=(2**22,))[len(b"\x80\x02}Vx\n") : -2]  # without its dict

# pickles that are small or middling, and what they would do to a reader without limits
BOMBS = {
    "a tuple whose hash overflows the stack": (b"})" + b"\x85" * 3_000_000 + b"K\x01s", "nests too much"),
    "a tuple of pairs of pairs": (b"})" + b"q\x00h\x00\x86" * 60 + b"K\x01s", "nests too much"),
    "a wide tuple as a key, often": (b"}(" + b"N" * 9 * 10**4 + b"tq\x00" + b"h\x00Ns" * 10**5, "nests too much"),
    "a tuple as a key, often": (b"}(" + b"N" * 4000 + b"tq\x00" + b"h\x00Ns" * 7 * 10**4, "nests too much"),
    "a great many values": (b"N0" * 8_000_000 + b"N", "too large"),
    "a list that is copied": (
        b"](" + b"N" * 10**5 + b"eq\x00" + b"cbuiltins\nset\nh\x00\x85R0" * 1000,
        "copied too often",
    ),
    "a number of many digits": (b"\x8b" + struct.pack("<i", 2**22) + b"\x7f" * 2**22, "a number in the pickle"),
    "many tensors of one storage": (
        b"}(" + b"".join(b"V%d\n" % k + TENSOR for k in range(200)) + b"u",
        "the tensors are too large",
    ),
    "an opcode for code": (b"(cos\nsystem\nVtrue\no", "opcode OBJ"),
    "an extension": (b"\x82\x01", "opcode EXT1"),
    "memory beside the file": (b"\x97", "opcode NEXT_BUFFER"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_built_to_hurt_are_refused_before_they_do(name: str):
    root, reason = BOMBS[name]
    data = torch_zip(b"\x80\x02" + root + b".", {"0": bytes(2**24)})
    began = time.process_time()
    with pytest.raises(ValueError, match=reason):
        read_torch(data)
    assert time.process_time() - began < 5  # 2 s where nothing else runs


def test_storages_are_read_once_whatever_shares_them(monkeypatch: pytest.MonkeyPatch):
    reads: list[str] = []
    read = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, name: reads.append(name) or read(self, name))
    one = tensor_pickle()[len(b"\x80\x02}Vx\n") : -2]
    root = b"\x80\x02}(Va\n" + one + b"Vb\n" + one + b"u."
    raw = np.arange(4, dtype="<f4")
    found = read_torch(torch_zip(root, {"0": raw.tobytes()}))
    np.testing.assert_array_equal([found["a"], found["b"]], [raw, raw])
    assert reads.count("archive/data/0") == 1


def test_other_bombs_are_refused():
    with pytest.raises(ValueError, match="compressed"):
        read_torch(torch_zip(tensor_pickle(), {"0": bytes(16)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="too large"):
        read_torch(torch_zip(b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b".", {}))
    with pytest.raises(ValueError, match="not a mapping"):
        read_torch(torch_zip(pickle.dumps([1, 2], 2), {}))
    with pytest.raises(ValueError, match="not a tensor"):
        read_torch(torch_zip(pickle.dumps({"x": 3}, 2), {}))
