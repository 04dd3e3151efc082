"""Checkpoints of every kind are read as they were written: same names, same bits, same sharing.

Values are compared exactly everywhere: reading converts nothing.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support.checkpoint_files import (
    fake_class,
    safetensors_bytes,
    tensor_pickle,
    torch_bytes,
    write_sparse_zip,
    zip_bytes,
    zip_members,
)

from ldm_core.checkpoint.reader import Checkpoint, read

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
    torch.bool, torch.complex64,
]  # fmt: skip


def write(tmp_path: Path, data: bytes, name: str = "model.ckpt") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def read_bytes(tmp_path: Path, data: bytes, **options: Any) -> Checkpoint:
    return read(write(tmp_path, data), **options)


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].shape == tensor.shape, name
        assert bits(actual[name]) == bits(tensor), name


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, in order: equal for NaNs too, and there for every dtype."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def a_state_dict() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.diffusion_model.out.2.weight": torch.randn(4, 8, 3, 3, generator=generator),
        "first_stage_model.quant_conv.bias": torch.randn(8, generator=generator).half(),
        "cond_stage_model.position_ids": torch.arange(77).expand((1, -1)),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        "empty": torch.empty(0, 3),
    }


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_files_of_every_dtype(tmp_path: Path, dtype: torch.dtype, legacy: bool, mmap: bool) -> None:
    raw = (
        torch.arange(48, dtype=torch.uint8) % 2
        if dtype == torch.bool
        else torch.arange(48, dtype=torch.uint8)
    )
    tensors = {"a": raw.view(dtype), "b": raw.view(dtype)[: 16 // dtype.itemsize].reshape(-1, 1)}
    path = write(tmp_path, torch_bytes(tensors, legacy=legacy))
    checkpoint = read(path, mmap=mmap)
    assert checkpoint.format == ("torch-legacy" if legacy else "torch-zip")
    assert_same(checkpoint.tensors, tensors)
    # PyTorch 2.13 writes legacy files of the types without a storage class, and fails to read them.
    if not (legacy and dtype in torch.storage._new_dtypes()):
        assert_same(checkpoint.tensors, torch.load(path, weights_only=True))
    assert checkpoint.metadata == {}
    assert checkpoint.foreign == ()


@pytest.mark.parametrize("mmap", [True, False])
def test_safetensors_of_every_dtype(tmp_path: Path, mmap: bool) -> None:
    raw = torch.arange(64, dtype=torch.uint8) % 2
    tensors = {str(dtype): raw.view(dtype).reshape(2, -1).clone() for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(3, 0)}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt", "modelspec.title": "é"})
    checkpoint = read(path, mmap=mmap)
    expected = safetensors.torch.load_file(path)
    assert checkpoint.format == "safetensors"
    assert checkpoint.metadata == {"format": "pt", "modelspec.title": "é"}
    assert_same(checkpoint.tensors, {name: expected[name] for name in checkpoint.tensors})
    assert set(checkpoint.tensors) == set(tensors)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path: Path, protocol: int, legacy: bool) -> None:
    value = {"state_dict": a_state_dict(), "epoch": 3, "text": "é" * 300, "big": 2**40, "raw": b"\0\xff"}
    checkpoint = read_bytes(tmp_path, torch_bytes(value, legacy=legacy, protocol=protocol))
    assert_same(checkpoint.tensors, a_state_dict())
    plain = {"epoch": 3, "text": "é" * 300, "big": 2**40, "raw": "<bytes of length 2>"}
    assert checkpoint.metadata == plain


def test_the_format_is_told_by_the_content(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(2)}
    for data, expected in (
        (torch_bytes(tensors), "torch-zip"),
        (torch_bytes(tensors, legacy=True), "torch-legacy"),
        (safetensors.torch.save(tensors), "safetensors"),
    ):
        for name in ("model.ckpt", "model.safetensors", "model"):
            path = write(tmp_path, data, name)
            assert read(path, values=False).format == expected
            assert read(str(path)).format == expected


def lightning_checkpoint() -> dict[Any, Any]:
    """The layout of a Lightning 1.4 checkpoint of CompVis's code, with an optimizer and a callback."""
    module = "pytorch_lightning.callbacks.model_checkpoint"
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=1e-4)
    parameter.grad = torch.full((3,), 0.5)
    optimizer.step()
    with fake_class(module, "ModelCheckpoint") as callback:
        return {
            "epoch": 840,
            "global_step": 470000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": collections.OrderedDict(a_state_dict()),
            "callbacks": {callback: {"best_model_score": np.float64(0.125), "best_model_path": "x.ckpt"}},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [{"milestones": collections.Counter([5, 5]), "last_epoch": 2}],
        }


