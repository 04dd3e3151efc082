"""Draws the pictures of the eight steps with the bundled model: docs/idea/pictures/*.webp.

    python docs/idea/pictures.py

The build of the site calls `draw`, so the site's pictures are always those of the code and the model that it
describes. The files in the repository are for readers of the plain pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import ldm_core
from ldm_core.watch import Recorder, make_grid

FOLDER = Path(__file__).parent / "pictures"
STEPS = 20
RUN = {"steps": STEPS, "guidance_scale": 4.0}
ANIMALS = ["grinning cat", "tiger face", "panda", "fox", "penguin", "red apple"]


def draw() -> Iterator[tuple[str, Image.Image]]:
    """Each picture and its name, in about twenty seconds of one core."""
    model = ldm_core.load()
    sampler = ldm_core.Sampler(model)
    recorder = Recorder(model, captions=["grinning cat"])
    cat = sampler.txt2img("grinning cat", seed=0, on_step=recorder, output="latent", **RUN)
    picture = _decoded(model, cat)[0]
    yield "1-two-tasks", two_tasks(sampler, picture)
    yield "2-two-components", two_components(sampler)
    yield "3-words-to-vectors", words_to_vectors(model)
    yield (
        "4-creator-and-decoder",
        make_grid([[picture, _channels(cat[0])]], labels=[["picture", "its latent"]], tile=200),
    )
    yield "5-three-networks", three_networks(model, cat)
    yield "6-forward-and-back", forward_and_back(model, cat)
    yield "7-every-step", recorder.strip(columns=7, tile=96)
    yield "8-guidance", guidance(sampler)


def two_tasks(sampler: ldm_core.Sampler, cat: Image.Image) -> Image.Image:
    new = sampler.txt2img(ANIMALS, seed=0, **RUN)
    strengths = [0.5, 0.7, 0.9]
    changed = [sampler.img2img("tiger face", cat, strength=s, seed=1, **RUN)[0] for s in strengths]
    labels = [ANIMALS, ["start", *(f"strength {s}" for s in strengths)]]
    return make_grid([new, [cat, *changed]], rows=["text", "picture and\n“tiger face”"], labels=labels)


def two_components(sampler: ldm_core.Sampler) -> Image.Image:
    texts, seeds = ["red apple", "blue heart", "fire"], [4, 5, 6, 7]
    rows = [sampler.txt2img([text] * len(seeds), seed=seeds, **RUN) for text in texts]
    return make_grid(rows, rows=texts, labels=[[f"noise {seed}" for seed in seeds]])


def words_to_vectors(model: ldm_core.LatentDiffusion) -> Image.Image:
    """The cosines between the vectors of the last tokens, as a table of colours."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    texts = ["cat", "tiger face", "dog", "red apple", "strawberry", "grinning face", "crying face", "rocket"]
    tokens = model.tokenizer(texts)
    with torch.no_grad():
        context = model.text_encoder(tokens)
    ends = tokens.eq(tokens.max()).int().argmax(dim=1)
    vectors = context[torch.arange(len(texts)), ends]
    vectors = torch.nn.functional.normalize(vectors - vectors.mean(dim=0), dim=1)
    cosines = (vectors @ vectors.T).numpy()
    figure, axes = plt.subplots(figsize=(6.4, 4.6), dpi=110)
    image = axes.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(texts)), texts, rotation=35, ha="right")
    axes.set_yticks(range(len(texts)), texts)
    for i, row in enumerate(cosines):
        for j, value in enumerate(row):
            axes.text(
                j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color="w" if value > 0.7 else "k"
            )
    figure.colorbar(image, label="cosine")
    figure.tight_layout()
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())
    plt.close(figure)
    return Image.fromarray(drawn).convert("RGB")


def three_networks(model: ldm_core.LatentDiffusion, latent: torch.Tensor) -> Image.Image:
    """What each network returns: a context, a prediction for a noisy latent, and pixels."""
    schedule, t = model.noise_schedule, 500
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    noisy = schedule.add_noise(latent, noise, t)
    context = model.condition("grinning cat").context
    with torch.no_grad():
        found = schedule.interpret(noisy, model.unet(noisy, t, context), t, model.config.prediction)
    words = Image.fromarray(_grey(context[0])).resize((200, 200), Image.Resampling.NEAREST)
    row = [
        words,
        _channels(noisy[0]),
        _channels(found.eps[0]),
        _channels(found.x0[0]),
        *_decoded(model, found.x0),
    ]
    labels = [
        "text encoder\n77 vectors",
        "a noisy latent\nt = 500",
        "U-Net\nits noise",
        "scheduler\nwithout it",
        "decoder\nin pixels",
    ]
    return make_grid([row], labels=[labels], tile=150)


def forward_and_back(model: ldm_core.LatentDiffusion, latent: torch.Tensor) -> Image.Image:
    """Noise added to pixels, and to the latent, which is then decoded."""
    schedule, times = model.noise_schedule, [0, 150, 300, 500, 700, 999]
    draw = torch.Generator().manual_seed(0)
    pixels = model.decode_latent(latent)
    in_pixels, in_latents = (
        torch.randn(pixels.shape, generator=draw),
        torch.randn(latent.shape, generator=draw),
    )
    above = torch.cat([schedule.add_noise(pixels, in_pixels, t) for t in times])
    below = torch.cat([schedule.add_noise(latent, in_latents, t) for t in times])
    rows = [_pictures(above), _decoded(model, below)]
    return make_grid(
        rows, rows=["pixels", "latent,\ndecoded"], labels=[[f"t = {t}" for t in times]], tile=112
    )


def guidance(sampler: ldm_core.Sampler) -> Image.Image:
    texts, scales = ["panda", "birthday cake", "rocket"], [0.0, 1.0, 2.0, 4.0, 7.5, 15.0]
    columns = [sampler.txt2img(texts, seed=[0, 0, 0], steps=STEPS, guidance_scale=scale) for scale in scales]
    rows = [list(row) for row in zip(*columns)]
    return make_grid(rows, rows=texts, labels=[[f"scale {scale:g}" for scale in scales]], tile=112)


def _decoded(model: ldm_core.LatentDiffusion, latents: torch.Tensor) -> list[Image.Image]:
    with torch.no_grad():
        return _pictures(model.decode_latent(latents))


def _pictures(images: torch.Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] as pictures."""
    values = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(value) for value in values]


def _channels(latent: torch.Tensor) -> Image.Image:
    """The 16 channels (16, 8, 8) as four rows of four grey pictures."""
    tiles = torch.nn.functional.pad(latent, (0, 1, 0, 1), value=3.0)  # a white line between them
    sheet = tiles.unflatten(0, (4, 4)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return Image.fromarray(_grey(sheet[:-1, :-1])).resize((210, 210), Image.Resampling.NEAREST)


def _grey(values: torch.Tensor) -> np.ndarray:
    """-3 is black and 3 is white."""
    return ((values.clamp(-3, 3) + 3) * 42.5).round().byte().numpy()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, picture in draw():
        picture.save(FOLDER / f"{name}.webp", "WEBP", quality=90)


if __name__ == "__main__":
    main()
