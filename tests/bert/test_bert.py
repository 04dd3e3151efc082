"""BERT's transformer against diffusers and a reference in float64; names against the published lists.

Tolerances are relative: the largest difference over the largest value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples
from support.reference import relative_error
from torch import Tensor

from ldm_core.attention import set_attention
from ldm_core.bert import BERTConfig, BERTEncoder, BERTTokenizer
from ldm_core.bert.compvis_settings import bert_in_yaml, reads_text
from ldm_core.bert.names import EXTRAS, compvis_map, diffusers_map
from ldm_core.bert.settings import bert_config, bert_settings, tokenizer_settings
from ldm_core.bert.shapes import compvis_config, diffusers_config, fewest_tensors
from ldm_core.checkpoint.key_map import KeyMap, to_file, to_parameters
from ldm_core.conditioners import TextConditioner
from ldm_core.config import TextEncoderConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.nn.placement import blank
from ldm_core.testing import check_text_encoder

TOLERANCE = 1e-5
SMALL = BERTConfig(width=48, layers=3, vocab_size=200, context_length=12)
WIDE = BERTConfig(width=640, layers=2, vocab_size=50, context_length=92)

PUBLISHED = {
    "latent-diffusion/latent-diffusion/txt2img-1p4B-eval": BERTConfig(1280, 32),
    "latent-diffusion/ldm/text2img256": BERTConfig(640, 32),
    "latent-diffusion/ldm/layout2img-openimages256": BERTConfig(512, 16, 8192, 92),
}
PREFIX = "cond_stage_model.transformer."


def random_bert(config: BERTConfig, seed: int = 0) -> BERTEncoder:
    """Random weights of which none is zero or one, so that no term can hide."""
    torch.manual_seed(seed)
    network = BERTEncoder(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn(parameter.shape)
    return network


def random_tokens(config: BERTConfig, batch: int = 3, length: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = (batch, config.context_length if length is None else length)
    return torch.randint(config.vocab_size, size, generator=generator)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


# ---- numbers --------------------------------------------------------------------------------------


def reference(tensors: Mapping[str, Tensor], layers: int, tokens: Tensor) -> Tensor:
    """The transformer of CompVis's files, written from its description, with the names in the files."""
    weights = {name: value.double() for name, value in tensors.items()}

    def norm(name: str, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(name: str, x: Tensor) -> Tensor:
        bias = weights.get(f"{name}.bias")
        return x @ weights[f"{name}.weight"].T + (0 if bias is None else bias)

    x = weights["token_emb.weight"][tokens] + weights["pos_emb.emb.weight"][: tokens.shape[1]]
    for layer in range(layers):
        attn, mlp = f"attn_layers.layers.{2 * layer}", f"attn_layers.layers.{2 * layer + 1}"
        h = norm(f"{attn}.0", x)
        q, k, v = (linear(f"{attn}.1.to_{name}", h) for name in "qkv")
        assert q.shape[-1] == 512
        heads = []
        for head in range(8):
            part = slice(64 * head, 64 * (head + 1))
            scores = q[..., part] @ k[..., part].transpose(1, 2) / 8
            heads.append(scores.softmax(-1) @ v[..., part])
        x = x + linear(f"{attn}.1.to_out", torch.cat(heads, dim=-1))
        h = linear(f"{mlp}.1.net.0.0", norm(f"{mlp}.0", x))
        x = x + linear(f"{mlp}.1.net.2", h * (1 + torch.erf(h / math.sqrt(2))) / 2)
    return norm("norm", x)


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["narrow", "wide"])
def test_hidden_states_equal_the_formulas_in_float64(config: BERTConfig) -> None:
    network, tokens = random_bert(config), random_tokens(config)
    expected = reference(to_file(compvis_map(config), network.state_dict()), config.layers, tokens)
    assert relative_error(network(tokens), expected.float()) < TOLERANCE
    assert relative_error(network.double()(tokens), expected) < 1e-12
    short = network(tokens[:, :5])
    assert short.shape == (3, 5, config.width)
    in_file = to_file(compvis_map(config), network.state_dict())
    assert relative_error(short, reference(in_file, config.layers, tokens[:, :5])) < 1e-12


