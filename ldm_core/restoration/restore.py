"""From photo to photo: find the faces, align them, restore them, and paste them back.

For each face, with S the similarity to the aligned face (`alignment`) and m its mask in [0, 1] (`masks`):

    face   = network(photo warped by S)
    photo <- m * face warped by S^-1 + (1 - m) * photo

as the scripts of CodeFormer and GFPGAN do it; `scripts` has what GPEN's does otherwise. Only the part of the
photo that a face reaches is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ldm_core.images import MAX_PIXELS
from ldm_core.restoration.alignment import Alignment, inverse, similarity
from ldm_core.restoration.face_network import FaceNetwork
from ldm_core.restoration.found import Located, find
from ldm_core.restoration.masks import PARSED, blur, parsed_mask, square_mask
from ldm_core.restoration.photo import GREY, Photo, open_photo
from ldm_core.restoration.scripts import SCRIPTS, Script
from ldm_core.restoration.warping import Filter, Region, warp
from ldm_core.support.limits import is_number, is_whole
from ldm_core.support.printable import shown
from ldm_core.support.warn import warn

Mask = Literal["square", "parsing", "both"]
MASKS = ("square", "parsing", "both")
FILTERS = ("lanczos", "bilinear")
MAX_UPSCALE = 8
MAX_SEED = 2**62
VARIANCE_EPS = 1e-5


def restore(
    photo: Any,
    restorer: Any,
    fidelity: float | None = None,
    upscale: int = 1,
    *,
    detector: Any = None,
    threshold: float = 0.9,
    aligned: bool = False,
    mask: Mask = "square",
    parser: Any = None,
    background: Filter = "lanczos",
    alignment: Alignment | None = None,
    keep_grey: bool | None = None,
    seed: int | None = 0,
) -> Any:
    """Restore the faces of a photo. All other pixels stay as they are.

    photo: a PIL image, or a tensor (3, H, W) or (1, 3, H, W) in [0, 1]. The result is of the same kind: its
        mode, 16 bits, alpha, colour profile and EXIF data are kept; the EXIF orientation is applied.
    restorer: what `restoration.load` returns, or a callable from (1, 3, 512, 512) in [-1, 1] to the same.
    fidelity: in [0, 1], for CodeFormer: 0 trusts the codes alone, 1 follows the photo most closely. None:
        0.5; 1 for the file for inpainting, and 0 for the one for colorization, as in their scripts.
    upscale: the whole number by which the photo is enlarged, with the filter `background`: "lanczos"
        (GFPGAN's scripts) or "bilinear" (CodeFormer's).
    detector: what `restoration.load` returns for a RetinaFace, a `FaceDetector`, or a callable from an
        upright RGB PIL image to (boxes (N, 4), or (N, 5) with scores; points (N, 5, 2)), or to a list of
        faces with .box, .score and .points; default: the bundled MTCNN, whose smallest face is 20 pixels, or
        1/50 of the photo's shorter side.
    threshold: the lowest score of a face to restore.
    aligned: the photo is one aligned face; the result is the restored face, in the network's size.
    mask: "square" pastes the aligned square with a soft edge, "parsing" what the parser takes for the face,
        and "both" the smaller of these two at each pixel (CodeFormer's script with a parser).
    parser: what `restoration.load` returns for a ParseNet, or a callable in its place.
    alignment: "facexlib" or "gpen", whose template and borders to use; None: that of the network's script.
    keep_grey: restored faces of a grey photo are grey as well. Otherwise a grey photo becomes RGB. None: as
        in the network's script: yes for CodeFormer, but for its files for inpainting and colorization, and
        for a callable; no for GFPGAN and GPEN, whose colours remain.
    seed: of the noise that a network draws: face k has seed + k. None: fresh noise in every call.

    The file for inpainting replaces the white pixels of a face only: give it an aligned face.
    Warns if no face is found; the photo then comes back (enlarged) without a change.
    Raises ValueError for other values, and for a detector, network or parser that returns something else.
    """
    _check(fidelity, upscale, threshold, aligned, mask, parser, background, alignment, seed)
    network = FaceNetwork.of(restorer, fidelity, alignment)
    opened = open_photo(photo)
    keep_grey = network.keeps_grey if keep_grey is None else keep_grey
    opened = opened if keep_grey or opened.colours != 1 else opened.coloured()
    grey = keep_grey and opened.is_grey()
    if aligned:
        return _restored_face(opened, network, seed, grey).picture()
    size = _enlarged(opened.size, upscale)
    found = _found(opened, detector, threshold)
    seeds = [None if seed is None else seed + k for k in range(len(found))]
    faces = [_restored(opened, network, face, own, grey) for face, own in zip(found, seeds)]
    result, parse = opened.resized(size, background), getattr(parser, "network", parser)
    for face in filter(None, faces):
        _paste(result, face, upscale, mask, network.script, parse)
    return result.picture()


def _enlarged(size: tuple[int, int], upscale: int) -> tuple[int, int]:
    """The size of the result. Raises ValueError for too many pixels."""
    height, width = (upscale * side for side in size)
    if height * width > MAX_PIXELS:
        raise ValueError(f"expected a result of at most {MAX_PIXELS:,} pixels, got {height * width:,}")
    return height, width


def _found(photo: Photo, detector: Any, threshold: float) -> list[Located]:
    """The faces of a photo. Warns if there is none."""
    found = find(photo, detector, threshold)
    if not found:
        warn("no face was found in the photo, which is returned without restored faces")
    return found


@dataclass(frozen=True)
class _Restored:
    """levels (S, S, 3) of a restored face, whole or not, and the map (2, 3) from the photo to it.

    parsed: the levels that a parser gets, in which the face is not smoothed.
    """

    levels: Tensor
    parsed: Tensor
    to_face: Tensor
    whole: bool


def _check(
    fidelity: Any,
    upscale: Any,
    threshold: Any,
    aligned: bool,
    mask: Any,
    parser: Any,
    background: Any,
    alignment: Any,
    seed: Any,
) -> None:
    for name, value in (("fidelity", 0 if fidelity is None else fidelity), ("threshold", threshold)):
        if not (is_number(value) and 0 <= value <= 1):
            raise ValueError(f"{name} must be a number in [0, 1], not {shown(value)}")
    if not is_whole(upscale, 1, MAX_UPSCALE):
        raise ValueError(f"upscale must be a whole number in 1..{MAX_UPSCALE}, not {shown(upscale)}")
    if aligned and upscale != 1:
        raise ValueError(f"an aligned face has the size of the network: upscale must be 1, not {upscale}")
    for name, value, choices in (
        ("mask", mask, MASKS),
        ("background", background, FILTERS),
        ("alignment", next(iter(SCRIPTS)) if alignment is None else alignment, tuple(SCRIPTS)),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {shown(value)}")
    if (parser is None) != (mask == "square"):
        raise ValueError(f"mask {mask!r} {'needs a' if parser is None else 'takes no'} parser")
    if not callable(getattr(parser, "network", parser)) and parser is not None:
        raise ValueError(f"expected a network that parses faces, got {type(parser).__name__}")
    if seed is not None and not is_whole(seed, -MAX_SEED, MAX_SEED):
        raise ValueError(f"seed must be a whole number, or None, not {shown(seed)}")


def _restored_face(photo: Photo, network: FaceNetwork, seed: int | None, grey: bool) -> Photo:
    """The restored face of a photo that is one aligned face."""
    height, width = photo.size
    if height != width:
        raise ValueError(f"expected an aligned face as a square, got {width} x {height} pixels")
    face = photo.resized((network.size, network.size), "bilinear")
    levels = face.levels()[:].float()
    restored = network(levels, seed)
    if grey:
        restored = _greyed(restored, levels)
    pixels = face.pixels[:]
    _blend(pixels[..., : face.colours], restored, torch.ones(face.size), face.top)
    face.pixels[:] = pixels
    return face


def _restored(
    photo: Photo, network: FaceNetwork, face: Located, seed: int | None, grey: bool
) -> _Restored | None:
    """A face of the photo, restored. None where the network returned it as it was.

    Such a face needs no pasting, which would only blur the photo: it is sampled twice on the way.
    """
    side, script = network.size, network.script
    to_face = similarity(face.points, side, script.alignment)
    scale = photo.top / 255
    crop = warp(
        photo.in_rgb(), inverse(to_face), Region(0, 0, side, side), torch.tensor(script.border) * scale
    )
    levels = (crop / scale).round().clamp(0, 255)
    restored = network(levels, seed)
    if torch.equal(restored, levels):
        return None
    restored = _greyed(restored, levels) if grey else restored
    smooth = restored
    if 0 < face.side < script.smoothed_below:
        smooth = torch.stack([blur(one, 3, None) for one in restored.unbind(dim=2)], dim=2).round()
    return _Restored(smooth, restored, to_face, whole=not grey)


def _greyed(face: Tensor, crop: Tensor) -> Tensor:
    """A face (S, S, 3) in grey, with the mean and standard deviation of each channel of the crop."""
    values = (face @ torch.tensor(GREY))[..., None].double()
    std, mean = (values.var(correction=0) + VARIANCE_EPS).sqrt(), values.mean()
    wanted = crop.double().flatten(0, 1)
    wanted_std = (wanted.var(dim=0, correction=0) + VARIANCE_EPS).sqrt()
    return ((values - mean) / std * wanted_std + wanted.mean(dim=0)).float()


def _paste(photo: Photo, face: _Restored, upscale: int, mask: Mask, script: Script, parser: Any) -> None:
    """Paste a face into the photo's own pixels, which are those of the enlarged photo."""
    to_photo = inverse(face.to_face) * upscale
    if upscale > 1:
        to_photo[:, 2] += 0.5 * upscale
    to_face = inverse(to_photo)
    side = len(face.levels)
    region, solid, soft = square_mask(to_photo, to_face, side, photo.size, upscale)
    if region.is_empty():
        return
    if parser is not None:
        shape = _warped_mask(face.parsed, to_face, region, script, parser)
        soft = shape if mask == "parsing" else torch.minimum(shape, soft)
    for band in region.bands():
        rows = slice(band.top - region.top, band.bottom - region.top)
        pasted = warp(face.levels, to_face, band)
        if face.whole:
            pasted = pasted.round()
        if mask != "parsing":
            pasted *= solid[rows, :, None]
        pixels = photo.pixels[band.slices]
        _blend(pixels[..., : photo.colours], pasted, soft[rows], photo.top, script.rounds)
        photo.pixels[band.slices] = pixels


def _warped_mask(levels: Tensor, to_face: Tensor, region: Region, script: Script, parser: Any) -> Tensor:
    """The mask of a face by a parser, in a region of the photo."""
    side = len(levels)
    whole = partial(warp, region=Region(0, 0, PARSED, PARSED))
    if side != PARSED:
        step = side / PARSED
        to_side = torch.tensor([[step, 0, (step - 1) / 2], [0, step, (step - 1) / 2]], dtype=torch.float64)
        levels = whole(levels, to_side, border=0.0)
    shape = parsed_mask(levels, parser, script.parsed)
    if side != PARSED:
        to_face = to_face.clone()
        to_face[:, 2] += 0.5
        to_face = to_face * (PARSED / side)
        to_face[:, 2] -= 0.5
    return warp(shape[..., None], to_face, region)[..., 0]


def _blend(pixels: Tensor, face: Tensor, mask: Tensor, top: int, rounds: bool = False) -> None:
    """Replace pixels (h, w, C) by mask * face + (1 - mask) * pixels in place. face: (h, w, 3) in [0, 255].

    Whole levels are rounded, or truncated.
    """
    if pixels.shape[2] == 1:
        face = face[..., :1]
    mask = mask[..., None]
    mixed = mask * (face * (top / 255)) + (1 - mask) * pixels.float()
    if pixels.dtype != torch.float32:
        mixed = mixed.round() if rounds else mixed.floor()
    pixels.copy_(mixed.clamp(0, top))
