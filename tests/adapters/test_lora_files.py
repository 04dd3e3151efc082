"""Adapter files of every tool against the tools themselves, and files that no tool would write."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin as DiffusersLoader
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from support.adapter_files import (
    ATTENTION,
    CONVOLUTIONS,
    KOHYA_TEXT,
    KOHYA_UNET,
    TINY,
    Maker,
    Pair,
    Tensors,
    flat,
    kohya,
    kohya_unet,
    largest_error,
    layers,
    loha,
    lokr,
    lora,
    make,
    merged_weights,
    write,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ldm_core import build
from ldm_core.adapters.lora import apply_lora
from ldm_core.config import SD1, SD2_BASE
from ldm_core.loading.save import file_tensors

TOLERANCE = 1e-5  # float32 through some 60 layers, in another order of additions; measured: at most 3e-6


@pytest.fixture(scope="module")
def tiny() -> Pair:
    return Pair(TINY)


def check(small_pair: Pair, path: Path, expected: tuple[Tensor, Tensor]) -> None:
    """The adapter changes the outputs much, and to those expected."""
    adapter = apply_lora(small_pair.model, path)
    try:
        outputs = small_pair.ours()
        assert largest_error(outputs, small_pair.before) > 0.01
        assert largest_error(outputs, expected) < TOLERANCE
    finally:
        adapter.remove()


def loaded_by_diffusers(small_pair: Pair, path: Path) -> tuple[Tensor, Tensor]:
    unet, text_encoder = small_pair.copies()
    state, alphas, metadata = DiffusersLoader.lora_state_dict(
        str(path.parent), weight_name=path.name, unet_config=unet.config, return_lora_metadata=True
    )
    DiffusersLoader.load_lora_into_unet(state, alphas, unet, metadata=metadata)
    DiffusersLoader.load_lora_into_text_encoder(state, alphas, text_encoder, metadata=metadata)
    return small_pair.theirs(unet, text_encoder)


def with_alpha(adapter: dict[str, Tensors], alpha: float | None) -> dict[str, Tensors]:
    """The same alpha for all layers, or none."""
    extra = {} if alpha is None else {"alpha": torch.tensor(alpha)}
    return {name: {k: x for k, x in t.items() if k != "alpha"} | extra for name, t in adapter.items()}


# --- against the loaders of diffusers and PEFT ---


def test_kohya_with_convolutions(small_pair: Pair, tmp_path: Path) -> None:
    """With one alpha: diffusers gives a file's attention layers the commonest one, whatever their own."""
    unet = with_alpha(make(layers(small_pair.unet, KOHYA_UNET + CONVOLUTIONS)), 2.0)
    text = with_alpha(make(layers(small_pair.text_encoder, KOHYA_TEXT), seed=1), 3.0)
    path = write(tmp_path / "kohya.safetensors", kohya(unet, text))
    check(small_pair, path, loaded_by_diffusers(small_pair, path))


def without_suffix(name: str) -> str:
    return name.removesuffix(".0").removesuffix("_proj").removeprefix("to_")


def processor(layer: str) -> str:
    block, leaf = layer.rsplit(".to_", 1)
    return f"unet.{block}.processor.to_{without_suffix(leaf)}_lora"


def patched(layer: str) -> str:
    block, leaf = layer.rsplit(".", 1)
    return f"text_encoder.text_model.{block}.to_{without_suffix(leaf)}_lora"


OLD = {
    "processors": (processor, ".{}", patched, ".{}"),
    "lora.down": ("unet.{}".format, ".lora.{}", "text_encoder.text_model.{}".format, ".lora_linear_layer.{}"),
}