def diffusers_bert(config: BERTConfig, network: BERTEncoder) -> Any:
    """diffusers' `LDMBertModel` with the weights of ours, loaded strictly but for the unused logits."""
    pytest.importorskip("diffusers")
    from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion as theirs

    model = theirs.LDMBertModel(theirs.LDMBertConfig(**bert_settings(config))).eval().requires_grad_(False)
    ours = to_file(diffusers_map(config), network.state_dict())
    state = {f"model.{name}": value for name, value in ours.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) == set(EXTRAS)
    assert unexpected == []
    return model


@pytest.mark.one_in(3)
@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("backend", ["auto", "math", "sdpa", "chunked"])
def test_hidden_states_equal_diffusers(config: BERTConfig, backend: str) -> None:
    network, tokens = random_bert(config), random_tokens(config)
    expected = diffusers_bert(config, network)(tokens)[0]
    set_attention(network, backend)
    assert relative_error(network(tokens), expected) < TOLERANCE


def test_padding_is_attended_to() -> None:
    network = random_bert(SMALL)
    tokens = torch.zeros(1, 12, dtype=torch.long)
    tokens[0, :3] = torch.tensor([101, 7, 102])
    other = tokens.clone()
    other[0, 11] = 5
    assert relative_error(network(tokens)[:, :3], network(other)[:, :3]) > 1e-3


def test_it_meets_the_contract_of_text_encoders() -> None:
    sizes = TextEncoderConfig(vocab_size=200, context_length=12, width=48, heads=1)
    check_text_encoder(random_bert(SMALL), sizes, causal=False)


@pytest.mark.parametrize("shape", [(1, 13), (12,), (1, 2, 3)])
def test_tokens_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected tokens of \(B, N\), N <= 12, got "):
        random_bert(SMALL)(torch.zeros(shape, dtype=torch.long))


def test_a_text_conditioner_of_bert() -> None:
    config = BERTConfig(width=32, layers=1)
    tokenizer, network = BERTTokenizer(), random_bert(config)
    conditioner = TextConditioner(tokenizer, network)
    prompts = ["a cat", "", "a cat", "a dog"]
    assert conditioner.count(prompts) == 4
    condition = conditioner(prompts)
    assert condition.context is not None
    assert condition.context.shape == (4, 77, 32)
    assert relative_error(condition.context, network(tokenizer(prompts))) < TOLERANCE
    assert torch.equal(condition.context[0], condition.context[2])
    empty = conditioner(conditioner.unconditional).context
    assert empty is not None
    row = torch.tensor([[101, 102, *[0] * 75]])
    assert relative_error(empty, network(row)) < TOLERANCE
    assert conditioner.modules == {"text_encoder": network}


def test_an_encoder_without_layers_to_skip_refuses_clip_skip() -> None:
    """Before anything is computed; a TypeError from within a run otherwise."""
    network = random_bert(SMALL)
    for encoder in (network, network.forward):
        with pytest.raises(ValueError, match="clip_skip is CLIP's; this text encoder does not take it"):
            TextConditioner(BERTTokenizer(), encoder, clip_skip=1)


# ---- names and shapes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_tensor_is_one_parameter_of_its_shape(name: str, published: dict[str, Any]) -> None:
    listed = published[name]["tensors"]
    tensors = {
        key.removeprefix(PREFIX): torch.empty(shape, device="meta")
        for key, shape in listed.items()
        if key.startswith("cond_stage_model.")
    }
    config = compvis_config(shapes_of(tensors))
    assert config == PUBLISHED[name]
    network = blank(BERTEncoder, config)
    key_map = compvis_map(config)
    assert set(tensors) - set(key_map) == set(EXTRAS)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    parameters = to_parameters(key_map, tensors, shapes, source=name)
    assert parameters.keys() == shapes.keys()
    saved = to_file(key_map, network.state_dict())
    assert shapes_of(saved) == {k: v for k, v in shapes_of(tensors).items() if k not in EXTRAS}
    assert len(key_map) >= fewest_tensors(config)


