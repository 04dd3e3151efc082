"""The published files of networks for faces: recognised, read and written, at small and full size."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from restoration.small import CODEFORMER, GFPGAN, SMALL, file_tensors, picture, random_network
from safetensors.torch import save_file
from torch import Tensor

import ldm_core
from ldm_core.checkpoint import CheckpointError, read
from ldm_core.checkpoint.key_map import to_file
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.loading.diagnosis import diagnose
from ldm_core.loading.doctor import inspect
from ldm_core.loading.find import PartSource, find_parts
from ldm_core.loading.weights import blank_network
from ldm_core.restoration import CodeFormer, GFPGANConfig
from ldm_core.restoration.published import PUBLISHED, UNKNOWN

MTCNN = "facenet-pytorch MTCNN"
with gzip.open(Path(__file__).parents[1] / "data" / "face-models.json.gz", "rt", encoding="utf-8") as file:
    MODELS: dict[str, dict[str, Any]] = {k: v for k, v in json.load(file)["models"].items() if k != MTCNN}
EACH = pytest.mark.parametrize("name", MODELS)
# The entry of the dictionary in a published file; files of GPEN, ParseNet and RetinaFace have none.
ENTRY = {"sczhou/CodeFormer": "params_ema", "TencentARC/GFPGAN": "params_ema"}
KINDS = {
    "codeformer": "codeformer",
    "vqgan": "face_autoencoder",
    "GFPGAN": "gfpgan",
    "bilinear": "gfpgan",
    "GPEN": "gpen",
    "parsing": "parsenet",
    "detection": "retinaface",
}


LICENCES = {"codeformer.pth": "S-Lab", "GFPGANv1.4.pth": "NVIDIA", "GPEN-BFR-256.pth": "Alibaba"}


def shapes_of(name: str) -> dict[str, list[int]]:
    entry = MODELS[name]
    return entry["tensors"] if "tensors" in entry else MODELS[entry["tensors_as"]]["tensors"]


def kind_of(name: str) -> str:
    return next(kind for start, kind in KINDS.items() if name.startswith(start))


def blank_source(name: str, prefix: str = "") -> PartSource:
    tensors = {prefix + key: torch.empty(shape, device="meta") for key, shape in shapes_of(name).items()}
    (source,) = find_parts(Checkpoint(Path(name), "torch-zip", tensors, {})).values()
    return source


def prefix_of(name: str) -> str:
    entry = ENTRY.get(MODELS[name]["repository"])
    return f"{entry}." if entry else ""


@pytest.mark.one_in(4)
@EACH
def test_every_tensor_is_one_of_the_network_and_back(name: str) -> None:
    """On the meta device: kind, parameters, names and shapes of every published file."""
    source = blank_source(name, prefix_of(name))
    assert source.part.name == kind_of(name)
    config = source.prove()
    network = blank_network(config)
    found, keys, problems = source.parameters(config, network)
    assert not any(problems.values())
    assert found.keys() == network.state_dict().keys()
    assert set(keys.values()) == {prefix_of(name) + key for key in shapes_of(name)}
    assert sum(value.numel() for value in network.parameters()) == MODELS[name]["parameters"]
    assert 0.5 * len(source.tensors) <= source.part.fewest(config) <= len(source.tensors)
    written = to_file(source.layout.key_map(config), network.state_dict())
    assert {key: list(value.shape) for key, value in written.items()} == shapes_of(name)


def test_the_table_of_published_files_is_that_of_the_list() -> None:
    assert {one.file for one in PUBLISHED} == {name for name in MODELS if name != "bilinear"}
    for one in PUBLISHED:
        assert blank_source(one.file).prove() == one.config
        assert one.repository == MODELS[one.file]["repository"]
    assert blank_source("bilinear").prove() == GFPGANConfig(variant="bilinear")


# --- small files of the same structure ---


def original_file(name: str, path: Path, entry: str = "") -> dict[str, Tensor]:
    """Write what the original training program would, and return the tensors."""
    tensors = file_tensors(random_network(SMALL[name], torch.float32))
    torch.save({entry: tensors} if entry else tensors, path)
    return tensors


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[key].dtype == value.dtype and torch.equal(found[key], value) for key, value in wanted.items()
    )


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "case", [*((name, ".pth") for name in SMALL), ("gpen", ".safetensors"), ("parsenet", ".ckpt")]
)
def test_a_file_is_read_and_written_as_it_was(case: tuple[str, str], tmp_path: Path) -> None:
    name, suffix = case
    nested = name.startswith(("codeformer", "face_autoencoder", "gfpgan"))
    path = tmp_path / "original.pth"
    tensors = original_file(name, path, "params_ema" if nested else "")
    restorer = ldm_core.restoration.load(path)
    kind = {"resnet": "retinaface", "mobilenet": "retinaface"}.get(name, name.split()[0])
    assert restorer.kind == kind
    variant = "original" if name == "gfpgan bilinear" else getattr(SMALL[name], "variant", None)
    assert getattr(restorer.config, "variant", None) == variant
    assert not restorer.network.training
    assert same(file_tensors(restorer.network), tensors)
    assert restorer.licence == UNKNOWN
    copy = tmp_path / f"copy{suffix}"
    ldm_core.save(restorer, copy)
    if suffix == ".pth":
        stored = torch.load(copy, weights_only=True)
        assert same(stored["params_ema"] if nested else stored, tensors)
    again = ldm_core.restoration.load(copy)
    assert again.config == restorer.config
    assert same(file_tensors(again.network), tensors)


def test_a_variant_that_tensors_do_not_tell_is_stated(tmp_path: Path) -> None:
    network = random_network(SMALL["gfpgan bilinear"], torch.float32)
    ldm_core.save(network, tmp_path / "stated.safetensors")
    assert ldm_core.restoration.load(tmp_path / "stated.safetensors").config == network.config
    original_file("gfpgan bilinear", tmp_path / "plain.pth", "params_ema")
    told = ldm_core.restoration.load(tmp_path / "plain.pth", config=network.config)
    x = picture(32, dtype=torch.float32)
    assert torch.equal(told.network(x), network(x))


def test_averaged_weights_come_before_trained_ones(tmp_path: Path) -> None:
    averaged = file_tensors(random_network(GFPGAN, torch.float32))
    trained = {key: value + 1 for key, value in averaged.items()}
    torch.save({"params": trained, "params_ema": averaged}, tmp_path / "both.pth")
    assert same(file_tensors(ldm_core.restoration.load(tmp_path / "both.pth").network), averaged)
    report = inspect(tmp_path / "both.pth")
    assert (report.unknown, report.suspicious) == ((), ())
    assert set(report.ignored) == {f"params.{key}" for key in trained}
    torch.save({"params": trained}, tmp_path / "trained.pth")
    assert same(file_tensors(ldm_core.restoration.load(tmp_path / "trained.pth").network), trained)
    assert inspect(tmp_path / "trained.pth").ignored == {}


def test_snapshots_of_training_and_of_parallel_training(tmp_path: Path) -> None:
    tensors = file_tensors(random_network(SMALL["gpen"], torch.float32))
    other = {"final.weight": torch.ones(3)}
    state = {"state": {0: {"exp_avg": torch.ones(3)}}}
    snapshot = {"g": {**tensors}, "d": other, "g_ema": tensors, "g_optim": state, "d_optim": state}
    torch.save(snapshot, tmp_path / "gpen.pth")
    assert same(file_tensors(ldm_core.restoration.load(tmp_path / "gpen.pth").network), tensors)
    tensors = file_tensors(random_network(SMALL["mobilenet"], torch.float32))
    torch.save({f"module.{key}": value for key, value in tensors.items()}, tmp_path / "parallel.pth")
    assert same(file_tensors(ldm_core.restoration.load(tmp_path / "parallel.pth").network), tensors)


def test_dtype_and_a_network_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    original_file("mobilenet", path)
    half = ldm_core.restoration.load(path, dtype=torch.bfloat16, mmap=False)
    kinds = {value.dtype for value in half.network.state_dict().values()}
    assert kinds == {torch.bfloat16, torch.int64}
    assert half.network(torch.zeros(1, 3, 40, 40, dtype=torch.bfloat16))[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="device 'nowhere' cannot be used"):
        ldm_core.restoration.load(path, device="nowhere")
    assert ldm_core.load_part(path, "retinaface").config == SMALL["mobilenet"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["gpen", "codeformer", "gfpgan clean", "gfpgan original"])
def test_half_precision_stays_near(name: str) -> None:
    network, x = random_network(SMALL[name], torch.float32), picture(SMALL[name].size, dtype=torch.float32)
    how = {"w": 1.0} if name == "codeformer" else {}
    wanted = network(x, **how)
    found = network.bfloat16()(x.bfloat16(), **how).float()
    assert found.isfinite().all()
    assert (found - wanted).square().mean().sqrt() < 0.2 * wanted.std()


def test_inspect_names_the_file_and_its_licence() -> None:

    for name, words in (
        ("codeformer.pth", "S-Lab"),
        ("GFPGANv1.4.pth", "NVIDIA"),
        ("GPEN-BFR-256.pth", "non-commercial"),
    ):
        source = blank_source(name, prefix_of(name))
        found = diagnose(source.checkpoint, {source.part.slot: source})
        assert found.sure == "proved"
        assert name in found.family
        assert words in (found.licence or "")
        assert found.load == f"ldm_core.restoration.load({name!r})"


def test_the_report_of_a_small_file(tmp_path: Path) -> None:
    original_file("codeformer", tmp_path / "own.pth", "params_ema")
    report = inspect(tmp_path / "own.pth")
    text = str(report)
    assert "CodeFormer face restorer alone" in text
    assert f"licence     {UNKNOWN}" in text
    assert report.unknown == report.suspicious == ()
    assert report.parts["codeformer"]["prefix"] == "params_ema."


# --- bad input ---


def test_a_file_of_another_network_under_this_name(bundled: Any, tmp_path: Path) -> None:
    path = tmp_path / "codeformer.pth"
    ldm_core.save(bundled, tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt").rename(path)
    with pytest.raises(CheckpointError, match=r"codeformer.pth contains no network for faces; it contains a"):
        ldm_core.restoration.load(path)
    save_file({"some.weight": torch.ones(2)}, tmp_path / "GPEN-BFR-512.pth")
    with pytest.raises(CheckpointError, match="no known part"):
        ldm_core.restoration.load(tmp_path / "GPEN-BFR-512.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        ldm_core.restoration.load(tmp_path / "none.pth")


def test_a_restorer_is_no_latent_diffusion_model(tmp_path: Path) -> None:
    original_file("gpen", tmp_path / "gpen.pth")
    words = r"no latent diffusion model; it contains a GPEN face restorer \(gpen names\): use ldm"
    with pytest.raises(CheckpointError, match=words):
        ldm_core.load(tmp_path / "gpen.pth")
    with pytest.raises(CheckpointError, match="was given as the U-Net"):
        ldm_core.load(unet=tmp_path / "gpen.pth")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", list(SMALL))
def test_missing_wrong_and_unknown_tensors(name: str, tmp_path: Path) -> None:
    tensors = file_tensors(random_network(SMALL[name], torch.float32))
    large = max(tensors, key=lambda key: tensors[key].numel())
    for change, words in (
        ({large: None}, "does not fit|is missing|do not form|codebook|expected"),
        ({large: tensors[large][..., :-1]}, "does not fit|do not form|expected"),
        ({f"{large}.more": torch.ones(2)}, "not used by the model|numbered"),
        ({large: tensors[large] * torch.nan}, "not finite"),
    ):
        changed = {key: value for key, value in {**tensors, **change}.items() if value is not None}
        torch.save(changed, tmp_path / "damaged.pth")
        with pytest.raises(CheckpointError, match=words):
            ldm_core.restoration.load(tmp_path / "damaged.pth")


def test_positions_of_no_square(tmp_path: Path) -> None:
    tensors = file_tensors(random_network(CODEFORMER, torch.float32))
    torch.save({**tensors, "position_emb": torch.zeros(15, 16)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="shapes or numbers of layers do not fit"):
        ldm_core.restoration.load(tmp_path / "odd.pth")


def test_other_suffixes_stay_refused(bundled: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected one of the suffixes .safetensors, .ckpt, .pt, got"):
        ldm_core.save(bundled, tmp_path / "model.pth")


# --- full size ---


@pytest.mark.slow  # up to 400 MB and some seconds each
@pytest.mark.parametrize("name", [name for name in MODELS if "tensors" in MODELS[name]])
def test_a_full_size_file_loads_and_restores_one_picture(name: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for key, shape in shapes_of(name).items():
        fan_in = 1
        for side in shape[1:]:
            fan_in *= side
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.tensor(0)
        elif key.endswith("running_var"):
            tensors[key] = torch.ones(shape)
        else:
            tensors[key] = torch.randn(shape, generator=generator) / fan_in**0.5
    path = tmp_path / "model.pth"
    torch.save({prefix_of(name)[:-1]: tensors} if prefix_of(name) else tensors, path)
    assert read(path, values=False).tensors.keys() == {prefix_of(name) + key for key in tensors}
    restorer = ldm_core.restoration.load(path)
    assert restorer.files == () if name == "bilinear" else name in restorer.files
    size = getattr(restorer.config, "size", 512)
    with torch.inference_mode():
        found = restorer.network(picture(size, batch=1, dtype=torch.float32), **restorer.options)
    pictures = found if isinstance(found, tuple) else (found,)
    assert all(one.isfinite().all() for one in pictures)
    if isinstance(restorer.network, CodeFormer):
        assert pictures[0].shape == (1, 3, 512, 512)
