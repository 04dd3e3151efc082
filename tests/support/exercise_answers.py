"""Answers to the exercises: the library's functions, answers by hand, and wrong ones.

LIBRARY  the library's own functions, adapted in a few lines, by the name of the exercise
BY_HAND  formulas, by the name of the exercise
WRONG    (exercise, what is replaced in the answer by hand, by what, words of the report)
"""

from __future__ import annotations

LIBRARY = {
    "forward_process": """
import torch
from ldm_core.noise_schedule import NoiseSchedule

def add_noise(x0, noise, alphas_cumprod, t):
    before = torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    return NoiseSchedule(betas=1 - alphas_cumprod / before).add_noise(x0, noise, t)
""",
    "guidance": """
from ldm_core import ClassifierFreeGuidance

guidance = ClassifierFreeGuidance()
""",
    "ddim_step": """
from ldm_core.schedulers import ddim_update

def ddim_step(schedule, x, eps, t, t_prev, eta, noise):
    x0 = schedule.x0_from_eps(x, eps, t)
    return ddim_update(schedule, x0, eps, t, t_prev, set_alpha_to_one=True, eta=eta, noise=noise)
""",
    "min_snr": "from ldm_core.training.diffusion_loss import min_snr_weight",
    "attention": "from ldm_core.attention import attention",
    "lora_layer": """
import torch
from torch import nn
from ldm_core.training.lora import _LowRank

class LoRALinear(_LowRank):
    def __init__(self, layer, rank, alpha):
        super().__init__(layer, rank, alpha / rank, torch.Generator().manual_seed(0))
        self.layer = layer.requires_grad_(False)

    def forward(self, x):
        return super().forward(self.layer, (x,), self.layer(x))
""",
    "vq_lookup": """
from ldm_core.autoencoder.vq import look_up, nearest_codes

def quantize(h, codebook):
    indices = nearest_codes(codebook, h.permute(0, 2, 3, 1))
    return look_up(codebook, indices).detach() + (h - h.detach()), indices
""",
    "img2img_start": """
from ldm_core.schedulers import truncate

def img2img_start(x0, noise, schedule, pairs, strength):
    t, rest = truncate(pairs, strength)
    return schedule.add_noise(x0, noise, t), rest
""",
    "bpe_merge": """
from ldm_core.clip import bpe

def merge(symbols, ranks):
    tables, ids = bpe.tables(), bpe.merge("".join(symbols).removesuffix("</w>"))
    return [tables.token_bytes[k].decode() + "</w>" * tables.ends_word[k] for k in ids]
""",
    "residual_block": """
import torch
import torch.nn.functional as F
from ldm_core.checkpoint.key_map import expand, to_parameters
from ldm_core.nn.blocks import ResBlock
from ldm_core.unet.names import COMPVIS_RES

def res_block(x, emb, tensors):
    with torch.device("meta"):
        block = ResBlock(x.shape[1], len(tensors["in_layers.2.bias"]), time_channels=emb.shape[1])
    shapes = {name: p.shape for name, p in block.named_parameters()}
    weights = to_parameters(expand(COMPVIS_RES, shapes), tensors, shapes, source="the file")
    block.load_state_dict(weights, assign=True)
    return block(x, F.silu(emb))
""",
    "plms": "from ldm_core import PNDM as PLMS",
    "key_map": """
from functools import lru_cache
from ldm_core.unet import UNetConfig
from ldm_core.unet.names import compvis_map

@lru_cache
def keys(blocks, attends):
    levels, attended = range(len(attends)), [2**l for l, yes in enumerate(attends) if yes]
    channels = [2**l for l in levels]
    config = UNetConfig(channel_mult=channels, num_res_blocks=blocks, attention_resolutions=attended)
    return {name: key for key, entry in compvis_map(config).items() for name in entry.parameters}

def file_key(name, blocks, attends):
    return keys(blocks, tuple(attends))[name]
""",
}