def renamed(adapter: dict[str, Tensors], named: Callable[[str], str], half: str) -> Tensors:
    return {
        f"{named(layer)}{half.format(side)}.weight": tensors[f"lora_{side}.weight"]
        for layer, tensors in adapter.items()
        for side in ("down", "up")
    }


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("names", "suffix"), [("processors", ".safetensors"), ("lora.down", ".bin")])
def test_diffusers_old(small_pair: Pair, tmp_path: Path, names: str, suffix: str) -> None:
    unet_name, unet_half, text_name, text_half = OLD[names]
    tensors = renamed(make(layers(small_pair.unet, ATTENTION)), unet_name, unet_half)
    text = make(layers(small_pair.text_encoder, ("q_proj", "k_proj", "v_proj", "out_proj")), seed=1)
    tensors |= renamed(text, text_name, text_half)
    expected = loaded_by_diffusers(small_pair, write(tmp_path / "x.safetensors", tensors))
    if suffix == ".bin":
        torch.save(tensors, tmp_path / "x.bin")
    check(small_pair, tmp_path / f"x{suffix}", expected)


def test_diffusers_old_without_its_networks_name(small_sd1: Pair, tmp_path: Path) -> None:
    adapter = with_alpha(make(layers(small_sd1.unet, ATTENTION)), None)
    tensors = renamed(adapter, lambda layer: processor(layer).removeprefix("unet."), ".{}")
    assert (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight" in tensors
    )
    check(small_sd1, write(tmp_path / "x.safetensors", tensors), small_sd1.merged(adapter))


def test_diffusers_new(small_pair: Pair, tmp_path: Path) -> None:
    """Written by diffusers, with the ranks and alphas of single layers in its metadata."""
    unet, text_encoder = small_pair.copies()
    torch.manual_seed(0)
    pattern = {"^mid_block.attentions.0.proj_in": 2}
    unet.add_adapter(
        LoraConfig(
            r=4,
            lora_alpha=6,
            rank_pattern=pattern,
            alpha_pattern={"attn2.to_k": 3, "to_k": 5, "^mid_block.attentions.0.proj_in": 1},
            target_modules=[*ATTENTION, "proj_in", "conv1"],
            init_lora_weights=False,
        )
    )
    text_encoder.add_adapter(
        LoraConfig(r=3, lora_alpha=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    )
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        text_encoder_lora_layers=get_peft_model_state_dict(text_encoder),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=text_encoder.peft_config["default"].to_dict(),
    )
    check(small_pair, tmp_path / "pytorch_lora_weights.safetensors", small_pair.theirs(unet, text_encoder))


def test_diffusers_new_of_one_network_and_without_metadata(small_sd1: Pair, tmp_path: Path) -> None:
    unet, text_encoder = small_sd1.copies()
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False))
    unet.save_lora_adapter(tmp_path / "with")
    write(tmp_path / "without.safetensors", get_peft_model_state_dict(unet))
    for path in (tmp_path / "with", tmp_path / "without.safetensors"):
        check(small_sd1, path, small_sd1.theirs(unet, text_encoder))


EVERYWHERE = [*ATTENTION, "proj_in", "conv1", "conv_shortcut"]


PEFT_CONFIGS: dict[str, Any] = {
    "lora": LoraConfig(r=4, lora_alpha=6, target_modules=EVERYWHERE, init_lora_weights=False),
    "rslora": LoraConfig(
        r=4, lora_alpha=3, use_rslora=True, target_modules=EVERYWHERE, init_lora_weights=False
    ),
    "lora with biases": LoraConfig(
        r=4, lora_alpha=6, lora_bias=True, target_modules=["to_out.0", "conv1"], init_lora_weights=False
    ),
    "loha": LoHaConfig(r=8, alpha=64, target_modules=EVERYWHERE, init_weights=False),
    "loha with cores": LoHaConfig(
        r=8, alpha=64, target_modules=EVERYWHERE, init_weights=False, use_effective_conv2d=True
    ),
    "lokr": LoKrConfig(
        r=2,
        alpha=3,
        rank_pattern={"conv1": 40},  # so large that its factors are whole: r and alpha still scale them
        alpha_pattern={"attn1.to_q": 1},
        target_modules=EVERYWHERE,
        init_weights=False,
    ),
    "lokr with cores": LoKrConfig(
        r=2,
        alpha=3,
        target_modules=EVERYWHERE,
        init_weights=False,
        use_effective_conv2d=True,
        decompose_both=True,
    ),
}


