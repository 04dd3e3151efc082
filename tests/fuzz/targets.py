"""Six readers of strangers' data, each as one function of bytes that a fuzzer can call.

Each docstring is the target's oracle: what may come of any bytes at all. Whatever else comes, an exception of
another kind or a BrokenPromise, is a finding. For all holds: no process, no connection, no import, no file
but the input, 2 seconds and 256 MiB at most (`watch`); and what errors and warnings say is one line that is
safe to print.

A fuzzer cannot guess lengths and checksums, so they are put right here where a format has them.
"""

from __future__ import annotations

import codecs
import json
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any
from unittest.mock import patch

import PIL.Image
import torch
import yaml
from ftfy.chardata import CHARMAP_ENCODINGS  # cp437 among them, which old zip archives use
from fuzz.watch import MAX_INPUT, placed, promise, watched
from support.checkpoint_files import torch_zip

from ldm_core.checkpoint import CheckpointError, inspect, read
from ldm_core.clip.bpe import END_OF_TEXT, START_OF_TEXT
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.config import LatentDiffusionConfig
from ldm_core.loading.compvis_yaml import read_yaml
from ldm_core.recipe import from_json, from_parameters_text, read_recipe, to_json, to_parameters_text
from ldm_core.recipe.png import SIGNATURE
from ldm_core.training import BadSample, TarShards

Target = Callable[[bytes], None]

LEGACY_BEGIN = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
MAX_PICTURES = 4  # of a shard that are decoded in one execution
MAX_PIXELS = 2**20  # of one: Pillow allows as many as take half a gigabyte, whatever the file's size


def pickle(data: bytes) -> None:
    """A checkpoint of torch.save, of today or before 1.6, or else a pickle alone, which is put into one.

    Oracle: `read` raises CheckpointError, or gives a Checkpoint with names and metadata
    that can be written as JSON, tensors whose numbers are all there and together take no more than twice the
    file, and the same names without values. `inspect` then describes it in printable lines, or raises
    CheckpointError.
    """
    whole = data.startswith((b"PK", LEGACY_BEGIN))
    _read(data if whole else torch_zip(data, {"0": data[:16].ljust(16, b"\0")}), "model.ckpt")


def safetensors(data: bytes) -> None:
    """A safetensors file, or else its header and its tensors' bytes, to which the header's length is added.

    Oracle: as for `pickle`.
    """
    if data.startswith(b"{"):
        length = data.rfind(b"}") + 1
        data = struct.pack("<Q", length) + data
    _read(data, "model.safetensors")


def _read(data: bytes, name: str) -> None:
    with placed(data, name) as path:
        try:
            with watched(path):
                checkpoint = read(path)
        except CheckpointError as error:
            _promise_printable(error)
            return
        with watched(path):
            text = json.dumps([checkpoint.metadata, list(checkpoint.tensors), checkpoint.foreign])
            text.encode("utf-8")
            storages = {}
            for tensor in checkpoint.tensors.values():
                tensor.clone()
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            promise(sum(storages.values()) <= 2 * len(data), "the tensors are larger than the file")
            again = read(path, values=False)
            promise(list(again.tensors) == list(checkpoint.tensors), "other names without values")
        with watched(path):
            try:
                _promise_printable(*str(inspect(path)).split("\n"))
            except CheckpointError as error:
                _promise_printable(error)


def recipe(data: bytes) -> None:
    """A PNG file, or else a recipe's JSON, or else a parameters text.

    Oracle: ValueError, or a recipe. Of that, `to_json` (but for numbers that JSON lacks: ValueError) and
    `to_parameters_text` give text, and what JSON gave, its JSON gives again.
    """
    if data.startswith(SIGNATURE):
        with placed(_with_png_checksums(data), "picture.png") as path, watched(path):
            try:
                found = read_recipe(path)
            except ValueError as error:
                _promise_printable(error)
                return
            _write(found)
        return
    text = data.decode("utf-8", errors="replace")
    with watched():
        try:
            found = from_json(text) if text.startswith("{") else from_parameters_text(text)
        except ValueError as error:
            _promise_printable(error)
            return
        _write(found)


def _write(found: Any) -> None:
    to_parameters_text(found)
    try:
        written = to_json(found)
    except ValueError:
        return
    promise(from_json(written) == found, "the recipe's JSON gives another recipe")


def _with_png_checksums(data: bytes) -> bytes:
    parts, position = [SIGNATURE], len(SIGNATURE)
    while position + 12 <= len(data):
        end = position + 8 + min(int.from_bytes(data[position : position + 4], "big"), len(data))
        body = data[position + 4 : end]
        parts += [data[position : position + 4], body, struct.pack(">I", zlib.crc32(body))]
        position = end + 4
    return b"".join(parts) + data[position:]


