"""The `restore` command, which restores the faces of photos."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ldm_core.cli.inputs import named
from ldm_core.cli.output import already_there
from ldm_core.cli.printing import EXIT_BAD_INPUT, EXIT_INTERRUPTED, one_line, print_path, tell
from ldm_core.cli.restore_plan import Plan, photo_path, plan, recipe_to_follow
from ldm_core.images import open_picture, picture_files
from ldm_core.recipe.restoration import restored_png
from ldm_core.support.atomic_files import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image


def restore_files(args: Namespace) -> int:
    """Restore a photo, or all photos of a folder, print the paths of the results, and return the status.

    A photo of a folder that cannot be read or restored is reported; the others are restored all the same.
    """
    again = recipe_to_follow(args)
    photo = photo_path(args, again)
    pairs = list(_pairs(photo, args.output, args.force, args.sheet))
    job = plan(args, again, photo)
    done, failed = 0, 0
    try:
        for source, target in tqdm(pairs, unit="photo", disable=True if args.quiet else None):
            try:
                _restore_one(source, target, job, args)
                done += 1
            except (ValueError, OSError) as error:
                if len(pairs) == 1:
                    raise
                failed += 1
                tell(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        tell(f"interrupted; {done} of {len(pairs)} photos are complete and kept")
        return EXIT_INTERRUPTED
    if failed:
        tell(f"error: {failed} of {len(pairs)} photos were not restored")
        return EXIT_BAD_INPUT
    return 0


def _pairs(source: Path, output: str, force: bool, sheet: bool) -> Iterator[tuple[Path, Path]]:
    """The photos and the files of their results. Raises ValueError if these cannot be written there."""
    target = Path(output)
    if not source.is_dir():
        if target.is_dir() or target.suffix.lower() != ".png":
            raise ValueError(
                f"--output {output}: expected a file name that ends in .png, as for one photo; "
                "a folder needs a folder of photos"
            )
        found = [(source, target)]
    else:
        photos = sorted(picture_files(source))
        if not photos:
            raise ValueError(f"{source}: a folder without pictures")
        if target.is_file():
            raise ValueError(f"--output {output}: expected a folder, as the photos are in a folder")
        if target.resolve() == source.resolve():
            raise ValueError(f"--output {output}: expected another folder than that of the photos")
        found = [(photo, target / photo.relative_to(source).with_suffix(".png")) for photo in photos]
    taken: set[Path] = set()
    for photo, result in found:
        if result in taken:
            raise ValueError(f"{photo}: another photo of the folder also becomes {result}")
        taken.add(result)
        for path in (result, _sheet(result)) if sheet else (result,):
            if path.exists() and not force:
                raise already_there(f"--output {path}")
        yield photo, result


def _restore_one(source: Path, target: Path, job: Plan, args: Namespace) -> None:
    with named(str(source)):
        photo = open_picture(source)
        recipe = job.recipe_of(source)
        result = job.restore(photo)
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(restored_png(result, recipe), target, args.force)
    if args.sheet:
        # The sheet is a PNG file with the same recipe: it shows what the recipe makes.
        _write(restored_png(_side_by_side(photo, result), recipe), _sheet(target), args.force)


def _write(data: bytes, path: Path, force: bool) -> None:
    try:
        write_whole(path, lambda file: file.write_bytes(data), overwrite=force)
    except FileExistsError:
        raise already_there(f"--output {path}") from None
    print_path(path)


def _sheet(target: Path) -> Path:
    """The file of the sheet for a result: `face-sheet.png` for `face.png`."""
    return target.with_name(f"{target.stem}-sheet.png")


def _side_by_side(photo: Image, result: Image) -> Image:
    """The photo at the result's size, and the result."""
    from PIL import Image as PIL

    from ldm_core.images import to_rgb

    sheet = PIL.new("RGB", (2 * result.width, result.height))
    sheet.paste(to_rgb(photo).resize(result.size), (0, 0))
    sheet.paste(to_rgb(result), (result.width, 0))
    return sheet