@pytest.mark.one_in(3)
@pytest.mark.filterwarnings("ignore:`lora_bias=True`", "ignore:Adapter 'default'")
@pytest.mark.parametrize("kind", PEFT_CONFIGS)
def test_peft_writes_the_folder_and_computes_the_outputs(tiny: Pair, tmp_path: Path, kind: str) -> None:
    unet, text_encoder = tiny.copies()
    torch.manual_seed(0)
    adapted = get_peft_model(unet, copy.deepcopy(PEFT_CONFIGS[kind]))
    adapted.save_pretrained(tmp_path, safe_serialization=kind != "rslora")
    check(tiny, tmp_path, tiny.theirs(adapted, text_encoder))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_peft_of_a_text_encoder(small_pair: Pair, tmp_path: Path) -> None:
    unet, text_encoder = small_pair.copies()
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["k_proj", "fc2"], init_lora_weights=False)
    adapted = get_peft_model(text_encoder, config)
    adapted.save_pretrained(tmp_path)
    expected = small_pair.theirs(unet, adapted)
    check(small_pair, tmp_path, expected)
    # As transformers before version 5 named them, and with the adapter's own name.
    file = tmp_path / "adapter_model.safetensors"
    tensors = {
        name.replace("model.encoder", "model.text_model.encoder").replace(".weight", ".default.weight"): x
        for name, x in get_peft_model_state_dict(adapted).items()
    }
    assert "base_model.model.text_model.encoder.layers.0.mlp.fc2.lora_A.default.weight" in tensors
    check(small_pair, write(file, tensors), expected)


# --- against the formulas ---

