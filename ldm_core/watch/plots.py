"""Plots of schedules, sampling runs and attention by matplotlib: `pip install ldm_core[plot]`.

Each function returns a `matplotlib.figure.Figure`, which `figure.savefig("plot.png")` writes and a notebook
shows. No window is opened, and matplotlib's global state stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.task_types import SamplerStep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 6.0, 3.6  # inches of one plot
BLUE, ORANGE = "#3b6fb6", "#d1743c"
MARKERS = "osD^vPX*"


def plot_schedules(schedules: NoiseSchedule | Mapping[str, NoiseSchedule]) -> Figure:
    """The forward process: the amounts of signal and noise, and the signal-to-noise ratio, over t.

    schedules: one, or several by name. On the left sqrt(alphas_cumprod[t]), solid, and
        sqrt(1 - alphas_cumprod[t]), dashed (Ho et al. 2020, arXiv:2006.11239, equation 4); on the right
        log10 of alphas_cumprod[t] / (1 - alphas_cumprod[t]).
    """
    named = {"": schedules} if isinstance(schedules, NoiseSchedule) else dict(schedules)
    if not named:
        raise ValueError("expected at least one noise schedule, got none")
    figure, (amounts, ratio) = _figure(2)
    for k, (name, schedule) in enumerate(named.items()):
        signal = schedule.alphas_cumprod
        colour, label = f"C{k}", {"label": name} if name else {}
        amounts.plot(signal.sqrt(), color=colour if name else BLUE, **(label or {"label": "signal"}))
        amounts.plot(
            (1 - signal).sqrt(),
            color=colour if name else ORANGE,
            linestyle="--",
            **({} if name else {"label": "noise"}),
        )
        ratio.plot((signal / (1 - signal)).log10(), color=colour if name else BLUE)
    amounts.set(title="Signal and noise (dashed)", ylim=(0, 1.02))
    ratio.set(title="Signal-to-noise ratio, log10")
    ratio.axhline(0, color="grey", linewidth=0.8)
    amounts.legend(frameon=False)
    return _labelled(figure, "timestep t")


def plot_statistics(steps: Sequence[SamplerStep]) -> Figure:
    """The latents of a run: mean and standard deviation of each channel, and the change of x0 by step.

    steps: `list(sampler.steps(…))`, or what an `on_step` callback collected. Of a batch, all images count.
    """
    if len(steps) < 2:
        raise ValueError(f"expected at least two steps, got {len(steps)}")
    latents = torch.stack([step.latent.detach().float().cpu() for step in steps])  # (steps, B, C, h, w)
    predicted = torch.stack([step.x0.detach().float().cpu() for step in steps])
    number = torch.arange(1, len(steps) + 1)
    figure, (spread, change) = _figure(2)
    for channel in range(latents.shape[2]):
        values = latents[:, :, channel].flatten(1)
        spread.plot(number, values.std(dim=1), color=BLUE, alpha=0.6, linewidth=1)
        spread.plot(number, values.mean(dim=1), color=ORANGE, alpha=0.6, linewidth=1)
    for colour, label in ((BLUE, "standard deviation"), (ORANGE, "mean")):
        spread.plot([], [], color=colour, label=label)
    spread.legend(frameon=False)
    spread.set(title="Latent, a line for each channel")
    change.plot(
        number[1:], predicted.diff(dim=0).flatten(1).square().mean(dim=1).sqrt(), color=BLUE, marker="o"
    )
    change.set(title="Change of the predicted x0, RMS", ylim=(0, None))
    return _labelled(figure, "step")


def token_weights(maps: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """The share of each token in cross-attention, by step: (steps, tokens), rows that sum to 1.

    maps: of `record_attention(model, where="attn2")`: for each layer one (B, heads, N, M) a step. The mean
        is over layers, heads and places, of the last image, which is the guided one.
    Raises ValueError if the layers were not called equally often.
    """
    counts = {len(calls) for calls in maps.values()}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"expected maps with one call of each layer a step, got {sorted(counts)} calls")
    layers = [torch.stack([call[-1].float().mean(dim=(0, 1)) for call in calls]) for calls in maps.values()]
    return torch.stack(layers).mean(dim=0)


def plot_token_attention(maps: Mapping[str, Sequence[Tensor]], tokens: Sequence[str]) -> Figure:
    """How much each token of a prompt weighs in cross-attention at each step, in per cent.

    maps: of `record_attention(model, where="attn2")` around one call of `txt2img`.
    tokens: what to call the tokens 1, 2, … of the prompt, in their order; token 0, the start of the text,
        takes most of the attention and is left out.
    Raises ValueError for no tokens, or more than there are.
    """
    weights = token_weights(maps)
    if not 0 < len(tokens) < weights.shape[1]:
        raise ValueError(f"expected 1 to {weights.shape[1] - 1} tokens, got {len(tokens)}")
    shown = 100 * weights[:, 1 : 1 + len(tokens)].T.numpy()
    figure, (axes,) = _figure(1, height=1.4 + 0.35 * len(tokens))
    image = axes.imshow(
        shown, aspect="auto", cmap="viridis", extent=(0.5, len(weights) + 0.5, len(tokens), 0)
    )
    axes.set_yticks([k + 0.5 for k in range(len(tokens))], tokens)
    axes.set(title="Share of cross-attention, %")
    figure.colorbar(image, ax=axes)
    return _labelled(figure, "step")


def plot_errors(measured: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """The error of samplers over their network calls, on logarithmic axes: what `solver_errors` returns."""
    if not any(measured.values()):
        raise ValueError("expected at least one measured error, got none")
    figure, (axes,) = _figure(1, width=8.5, height=5)
    from matplotlib.ticker import LogLocator

    for k, (name, points) in enumerate(measured.items()):
        axes.loglog(*zip(*points), marker=MARKERS[k % len(MARKERS)], label=name, markersize=5, linewidth=1.5)
    calls = sorted({count for points in measured.values() for count, _ in points})
    axes.set(
        ylabel="RMS error of the final latents", xticks=calls, xticklabels=[str(count) for count in calls]
    )
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _labelled(figure, "network calls")


def _figure(count: int, width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Any]:
    """A figure with `count` plots side by side, and its axes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install ldm_core[plot]") from error
    figure = Figure(figsize=(width * count, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _labelled(figure: Figure, label: str) -> Figure:
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>":
            axes.set_xlabel(label)
            axes.spines[["top", "right"]].set_visible(False)
    return figure
