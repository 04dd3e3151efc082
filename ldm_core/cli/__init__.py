"""The command line.

main          the entry point: parses, runs, and turns errors into exit statuses
parser        the options of all commands; `defaults` holds their choices and default values
commands      the function of each command
plan          from the parsed options to everything that a drawing needs, checked before it starts
draw          draws the pictures of a plan
inputs        prompts and pictures that are read
model         the model and its adapters
recipe_files  the files that the recipe in a picture names
output        where pictures are written
inspection    `inspect`
convert       `convert` and `merge`
restoration   `restore`
imagine       `imagine`: grids of pictures
going_on      what is done with pictures of a grid: `vary`, `zoom-out`, `pan`, `blend`, `describe`, `upscale`
jobs          `draw` and `verify`
serve         `serve`: a page and an API in a browser
printing      everything that is printed
"""

from ldm_core.cli.main import main

__all__ = ["main"]
