"""Files with names that are known and shapes that are not: always an answer in words, never a crash."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.checkpoint_files import safetensors_bytes
from support.configs import SMALL
from support.examples import examples

import ldm_core
from ldm_core.checkpoint import CheckpointError, inspect
from ldm_core.loading.convert import convert
from ldm_core.loading.diffusers_folder import part_maps
from ldm_core.loading.original_file import file_map
from ldm_core.loading.parts import part_configs

PREFIXES = {"unet/diffusion_pytorch_model": "unet.", "vae/diffusion_pytorch_model": "vae."}
LISTS: dict[str, list[str]] = {
    "sd1": list(file_map(part_configs(SMALL["sd1"]))),
    "sd2": list(file_map(part_configs(SMALL["sd2"]))),
    "diffusers": [
        PREFIXES.get(file, "text_encoder.") + key
        for file, key_map in part_maps(SMALL["sd2"]).items()
        for key in key_map
    ],
}
SHAPES = st.lists(st.integers(0, 3) | st.sampled_from([4, 32, 64, 77, 96]), max_size=4)


def write_file_of(shapes: dict[str, list[int]], path: Path) -> None:
    """Its values are a hole in the file: of some shapes they would be 24 GB."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    with path.open("wb") as file:
        file.write(safetensors_bytes(header))
        file.truncate(file.tell() + end)


@st.composite
def odd_files(draw: st.DrawFn) -> dict[str, list[int]]:
    """Some or nearly all of a model's names, a few of them changed, with any small shapes."""
    names = draw(st.sampled_from(list(LISTS.values())))
    few = draw(st.integers(0, 40))
    if draw(st.booleans()):
        missing = draw(st.sets(st.sampled_from(names), max_size=few))
        names = [name for name in names if name not in missing]
    else:
        names = sorted(draw(st.sets(st.sampled_from(names), min_size=1, max_size=1 + few)))
    cut = draw(st.sampled_from(["", "", "model.diffusion_model.", "first_stage_model.", "unet."]))
    names = list(dict.fromkeys(name.removeprefix(cut) for name in names))
    shape = draw(SHAPES)
    special = draw(st.dictionaries(st.sampled_from(names), SHAPES, max_size=10))
    extra = draw(
        st.dictionaries(st.sampled_from(["betas", "scale_factor", "x", "v_pred"]), SHAPES, max_size=2)
    )
    return {**{name: special.get(name, shape) for name in names}, **extra}


@given(shapes=odd_files(), name=st.sampled_from(["sd1", "sd2", None]))
@examples(25, suppress_health_check=list(HealthCheck))
def test_any_shapes_are_explained_or_refused(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]], name: str | None
) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "odd.safetensors"
    write_file_of(shapes, path)
    report = inspect(path)
    assert report.family
    assert str(report)
    config = None if name is None else SMALL[name]
    for attempt in (lambda: ldm_core.load(path, config=config), lambda: convert(path, f"{path}.ckpt")):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        assert "odd.safetensors" in str(caught.value)