def compvis_yaml(data: bytes) -> None:
    """A CompVis configuration.

    Oracle: `read_yaml` raises CheckpointError, or gives a configuration of plain values that JSON can hold
    and that `from_dict` makes again.
    """
    with placed(data, "model.yaml") as path, watched(path):
        try:
            config = read_yaml(path)
        except CheckpointError as error:
            _promise_printable(error)
            return
        values = config.to_dict()
        promise(LatentDiffusionConfig.from_dict(json.loads(json.dumps(values))) == config, "does not return")
        promise(all(math.isfinite(number) for number in _numbers(config)), "a number is not finite")


def _numbers(value: Any) -> list[float]:
    """All numbers of a configuration. Raises BrokenPromise for what no configuration holds."""
    if is_dataclass(value):
        return [number for field in fields(value) for number in _numbers(getattr(value, field.name))]
    if isinstance(value, tuple):
        return [number for item in value for number in _numbers(item)]
    promise(value is None or isinstance(value, bool | int | float | str), f"holds {value!r:.100}")
    return [] if value is None or isinstance(value, str) else [value]


def shards(data: bytes) -> None:
    """A tar file of pictures and captions.

    Oracle: `TarShards` raises ValueError, or has samples; of each, the captions are text and not blank and
    the picture is (3, 8, 8) within [-1, 1], or BadSample is raised.
    """
    few_pixels = patch.object(PIL.Image, "MAX_IMAGE_PIXELS", MAX_PIXELS)
    with placed(_with_tar_checksums(data), "shard.tar") as path, few_pixels, watched(path):
        for captions in (True, False):
            try:
                samples = TarShards([path], 8, captions=captions)
            except ValueError as error:
                _promise_printable(error)
                continue
            for index in range(min(len(samples), MAX_PICTURES)):
                try:
                    texts = samples.text(index)
                    image = samples[index]["image"]
                except BadSample as error:
                    _promise_printable(error)
                    continue
                promise(all(text.strip() for text in texts) and bool(texts) == captions, f"{texts!r:.100}")
                promise(tuple(image.shape) == (3, 8, 8) and bool((image.abs() <= 1).all()), "no picture")


def _with_tar_checksums(data: bytes) -> bytes:
    """Every block that has a header's magic gets a header's checksum (POSIX.1-1988: the sum of its bytes)."""
    blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
    for k, block in enumerate(blocks):
        if len(block) == 512 and block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            blocks[k] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


PLAIN = CLIPTokenizer()
WITH_WORDS = CLIPTokenizer(
    context_length=9, pad_token_id=0, added_words=(("<cat-toy>", (49408, 49409)), ("new word", (49410,)))
)


def tokenizer(data: bytes) -> None:
    """A prompt: any text.

    Oracle: ValueError for text that has no UTF-8; for all else the ids of `encode`, the same each time,
    between start and end token in a row of context_length; as many tokens as ids; and `decode` gives text.
    """
    text = _text(data)
    made = WITH_WORDS if any(name in text.lower() for name, _ in WITH_WORDS.added_words) else PLAIN
    with watched():
        try:
            ids = made([text, "cat"])[:1]
        except ValueError as error:
            _promise_printable(error)
            return
        encoded = made.encode(text)
        promise(tuple(ids.shape) == (1, made.context_length) and ids.dtype == torch.long, "shape or type")
        promise(int(ids.min()) >= 0 and int(ids.max()) < made.vocab_size + 3, "an id is out of range")
        row, kept = ids[0].tolist(), encoded[: made.context_length - 2]
        promise(row[0] == START_OF_TEXT and row[len(kept) + 1] == END_OF_TEXT, "no start or end")
        promise(row[1 : len(kept) + 1] == kept, "other ids than encode's")
        promise(len(made.tokens(text)) == len(encoded), "another number of tokens than ids")
        made.decode(encoded).encode("utf-8")


def _text(data: bytes) -> str:
    """As UTF-8, in which halves of surrogate pairs may lie, or else as Latin-1: every text can be reached."""
    try:
        return data.decode("utf-8", errors="surrogatepass")
    except UnicodeDecodeError:
        return data.decode("latin-1")


TARGETS: dict[str, Target] = {
    "pickle": pickle,
    "recipe": recipe,
    "yaml": compvis_yaml,
    "safetensors": safetensors,
    "shards": shards,
    "tokenizer": tokenizer,
}


def _promise_printable(*messages: object) -> None:
    """Messages may quote what a file holds, but without codes that a terminal obeys, and on one line."""
    for message in messages:
        promise(str(message).isprintable(), f"not safe to print: {str(message)!a:.300}")


def one(name: str, data: bytes) -> None:
    """One execution of a target, with at most MAX_INPUT bytes."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        TARGETS[name](data[:MAX_INPUT])
    # Python does not show others, as the DeprecationWarning of an odd escape in a pickle's text.
    _promise_printable(*(warning.message for warning in given if issubclass(warning.category, UserWarning)))


def warm_up() -> None:
    """Import what is imported when it is first needed, before anything is watched."""
    PIL.Image.init()
    for codec in ("raw-unicode-escape", "utf-32-le", "utf-8-sig", "utf-8-variants", *CHARMAP_ENCODINGS):
        codecs.lookup(codec)
    yaml.safe_load("{}")
    PLAIN("“warm”")
