"""What the fuzzers start from: small good inputs, the tests' hostile ones, and what fuzzing has found.

An input that broke a promise once is kept as a file `regressions/TARGET/WHAT`.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.checkpoint_files import tensor_pickle, torch_bytes
from support.hostile_pickles import PICKLES, beside_tensors
from support.training_pictures import png

from ldm_core.recipe import AdapterFile, ControlFile, Recipe, SourceFile, to_json, to_parameters_text

REGRESSIONS = Path(__file__).parent / "regressions"
MAX_SEED = 2**13  # bytes; small inputs are executed, and understood, faster

FILE = SourceFile("model.safetensors", "0123456789abcdef" * 4, "models/model.safetensors")
RECIPE = Recipe(
    task="txt2img", prompt="a cat", seed=7, steps=20, width=64, height=32, guidance_scale=7.5,
    scheduler="DDIM", model=FILE,
)  # fmt: skip
FULL_RECIPE = replace(
    RECIPE, task="img2img", prompt='é "a", b:\n(c)', negative_prompt="grey", scheduler="DPMSolverMultistep",
    scheduler_settings={"spacing": "karras", "eta": 0.5}, guidance_rescale=0.7, strength=0.4, clip_skip=1,
    config="sd1", prediction="v", ema=True, autoencoder=FILE, loras=(AdapterFile(FILE, 0.5, "style"),),
    embeddings=(AdapterFile(FILE, 1.0, "<toy>"),), image=FILE, mask=FILE, device="cpu", dtype="float32",
    versions={"ldm_core": "0.1.0"}, controls=(ControlFile(FILE, FILE, 0.5, 0.1, 0.8, "original"),), clip=FILE,
    ip_adapter=FILE, image_prompts=(FILE,), image_scale=0.6,
)  # fmt: skip

YAML = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params: {linear_start: 0.00085, linear_end: 0.0120, timesteps: 1000, image_size: 64, scale_factor: 0.18215,
           parameterization: "v", beta_schedule: linear, scale_by_std: false}
"""
UNET = """    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        in_channels: 4
        out_channels: 4
        model_channels: 320
        attention_resolutions: [ 4, 2, 1 ]
        num_res_blocks: 2
        channel_mult: [ 1, 2, 4, 4 ]
        num_heads: 8
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: 768
"""
AUTOENCODER = """    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig: {double_z: true, z_channels: 4, resolution: 256, in_channels: 3, out_ch: 3, ch: 128,
                   ch_mult: [1, 2, 4, 4], num_res_blocks: 2, attn_resolutions: [], dropout: 0.0}
"""
TEXT_ENCODER = """    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
"""
OPEN_CLIP = """    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params: {freeze: True, layer: "penultimate"}
"""
BLOCK_PARAMS = "model:\n  params:\n    linear_start: 0.00085\n    linear_end: 0.0120\n    timesteps: 1000\n"

PROMPTS = (
    "a photograph of an astronaut riding a horse",
    "An  ORANGE\tcat's &amp;amp; “quoted” ﬁsh, 1234",
    "<start_of_text> <|endoftext|> <cat-toy> NEW WORD new wordy",
    "日本語のテキスト ภาษาไทย 🐱\u200d👩 e\u0301\u0345 'ſ",
    "\ud800 half a pair",
    "x" * 600,
    "&#x41;&lt;&amp;lt;&#xD800;&#1114112;",
    "schön \u00c3\u00a9 â€œmojibakeâ€\u009d",
)


def seeds(name: str) -> list[bytes]:
    """The inputs that a target starts from."""
    folder = REGRESSIONS / name
    found = [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []
    return [*(data for data in _MADE[name]() if len(data) <= MAX_SEED), *found]


def _pickle() -> list[bytes]:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half(), "c": torch.tensor(5)}
    value = {"epoch": 3, "state_dict": tensors, "optimizer_states": [{"lr": 1e-4}], "seen": {1, 2}}
    hostile = [beside_tensors(data[2:-1]) if data[:1] == b"\x80" else data for data in PICKLES.values()]
    return [
        tensor_pickle(),
        torch_bytes({"w": torch.ones(2)}),
        torch_bytes(value, protocol=4),
        torch_bytes(value, legacy=True),
        *hostile,
    ]


def _safetensors() -> list[bytes]:
    whole = [
        safetensors.torch.save({"a": torch.ones(2, 2), "b": torch.zeros(3).half()}, {"format": "pt"}),
        safetensors.torch.save({"betas": torch.linspace(0.1, 0.2, 8), "global_step": torch.tensor(3)}),
        safetensors.torch.save({"x": torch.zeros(0, 3), "y": torch.tensor([True])}, {"ss_steps": "7"}),
        safetensors.torch.save(
            {
                "lora_unet_mid_block.lora_up.weight": torch.ones(2, 1),
                "lora_unet_mid_block.lora_down.weight": torch.ones(1, 2),
                "lora_unet_mid_block.alpha": torch.tensor(1.0),
            },
            {"modelspec.prediction_type": "v", "ldm_core.config": "{}"},
        ),
    ]
    return [*whole, *(data[8:] for data in whole)]


def _recipe() -> list[bytes]:
    made = [(to_json(one), to_parameters_text(one)) for one in (RECIPE, FULL_RECIPE)]
    pictures = []
    for json_text, text in made:
        for chunks in ({"ldm_core": json_text, "parameters": text}, {"parameters": text}):
            info = PngInfo()
            for key, value in chunks.items():
                info.add_text(key, value, zip=key == "ldm_core" and len(chunks) == 1)
            file = io.BytesIO()
            Image.new("RGB", (2, 1)).save(file, "PNG", pnginfo=info)
            pictures.append(file.getvalue())
    return [*(part.encode() for pair in made for part in pair), *pictures]


def _yaml() -> list[bytes]:
    nested = BLOCK_PARAMS + UNET + AUTOENCODER + TEXT_ENCODER
    second = BLOCK_PARAMS + UNET.replace("num_heads: 8", "num_head_channels: 64") + AUTOENCODER + OPEN_CLIP
    aliases = nested.replace("[ 1, 2, 4, 4 ]", "&m [ 1, 2, 4, 4 ]").replace("[1, 2, 4, 4]", "*m")
    as_json = json.dumps({"model": {"params": {"unet_config": {"params": {"in_channels": 4}}}}})
    return [text.encode() for text in (nested, second, aliases, YAML, as_json)]


def _shards() -> list[bytes]:
    picture, gif = png((1, 2, 3), (2, 2)), png((1, 2, 3), (2, 2), "GIF")
    one = {"a.png": picture, "a.txt": b"a cat", "b/c.gif": gif, "b/c.json": b'{"text": ["x", "y"]}'}
    other = {"n" * 120 + ".bmp": png((9, 9, 9), (1, 1), "BMP"), "n" * 120 + ".txt": b"long name"}
    return [
        _tar(members, form)
        for members in (one, other)
        for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]


def _tar(members: dict[str, bytes], form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = {"comment": "é"}
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:  # a name that is too long for this format
                continue
    # An archive is padded to 10 KiB with zeros, of which two blocks are enough.
    length = len(file.getvalue().rstrip(b"\0"))
    return file.getvalue()[: -(-length // 512) * 512] + bytes(1024)


def _tokenizer() -> list[bytes]:
    return [text.encode("utf-8", errors="surrogatepass") for text in PROMPTS] + [
        struct.pack("<8H", *range(8))
    ]


_MADE = {
    "pickle": _pickle,
    "recipe": _recipe,
    "yaml": _yaml,
    "safetensors": _safetensors,
    "shards": _shards,
    "tokenizer": _tokenizer,
}
