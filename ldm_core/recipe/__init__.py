"""A picture's recipe: the data that are needed to draw it again, stored in its PNG file."""

from ldm_core.recipe.controls import ControlFile
from ldm_core.recipe.fields import Recipe, from_json, to_json, without_paths
from ldm_core.recipe.files import AdapterFile, SourceFile, file_sha256, source_file
from ldm_core.recipe.noises import Noises
from ldm_core.recipe.parameters_text import from_parameters_text, to_parameters_text
from ldm_core.recipe.png import read_recipe, write_png
from ldm_core.recipe.restoration import Restoration, read_restoration

__all__ = [
    "AdapterFile",
    "ControlFile",
    "Noises",
    "Recipe",
    "Restoration",
    "SourceFile",
    "file_sha256",
    "from_json",
    "from_parameters_text",
    "read_recipe",
    "read_restoration",
    "source_file",
    "to_json",
    "to_parameters_text",
    "without_paths",
    "write_png",
]
