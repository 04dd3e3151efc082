"""Class labels and names as one token each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldm_core.conditioners import ClassEmbedder, ClassEmbedderConfig, ClassEmbedding, imagenet_classes
from ldm_core.loading.parts import part_of

NAMES = ("tench, Tinca tinca", "Goldfish", "crane", "crane", "great white shark, white shark")


@pytest.fixture
def embedder() -> ClassEmbedder:
    torch.manual_seed(0)
    return ClassEmbedder(ClassEmbedding(ClassEmbedderConfig(6, 8, null_class=5)), NAMES)


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        (2, [2]),
        ([0, 5, 0], [0, 5, 0]),
        (torch.tensor([1, 4]), [1, 4]),
        (torch.tensor(3), [3]),
        ("goldfish", [1]),
        (["TINCA  tinca", 2, "white shark", "tench, tinca tinca"], [0, 2, 4, 0]),
    ],
)
def test_each_label_is_a_row_of_the_table(embedder: ClassEmbedder, inputs: Any, rows: list[int]) -> None:
    condition = embedder(inputs)
    table = embedder.network.state_dict()["embedding.weight"]
    assert condition.context is not None
    assert condition.context.shape == (len(rows), 1, 8)
    for token, row in zip(condition.context, rows):
        assert torch.equal(token[0], table[row])
    assert condition.vector is condition.concat is None
    assert embedder.count(inputs) == len(rows)


def test_what_a_sampler_reads(embedder: ClassEmbedder) -> None:
    assert (embedder.unconditional, embedder.guidance_scale) == (5, 3.0)
    assert embedder.modules == {"conditioner": embedder.network}
    assert [name for name, _ in embedder.network.named_parameters()] == ["embedding.weight"]
    assert ClassEmbedder(ClassEmbedding(ClassEmbedderConfig(1000, 4))).unconditional is None
    assert ClassEmbedder(embedder.network, {"cat": 4}).labels(["Cat"]) == [4]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (6, r"expected inputs as one or several class labels in 0\.\.5, got 6"),
        (-1, "got -1"),
        (True, "got True"),
        ([], r"got \[\]"),
        (None, "got None"),
        (1.5, "got 1.5"),
        (torch.tensor([0.5]), "got \\[0.5\\]"),
        (torch.tensor([[1]]), "got \\[\\[1\\]\\]"),
        ("goldfsh", "no class with the name 'goldfsh'; similar names are 'goldfish'"),
        ("xyzzy\x1b[1m", r"no class with the name 'xyzzy\\x1b\[1m'$"),
        ("crane", "'crane' is the name of the classes 2, 3"),
        ([1, None], r"got \[1, None\]"),
    ],
)
def test_inputs_that_name_no_class(embedder: ClassEmbedder, inputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        embedder.count(inputs)
    with pytest.raises(ValueError):
        embedder(inputs)


def test_a_model_without_names_takes_numbers() -> None:
    network = ClassEmbedding(ClassEmbedderConfig(6, 8))
    with pytest.raises(ValueError, match=r"labels in 0\.\.5, got the name 'cat'.*names="):
        ClassEmbedder(network)("cat")
    for names, words in (
        (("a",) * 7, r"the labels of names as .* in 0\.\.5"),
        ({"a": 6}, "got \\[6\\]"),
        ("abc", "expected names as a list"),
        ((1, 2), "name of a class as a string, got 1"),
    ):
        with pytest.raises(ValueError, match=words):
            ClassEmbedder(network, names)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"classes": 0}, {"width": "8"}, {"null_class": 1001}, {"classes": 2**40}])
def test_bad_configs(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"class embedder: {next(iter(fields))} must be an int"):
        ClassEmbedderConfig(**fields)


def test_the_names_of_imagenets_classes() -> None:
    names = imagenet_classes()
    assert len(names) == 1000
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    for label, name in known.items():
        assert names[label].split(",")[0] == name
    embedder = ClassEmbedder(ClassEmbedding(ClassEmbedderConfig(1001, 4)), imagenet_classes)
    assert embedder.labels(list(known.values())) == list(known)
    with pytest.raises(ValueError, match="'crane' is the name of the classes 134, 517"):
        embedder.labels("crane")


def test_names_from_a_function_are_read_when_they_are_needed() -> None:
    calls = []

    def names() -> list[str]:
        calls.append(1)
        return ["a", "b"]

    embedder = ClassEmbedder(ClassEmbedding(ClassEmbedderConfig(2, 4)), names)
    assert embedder.labels([1, 0]) == [1, 0]
    assert not calls
    assert embedder.labels(["b", "a"]) == [1, 0]
    assert embedder.labels("b") == [1]
    assert len(calls) == 1


@pytest.mark.parametrize(("classes", "null"), [(1000, None), (1001, 1000), (6, None)])
def test_models_of_imagenet_know_its_names(classes: int, null: int | None) -> None:
    """Those whose tables are as the published ones."""
    config = ClassEmbedderConfig(classes, 512, null)
    conditions = part_of(config).conditions
    assert conditions is not None
    embedder: Any = conditions(config, {"conditioner": ClassEmbedding(config)})
    if classes == 6:
        assert embedder.names is None
    else:
        assert embedder.labels("golden retriever") == [207]