KINDS: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "lora": (lora, KOHYA_UNET + CONVOLUTIONS),
    "lora with cores": (lambda s, g: lora(s, g, core=len(s) == 4), CONVOLUTIONS),
    "loha": (loha, KOHYA_UNET + CONVOLUTIONS),
    "loha with cores": (lambda s, g: loha(s, g, core=True), CONVOLUTIONS),
    "lokr": (lokr, KOHYA_UNET + CONVOLUTIONS),
    "lokr with cores": (lambda s, g: lokr(s, g, first="product", second="core"), KOHYA_UNET + CONVOLUTIONS),
    "lokr of whole factors": (lambda s, g: lokr(s, g, second="whole"), KOHYA_UNET + CONVOLUTIONS),
    "full": (
        lambda s, g: {"diff": 0.02 * torch.randn(s, generator=g)},
        KOHYA_UNET + CONVOLUTIONS,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_lycoris(tiny: Pair, tmp_path: Path, kind: str) -> None:
    maker, ends = KINDS[kind]
    unet = make(layers(tiny.unet, ends), maker)
    text = make(layers(tiny.text_encoder, KOHYA_TEXT), maker, seed=1)
    check(tiny, write(tmp_path / "x.safetensors", kohya(unet, text)), tiny.merged(unet, text))


@pytest.mark.parametrize("dotted", [False, True])
def test_the_unets_original_names(small_pair: Pair, tmp_path: Path, dotted: bool) -> None:
    """Each change is added to CompVis's own tensor, which diffusers' converter takes to its network."""
    prefix = "model.diffusion_model."
    tensors = {
        key: value.clone() for key, value in file_tensors(small_pair.model).items() if key.startswith(prefix)
    }
    holder = nn.Module()  # modules of these names
    shapes = {}
    for key, value in tensors.items():
        if key.endswith(".weight") and value.ndim > 1:
            name = key.removeprefix(prefix).removesuffix(".weight")
            module: Any = holder
            for step in name.split("."):
                if not hasattr(module, step):
                    module.add_module(step, nn.Module())
                module = getattr(module, step)
            module.weight = value
            shapes[name] = tuple(value.shape)
    adapter = make(shapes)
    tensors |= {f"{prefix}{name}": value for name, value in merged_weights(holder, adapter).items()}
    unet, text_encoder = small_pair.copies()
    unet.load_state_dict(convert_ldm_unet_checkpoint(tensors, dict(unet.config)))
    names = "diffusion_model.{}".format if dotted else kohya_unet
    path = write(tmp_path / "x.safetensors", flat(adapter, names))
    check(small_pair, path, small_pair.theirs(unet, text_encoder))


def test_absent_alphas_are_the_ranks_and_others_count(small_sd1: Pair, tmp_path: Path) -> None:
    adapter = make(layers(small_sd1.unet, KOHYA_UNET))
    for alpha in (None, 1.0):
        path = write(tmp_path / f"{alpha}.safetensors", kohya(with_alpha(adapter, alpha)))
        check(small_sd1, path, small_sd1.merged(with_alpha(adapter, alpha or 4.0)))


def test_alphas_of_a_pickle_may_be_plain_numbers(small_sd1: Pair, tmp_path: Path) -> None:
    adapter = make(layers(small_sd1.unet, KOHYA_UNET))
    tensors: dict[str, Any] = kohya(adapter)
    tensors = {key: float(x) if key.endswith(".alpha") else x for key, x in tensors.items()}
    torch.save(tensors, tmp_path / "x.pt")
    check(small_sd1, tmp_path / "x.pt", small_sd1.merged(adapter))


@pytest.mark.parametrize("names", ["lora_te1_text_model_{}", "lora_te_{}"])
def test_other_names_of_the_text_encoder(small_sd1: Pair, tmp_path: Path, names: str) -> None:
    """Those beside SDXL's second encoder, and those of a kohya-ss or LyCORIS with transformers 5."""
    adapter = make(layers(small_sd1.text_encoder, KOHYA_TEXT))
    tensors = flat(adapter, lambda name: names.format(name.replace(".", "_")))
    check(small_sd1, write(tmp_path / "x.safetensors", tensors), small_sd1.merged({}, adapter))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_files_of_any_floating_type(small_sd1: Pair, tmp_path: Path, dtype: torch.dtype) -> None:
    """The values are those that the file holds, rounded as they are."""
    adapter = make(layers(small_sd1.unet, KOHYA_UNET))
    stored = {name: {k: x.to(dtype) for k, x in tensors.items()} for name, tensors in adapter.items()}
    wide = {name: {k: x.float() for k, x in tensors.items()} for name, tensors in stored.items()}
    check(small_sd1, write(tmp_path / "x.safetensors", kohya(stored)), small_sd1.merged(wide))


# --- at full size ---


def module_names(network: nn.Module, classes: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """kohya-ss's own rule: every linear and convolutional layer within modules of these classes."""
    return {
        f"{name}.{inner}": tuple(layer.weight.shape)
        for name, module in network.named_modules()
        if type(module).__name__ in classes
        for inner, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


@pytest.mark.parametrize(("config", "counts"), [(SD1, (192, 72)), (SD2_BASE, (192, 138))], ids=["sd1", "sd2"])
def test_every_name_of_a_published_models_adapter_is_known(
    config: Any, counts: tuple[int, int], tmp_path: Path
) -> None:
    """The lists come from diffusers' and transformers' networks by kohya-ss's rule."""
    sd2 = config is SD2_BASE
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=config.unet.context_dim,
            use_linear_projection=sd2,
            attention_head_dim=[5, 10, 20, 20] if sd2 else 8,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16
            )
            if sd2
            else CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
        )
    unet_layers = module_names(unet, ("Transformer2DModel",))
    text_layers = module_names(text_encoder, ("CLIPAttention", "CLIPMLP"))
    assert (len(unet_layers), len(text_layers)) == counts
    convolutions = module_names(unet, ("ResnetBlock2D", "Downsample2D", "Upsample2D"))
    rank1 = {"unet": unet_layers | convolutions, "text": text_layers}
    tensors = {
        part: {
            name: {
                "lora_down.weight": torch.zeros(1, *shape[1:], dtype=torch.float16),
                "lora_up.weight": torch.zeros(shape[0], 1, *[1] * len(shape[2:]), dtype=torch.float16),
            }
            for name, shape in shapes.items()
        }
        for part, shapes in rank1.items()
    }
    path = write(tmp_path / "x.safetensors", kohya(tensors["unet"], tensors["text"]))
    adapter = apply_lora(build(config, device="meta"), path)
    assert len(adapter.layers) == len(unet_layers) + len(convolutions) + len(text_layers)
    assert set(adapter.layers.values()) == {1}