@pytest.mark.parametrize("legacy", [False, True])
def test_a_lightning_checkpoint_is_read_without_its_classes(tmp_path: Path, legacy: bool) -> None:
    module = "pytorch_lightning.callbacks.model_checkpoint"
    value = lightning_checkpoint()
    callback = next(iter(value["callbacks"]))
    with fake_class(module, "ModelCheckpoint") as registered:
        value["callbacks"] = {registered: value["callbacks"][callback]}
        path = write(tmp_path, torch_bytes(value, legacy=legacy))
    checkpoint = read(path)
    assert_same(checkpoint.tensors, a_state_dict())
    assert checkpoint.foreign == (f"{module}.ModelCheckpoint",)
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)
    assert checkpoint.metadata["epoch"] == 840
    assert checkpoint.metadata["global_step"] == 470000
    assert checkpoint.metadata["pytorch-lightning_version"] == "1.4.2"
    assert checkpoint.metadata["callbacks"] == {
        f"<{module}.ModelCheckpoint>": {"best_model_score": 0.125, "best_model_path": "x.ckpt"}
    }
    assert checkpoint.metadata["lr_schedulers"] == [{"milestones": {5: 2}, "last_epoch": 2}]
    adam = checkpoint.metadata["optimizer_states"][0]
    assert adam["param_groups"][0]["lr"] == 1e-4
    assert adam["state"][0]["exp_avg"] == "<tensor torch.float32 (3,)>"
    json.dumps(checkpoint.metadata)