@pytest.mark.parametrize("key_map", [compvis_map, diffusers_map])
def test_a_map_and_its_inverse_give_back_every_value(key_map: Any) -> None:
    network = random_bert(SMALL)
    mapped: KeyMap = key_map(SMALL)
    state = network.state_dict()
    shapes = {name: value.shape for name, value in state.items()}
    back = to_parameters(mapped, to_file(mapped, state), shapes, source="a file")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@examples(20)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 50), st.integers(1, 99))
def test_shapes_prove_everything(width: int, layers: int, vocab_size: int, length: int) -> None:
    config = BERTConfig(width, layers, vocab_size, length)
    state = blank(BERTEncoder, config).state_dict()
    assert compvis_config(shapes_of(to_file(compvis_map(config), state))) == config
    assert diffusers_config(shapes_of(to_file(diffusers_map(config), state))) == config


def test_an_attention_without_an_mlp_is_no_bert() -> None:
    shapes = {
        "token_emb.weight": (9, 8),
        "pos_emb.emb.weight": (7, 8),
        "attn_layers.layers.0.1.to_q.weight": (512, 8),
    }
    with pytest.raises(ValueError, match="expected an MLP after each attention, got 1 layers"):
        compvis_config(shapes)


# ---- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_yaml(name: str, published: dict[str, Any]) -> None:
    params = published[name]["config"]["params"]
    assert bert_in_yaml(params) == PUBLISHED[name]
    assert reads_text(params) == ("layout" not in name)


def test_a_yaml_with_damaged_values() -> None:
    stage: dict[str, Any] = {"n_embed": 64, "n_layer": 2, "use_tokenizer": "no"}
    params = {"cond_stage_config": {"target": "x.BERTEmbedder", "params": stage}}
    with pytest.raises(ConfigError, match="use_tokenizer must be true or false, not 'no'"):
        reads_text(params)
    stage["n_layer"] = 10**9
    with pytest.raises(ConfigError, match=r"BERT: layers must be an int in 1\.\.256, not 1000000000"):
        bert_in_yaml(params)


@pytest.mark.parametrize("field", ["width", "layers", "vocab_size", "context_length"])
@pytest.mark.parametrize("value", [0, -1, 2**62, 1.5, "8", None, True])
def test_values_that_no_bert_has(field: str, value: Any) -> None:
    sizes = {"width": 8, "layers": 1, "vocab_size": 9, "context_length": 7}
    with pytest.raises(ConfigError, match=rf"BERT: {field} must be an int in 1\.\."):
        BERTConfig(**{**sizes, field: value})


def test_diffusers_settings_and_back() -> None:
    pytest.importorskip("diffusers")
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig

    for config in (SMALL, *PUBLISHED.values()):
        assert bert_config(bert_settings(config)) == config
        assert bert_config(LDMBertConfig(**bert_settings(config)).to_dict()) == config
    assert bert_config(LDMBertConfig().to_dict()) == bert_config({}) == BERTConfig(1280, 32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head_dim", 32),
        ("encoder_attention_heads", 16),
        ("activation_function", "relu"),
        ("encoder_ffn_dim", 100),
        ("d_model", "wide"),
        ("encoder_layers", None),
        ("vocab_size", -1),
    ],
)
def test_settings_that_are_not_supported(name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"^bert/config.json: .*({name}|BERT)"):
        bert_config({**bert_settings(SMALL), name: value})


def test_transformers_reads_the_tokenizer_that_is_written(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from ldm_core.loading.diffusers_folder import as_text

    for name, content in tokenizer_settings(SMALL).items():
        path = tmp_path / Path(name).name
        path.write_text(as_text(content), encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = theirs(["a Cat [MASK]"], padding="max_length", return_tensors="pt")["input_ids"]
    assert torch.equal(rows, BERTTokenizer(SMALL.context_length)(["a Cat [MASK]"]))