BY_HAND = {
    "forward_process": """
def add_noise(x0, noise, alphas_cumprod, t):
    alpha = alphas_cumprod[t][:, None, None, None].to(x0.dtype)
    return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
""",
    "guidance": """
def guidance(network, x, t, cond, uncond, scale, progress):
    without, given = network(x, t, uncond), network(x, t, cond)
    return without + scale * (given - without)
""",
    "ddim_step": """
def ddim_step(schedule, x, eps, t, t_prev, eta, noise):
    alpha, prev = schedule.alpha_cumprod(t), schedule.alpha_cumprod(t_prev)
    x0 = (x - (1 - alpha) ** 0.5 * eps) / alpha**0.5
    sigma = eta * ((1 - prev) / (1 - alpha) * (1 - alpha / prev)) ** 0.5
    return prev**0.5 * x0 + max(0.0, 1 - prev - sigma**2) ** 0.5 * eps + sigma * noise
""",
    "min_snr": """
def min_snr_weight(alphas_cumprod, gamma, target):
    snr = alphas_cumprod / (1 - alphas_cumprod)
    smaller = snr.clamp(max=gamma)
    if target == "x0":
        return smaller
    if target == "v":
        return smaller / (snr + 1)
    return (gamma / snr).clamp(max=1)
""",
    "attention": """
import torch

def attention(q, k, v, *, causal=False):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(dim=-1) @ v
""",
    "lora_layer": """
import torch
from torch import nn

class LoRALinear(nn.Module):
    def __init__(self, layer, rank, alpha):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.layer(x) + self.scale * (x @ self.down.T @ self.up.T)
""",
    "vq_lookup": """
def quantize(h, codebook):
    z = h.detach().permute(0, 2, 3, 1)
    distances = (z[..., None, :] - codebook.detach()).square().sum(dim=-1)
    indices = distances.argmin(dim=-1)
    codes = codebook[indices].permute(0, 3, 1, 2)
    return h + (codes - h).detach(), indices
""",
    "img2img_start": """
def img2img_start(x0, noise, schedule, pairs, strength):
    k = round(strength * len(pairs))
    rest = pairs[len(pairs) - k:]
    return schedule.add_noise(x0, noise, rest[0][0]), rest
""",
    "bpe_merge": """
def merge(symbols, ranks):
    symbols = list(symbols)
    while True:
        pairs = [pair for pair in zip(symbols, symbols[1:]) if pair in ranks]
        if not pairs:
            return symbols
        best = min(pairs, key=ranks.get)
        k = list(zip(symbols, symbols[1:])).index(best)
        symbols[k : k + 2] = ["".join(best)]
""",
    "residual_block": """
import torch.nn.functional as F

def res_block(x, emb, tensors):
    def half(h, norm, conv):
        h = F.group_norm(h, 32, tensors[norm + ".weight"], tensors[norm + ".bias"], 1e-5)
        return F.conv2d(F.silu(h), tensors[conv + ".weight"], tensors[conv + ".bias"], padding=1)

    h = half(x, "in_layers.0", "in_layers.2")
    time = F.linear(F.silu(emb), tensors["emb_layers.1.weight"], tensors["emb_layers.1.bias"])
    h = half(h + time[:, :, None, None], "out_layers.0", "out_layers.3")
    if "skip_connection.weight" in tensors:
        x = F.conv2d(x, tensors["skip_connection.weight"], tensors["skip_connection.bias"])
    return x + h
""",
    "plms": """
from ldm_core.schedulers import Step, ddim_update, spaced_pairs

WEIGHTS = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])

class PLMS:
    def timesteps(self, schedule, n):
        return spaced_pairs(len(schedule), n, "leading", 1)

    def step(self, predict, x, t, t_prev, history, noise):
        now, past = predict(x, t).eps, history or []
        if not past and t_prev != -1:
            then = predict(self.move(predict.schedule, x, now, t, t_prev)[0], t_prev).eps
            combined = (now + then) / 2
        else:
            known = [now, *past]
            combined = sum(w * e for w, e in zip(WEIGHTS[len(known) - 1], known))
        return Step(*self.move(predict.schedule, x, combined, t, t_prev), [now, *past][:3])

    def move(self, schedule, x, eps, t, t_prev):
        x0 = schedule.x0_from_eps(x, eps, t)
        return ddim_update(schedule, x0, eps, t, t_prev), x0
""",
    "key_map": """
import re

RES = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_proj": "emb_layers.1",
       "norm2": "out_layers.0", "conv2": "out_layers.3", "skip": "skip_connection"}
FIXED = {"time_embed.linear1": "time_embed.0", "time_embed.linear2": "time_embed.2",
         "conv_in": "input_blocks.0.0", "norm_out": "out.0", "conv_out": "out.2"}
INNER = {"blocks.": "transformer_blocks.", "to_out": "to_out.0", "ff.proj_in": "ff.net.0.proj",
         "ff.proj_out": "ff.net.2"}

def res(module):
    return RES[module]

def transformer(module):
    for old, new in INNER.items():
        module = module.replace(old, new)
    return module

def file_key(name, blocks, attends):
    module, tensor = name.rsplit(".", 1)
    return f"{key(module, blocks, attends)}.{tensor}"

def key(module, blocks, attends):
    if module in FIXED:
        return FIXED[module]
    if module.startswith("mid."):
        _, part, inner = module.split(".", 2)
        place = {"res1": 0, "attention": 1, "res2": 2}[part]
        return f"middle_block.{place}.{res(inner) if place != 1 else transformer(inner)}"
    way, level, rest = module.split(".", 2)
    level = int(level)
    if rest == "resample.conv" and way == "down":
        return f"input_blocks.{(level + 1) * (blocks + 1)}.0.op"
    if rest == "resample.conv":
        last = 2 if attends[len(attends) - 1 - level] else 1
        return f"output_blocks.{level * (blocks + 1) + blocks}.{last}.conv"
    _, i, part, inner = rest.split(".", 3)
    number = level * (blocks + 1) + int(i) + (1 if way == "down" else 0)
    side = "input" if way == "down" else "output"
    inner = f"0.{res(inner)}" if part == "res" else f"1.{transformer(inner)}"
    return f"{side}_blocks.{number}.{inner}"
""",
}