def test_objects_of_foreign_classes_show_what_they_held(tmp_path: Path) -> None:
    with (
        fake_class("lightning_like.parsing", "AttributeDict", dict) as attribute_dict,
        fake_class("other_package.options", "Options") as options,
        fake_class("third_package.lists", "Names", list) as names,
    ):
        settings = attribute_dict(lr=0.5)
        settings["nested"] = options()
        settings["nested"].width = 320
        settings["names"] = names(["a", "b"])
        data = torch_bytes({"state_dict": a_state_dict(), "hyper_parameters": settings})
    checkpoint = read_bytes(tmp_path, data)
    assert checkpoint.metadata["hyper_parameters"] == {
        "lr": 0.5,
        "nested": {"width": 320},
        "names": ["a", "b"],
    }
    assert set(checkpoint.foreign) == {
        "lightning_like.parsing.AttributeDict",
        "other_package.options.Options",
        "third_package.lists.Names",
    }


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_scalars_become_numbers(tmp_path: Path, protocol: int) -> None:
    scalars = {
        "f8": np.float64(1.5), "f4": np.float32(0.1), "f2": np.float16(2), "i8": np.int64(-3),
        "u1": np.uint8(255), "b": np.bool_(True), "text": np.str_("grüße"), "c": np.complex64(1j),
    }  # fmt: skip
    value = {"state_dict": a_state_dict(), **scalars, "date": np.datetime64("2022-08-22")}
    metadata = read_bytes(tmp_path, torch_bytes(value, protocol=protocol)).metadata
    for name, scalar in scalars.items():
        expected = "<1j>" if name == "c" else scalar.item()
        assert metadata[name] == expected
        assert type(metadata[name]) is type(expected)
    assert metadata["date"].startswith("<numpy")


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_arrays_become_tensors(tmp_path: Path, protocol: int) -> None:
    arrays: dict[str, Any] = {
        "rows": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(24, dtype=np.int64).reshape(2, 3, 4)),
        "none": np.zeros((0, 2), np.float16),
    }
    tensors = read_bytes(tmp_path, torch_bytes(arrays, protocol=protocol)).tensors
    assert_same(tensors, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


def test_parameters_containers_and_nesting(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    labelled = weight.clone()
    labelled.label = "an attribute"  # type: ignore[attr-defined]
    flat = {"a": torch.nn.Parameter(weight), "b": labelled}
    expected = {"a": weight, "b": weight}
    module = torch.nn.Linear(3, 2)
    for value, tensors in (
        (flat, expected),
        ({"state_dict": flat, "epoch": 1}, expected),
        ({"state_dict": {"state_dict": flat, "note": "inner"}, "epoch": 1}, expected),
        (torch.nn.ParameterDict(flat), expected),
        ({"state_dict": torch.nn.ParameterDict(flat)}, expected),
        (module.state_dict(), dict(module.state_dict())),
        ({"model": flat, "step": 5}, {"model.a": weight, "model.b": weight}),
        ({"string_to_param": torch.nn.ParameterDict({"*": weight})}, {"string_to_param.*": weight}),
    ):
        checkpoint = read_bytes(tmp_path, torch_bytes(value))
        assert_same(checkpoint.tensors, tensors)
        assert not any(tensor.requires_grad for tensor in checkpoint.tensors.values())
        assert checkpoint.foreign == ()
    nested = read_bytes(tmp_path, torch_bytes({"state_dict": {"state_dict": flat, "note": "n"}, "epoch": 1}))
    assert nested.metadata == {"epoch": 1, "state_dict.note": "n"}


@pytest.mark.parametrize("legacy", [False, True])
def test_views_and_shared_storages(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "base": base,
        "again": base,
        "transposed": base.t(),
        "part": base[1:3, 2:5],
        "every_other": base[::2, ::3],
        "expanded": torch.ones(1).expand(10),
    }
    loaded = read_bytes(tmp_path, torch_bytes(tensors, legacy=legacy)).tensors
    assert_same(loaded, tensors)
    for name, tensor in tensors.items():
        assert loaded[name].stride() == tensor.stride()
    loaded["base"][1, 2] = -1
    assert loaded["transposed"][2, 1] == loaded["part"][0, 0] == loaded["again"][1, 2] == -1


@pytest.mark.parametrize("legacy", [False, True])
def test_numbers_that_the_state_dict_does_not_use_are_not_read(tmp_path: Path, legacy: bool) -> None:
    value = {"state_dict": {"w": torch.ones(4)}, "optimizer_states": [torch.zeros(1000)]}
    data = torch_bytes(value, legacy=legacy)
    if legacy:
        checkpoint = read_bytes(tmp_path, data)
    else:
        members = {k: v for k, v in zip_members(data).items() if len(v) != 4000}
        assert len(members) == len(zip_members(data)) - 1
        checkpoint = read_bytes(tmp_path, zip_bytes(members))
    assert_same(checkpoint.tensors, {"w": torch.ones(4)})
    assert checkpoint.metadata == {"optimizer_states": ["<tensor torch.float32 (1000,)>"]}


def test_archives_that_another_program_packed(tmp_path: Path) -> None:
    value = a_state_dict()
    members = zip_members(torch_bytes(value))
    deflated = zip_bytes(members, zipfile.ZIP_DEFLATED)
    misaligned = zip_bytes({name.replace("archive", "odd"): data for name, data in members.items()})
    commented = zip_bytes(members)[:-2] + b"\x05\0hello"
    with_folder = zip_bytes({"archive/": b"", "archive/data/": b"", **members})
    for data in (deflated, misaligned, commented, with_folder):
        for mmap in (True, False):
            assert_same(read_bytes(tmp_path, data, mmap=mmap).tensors, value)


def test_the_64_bit_fields_of_large_archives(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    write_sparse_zip(path, tensor_pickle(), {"0": 16}, zip64=True)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("archive/data/0") == bytes(16)
    assert_same(read(path).tensors, {"w": torch.zeros(4)})


def test_misaligned_safetensors(tmp_path: Path) -> None:
    values = torch.arange(3.0)
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": "F32", "shape": [3], "data_offsets": [1, 13]},
    }
    loaded = read_bytes(tmp_path, safetensors_bytes(header, b"\7" + values.numpy().tobytes()))
    assert_same(loaded.tensors, {"byte": torch.tensor([7], dtype=torch.uint8), "w": values})
    assert loaded.tensors["w"].data_ptr() % 4 == 0


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_the_map_is_private_and_outlives_the_file(tmp_path: Path, kind: str) -> None:
    tensors = {"w": torch.arange(1000.0)}
    data = torch_bytes(tensors) if kind == "zip" else safetensors.torch.save(tensors)
    path = write(tmp_path, data)
    first, second = read(path).tensors["w"], read(path).tensors["w"]
    first.zero_()
    assert torch.equal(second, tensors["w"])
    assert path.read_bytes() == data
    # A file that is replaced, as a careful writer does, leaves the old bytes to those who have them mapped.
    replacement = write(tmp_path, b"new", "replacement")
    os.replace(replacement, path)
    assert torch.equal(second, tensors["w"])


def test_without_a_map_the_file_may_be_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path, safetensors.torch.save({"w": torch.ones(5000)}))
    tensors = read(path, mmap=False).tensors
    path.write_bytes(b"")
    assert torch.equal(tensors["w"], torch.ones(5000))


def test_shapes_without_values(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(40, 60).t(), "h": torch.ones(3).half(), "e": torch.empty(2, 0)}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    stored = torch_bytes(tensors)
    deflated = zip_bytes(zip_members(stored), zipfile.ZIP_DEFLATED)
    for data in (stored, deflated, torch_bytes(tensors, legacy=True), safetensors.torch.save(contiguous)):
        checkpoint = read_bytes(tmp_path, data, values=False)
        assert set(checkpoint.tensors) == set(tensors)
        for name, tensor in checkpoint.tensors.items():
            assert tensor.is_meta
            assert (tensor.shape, tensor.dtype) == (tensors[name].shape, tensors[name].dtype)


RSS_SCRIPT = """
import sys
from ldm_core.checkpoint.reader import read

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

for small, large in (sys.argv[1:3], sys.argv[3:5]):
    read(small)  # a first read pays for imports and caches
    before = resident()
    checkpoint = read(large)
    after_reading = resident()
    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    assert not any(tensor.any() for tensor in checkpoint.tensors.values())
    print(total, after_reading - before, resident() - before)
    del checkpoint
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident size from /proc")
def test_reading_100_mb_touches_almost_nothing(tmp_path: Path) -> None:
    elements = 25_000_000
    paths = [
        tmp_path / name for name in ("small.ckpt", "large.ckpt", "small.safetensors", "large.safetensors")
    ]
    for path, count in zip(paths, (4, elements, 4, elements)):
        if path.suffix == ".ckpt":
            write_sparse_zip(path, tensor_pickle(numel=count, size=(count,)), {"0": 4 * count})
        else:
            entry = {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}
            header = json.dumps({"w": entry}).encode()
            path.write_bytes(safetensors_bytes(header + b" " * (-len(header) % 8)))
            os.truncate(path, path.stat().st_size + 4 * count)
    command = [sys.executable, "-c", RSS_SCRIPT, *map(str, paths)]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    lines = output.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        total, reading, touched = map(int, line.split())
        assert total == 4 * elements
        assert reading < 20e6
        # Only then do the numbers come in: this also shows that the figure above measures something.
        assert touched > 75e6