_FORWARD = "alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise"
_GUIDED = "without + scale * (given - without)"
_SCORES = "scores.softmax(dim=-1)"
_ADD = "h + (codes - h).detach()"

WRONG = (
    ("forward_process", _FORWARD, "(1 - alpha).sqrt() * x0 + alpha.sqrt() * noise", "factors are swapped"),
    ("forward_process", _FORWARD, "alpha * x0 + (1 - alpha) * noise", "Both square roots are missing"),
    ("forward_process", "(1 - alpha).sqrt()", "(1 - alpha)", "square root of 1 - alpha is missing"),
    ("forward_process", "+ (1", "- (1", "The noise has the wrong sign"),
    ("forward_process", "cumprod[t]", "cumprod[t - 1]", "off by one: x_t is that of t - 1"),
    ("forward_process", "cumprod[t]", "cumprod[t + 1]", "off by one: x_t is that of t + 1"),
    ("forward_process", "[:, None, None, None]", "", "along the columns"),
    ("forward_process", ".to(x0.dtype)", "", "is float64 where float32 is expected"),
    ("forward_process", "return ", "x0 *= alpha.sqrt(); return x0 + ", "changes its argument `x0` in place"),
    ("guidance", _GUIDED, "given + scale * (without - given)", "scale = 1 gives it"),
    ("guidance", _GUIDED, "given + scale * (given - without)", "(1 + w) cond - w uncond"),
    ("guidance", "+ scale", "- scale", "The sign is wrong"),
    ("guidance", _GUIDED, "scale * (given - without)", "the difference alone"),
    ("guidance", "x, t, uncond", "x, t + 1, uncond", "got t = 501; expected the given t"),
    ("ddim_step", "(1 - alpha) ** 0.5 * eps", "alpha**0.5 * eps", "sqrt(1 - alpha_t) eps belongs"),
    ("ddim_step", " / alpha**0.5", "", "not divided by sqrt(alpha_t)"),
    ("ddim_step", "1 - prev - sigma**2) ** 0.5", "1 - prev - sigma**2)", "factor of eps is missing"),
    ("ddim_step", "1 - prev - sigma**2", "1 - alpha - sigma**2", "the noise stays in"),
    ("ddim_step", "alpha_cumprod(t), ", "alpha_cumprod(t - 1), ", "off by one: alpha_t is that of t - 1"),
    ("ddim_step", "schedule.alpha_cumprod(t_prev)", "schedule.alphas_cumprod[t_prev].item()", "To Python"),
    ("ddim_step", "prev - sigma**2", "prev", "sigma^2 is missing under the root"),
    ("ddim_step", "eta * ", "", "eta = 0: sigma must have the factor eta"),
    ("ddim_step", " + sigma * noise", "", "The noise is missing"),
    ("ddim_step", "(1 - alpha / prev)) ** 0.5", "(1 - alpha / prev))", "root of equation 16 is missing"),
    ("min_snr", "clamp(max=gamma)", "clamp(min=gamma)", "max(SNR, gamma)"),
    ("min_snr", "/ (1 - alphas_cumprod)", "", "lacks its denominator"),
    ("min_snr", "(snr + 1)", "snr", "you divide by SNR_t, which is for eps"),
    ("min_snr", "(gamma / snr).clamp(max=1)", "smaller", "divided by SNR_t"),
    ("min_snr", "(gamma / snr).clamp(max=1)", "smaller / snr", "NaN, 0 / 0"),
    ("attention", " / q.shape[-1] ** 0.5", "", "The scale is missing"),
    ("attention", "q.shape[-1] ** 0.5", "q.shape[-1]", "divided by D where sqrt(D) belongs"),
    ("attention", "softmax(dim=-1)", "softmax(dim=-2)", "over the queries (dim=-2)"),
    ("attention", "softmax(dim=-1)", "softmax(dim=1)", "over the heads (dim=1)"),
    ("attention", "if causal", "if False", "causal=True is not used"),
    ("attention", "triu(1)", "tril(-1)", "The causal mask is upside down"),
    ("attention", "triu(1)", "triu(0)", "hides a position from itself"),
    ("attention", 'float("-inf")', "0.0", "exp(0) is 1"),
    ("attention", _SCORES, "(scores.exp() / scores.exp().sum(dim=-1, keepdim=True))", "exp overflows"),
    ("attention", "q @ k.tr", "q.float() @ k.float().tr", "breaks the contract of"),
    ("attention", "q @ k.transpose(-1, -2)", "q @ k", "line 5: scores = q @ k"),
    ("lora_layer", "alpha / rank", "1", "alpha / rank is missing"),
    ("lora_layer", "alpha / rank", "alpha", "without / rank"),
    ("lora_layer", ".requires_grad_(False)", "", "would be trained, too"),
    ("lora_layer", "torch.zeros(layer", "torch.ones(layer", "B is not zero"),
    ("lora_layer", "torch.randn", "torch.zeros", "A is zero"),
    ("lora_layer", "self.up.T", "self.up.detach().T", "B gets no gradient"),
    ("lora_layer", "self.layer(x) + ", "", "W x is missing"),
    ("vq_lookup", "argmin", "argmax", "the farthest codes"),
    ("vq_lookup", ".square()", ".abs()", "absolute differences"),
    ("vq_lookup", "h.detach().permute(0, 2, 3, 1)", "h.detach().reshape(2, 4, 5, 3)", "mixed up"),
    ("vq_lookup", _ADD, "codes.detach()", "z_q passes no gradients"),
    ("vq_lookup", _ADD, "codes", "the codes are not detached"),
    ("vq_lookup", _ADD, "codes + (h - codes).detach()", "z_q equals h"),
    ("vq_lookup", "return h", "indices = indices.flatten(); return h", "The indices are flat"),
    ("img2img_start", "round(", "int(", "int() rounds it down"),
    ("img2img_start", "pairs[len(pairs) - k:]", "pairs[:k]", "first 25 of the run, the noisiest"),
    ("img2img_start", "rest[0][0]", "rest[0][1]", "but the first step begins at t ="),
    ("img2img_start", "rest[0][0]", "pairs[max(0, len(pairs) - k - 1)][0]", "one level too high"),
    ("img2img_start", "strength * len", "(1 - strength) * len", "The strength is upside down"),
    ("bpe_merge", "min(pairs, key=ranks.get)", "pairs[0]", "You merge the leftmost pair"),
    ("bpe_merge", "min(pairs", "max(pairs", "You merge the pair of the highest rank"),
    ("bpe_merge", "while True", "for _ in range(1)", "returns None"),
    ("bpe_merge", "best)]", "best)]; return symbols", "You stop after one merge"),
    ("bpe_merge", "pairs = ", "ranks = {p: r for p, r in ranks.items() if r > 9}; pairs = ", "The result is"),
    ("bpe_merge", '["".join(best)]', '["".join(best[::-1])]', "must spell"),
    ("residual_block", "1e-5", "1e-6", "epsilon of the norms is 1e-6"),
    ("residual_block", "h, 32,", "h, 16,", "16 groups; they have 32"),
    ("residual_block", "F.silu(emb)", "emb", "emb has no SiLU"),
    ("residual_block", "F.silu(h)", "F.relu(h)", "ReLU where SiLU belongs"),
    ("residual_block", "return x + h", "return h", "The shortcut is missing"),
    ("residual_block", ", padding=1", "", "RuntimeError"),
    ("plms", "(now + then) / 2", "(now + then)", "added, not averaged"),
    ("plms", "not past and t_prev != -1", "False", "called once: this is a step of DDIM"),
    ("plms", "[now, *past]\n", "[*past, now]\n", "The eps come in the wrong order"),
    ("plms", "-59 / 24", "59 / 24", "other values than the library's"),
    ("plms", "[now, *past][:3]", "[combined, *past][:3]", "holds the combined eps"),
    ("plms", "[:3]", "[:1]", "You use 2 eps where 3 are known"),
    ("plms", "[now, *past][:3]", "None", "Step.history is None"),
    ("key_map", '"conv2": "out_layers.3"', '"conv2": "out_layers.2"', "out_layers has a dropout at 2"),
    ("key_map", '(1 if way == "down" else 0)', "0", "input_blocks.0 is the first convolution"),
    ("key_map", "level * (blocks + 1) + int(i)", "level * blocks + int(i)", "has a number of its own"),
    ("key_map", "last = 2 if", "last = 1 if", "Yours is always at 1"),
    ("key_map", ".0.op", ".0.conv", "named `op`"),
    ("key_map", '"to_out": "to_out.0", ', "", "`to_out.0`"),
)
