"""The package as a whole: what importing it costs and does, who imports whom, and file and function sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ldm_core

PACKAGE = Path(ldm_core.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "weights" not in path.parts)


USE = "ldm_core.load, ldm_core.Sampler"  # which are imported when they are used


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return run.stdout


IMPORTED = f"""
import sys, torch, numpy
opened = []
def hook(event, args):
    if event == "open" and isinstance(args[0], str) and not args[0].endswith((".py", ".pyc", ".so")):
        opened.append(args[0])
    if event in ("socket.connect", "os.mkdir", "subprocess.Popen"):
        opened.append(event)
sys.addaudithook(hook)
import ldm_core
print(ldm_core.unet.UNet.__name__, hasattr(ldm_core, "none"))
{USE}
print([name for name in opened if "site-packages" not in name and "__pycache__" not in name])
print([name for name in ("triton", "diffusers", "ldm_core.training") if name in sys.modules])
rooms = ldm_core.watch.Recorder, ldm_core.training.Trainer, ldm_core.testing.check_unet
print(ldm_core.recipe.__name__, [thing.__name__ for thing in rooms], "tensorboard" in sys.modules)
"""


@pytest.mark.slow
def test_importing_prints_and_opens_nothing_and_leaves_others_alone() -> None:
    """Nor do submodules need an import of their own."""
    assert python(IMPORTED) == (
        "UNet False\n[]\n[]\nldm_core.recipe ['Recorder', 'Trainer', 'check_unet'] False\n"
    )


def test_importing_waits_with_torch_until_it_is_needed() -> None:
    code = "import sys, ldm_core.cli.parser as cli; cli.build_parser(); print('torch' in sys.modules)"
    assert python(code) == "False\n"


@pytest.mark.slow  # imports torch several times
def test_importing_costs_little_more_than_torch(tmp_path: Path) -> None:
    """At most 0.5 s of a core on top of torch; in one of several tries, since other work only adds to it.

    245 modules take about 0.2 s, a third of it for the classes of configurations.

    With compiled code, as pip leaves it, whatever the environment says about writing that.
    """
    code = f"""
import sys, time, torch
sys.pycache_prefix, sys.dont_write_bytecode = {str(tmp_path)!r}, False
start = time.process_time()
import ldm_core
{USE}
print(time.process_time() - start)
"""
    assert any(float(python(code)) < 0.5 for _ in range(10))


def imports(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports, at its top or within a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ldm_core":
            package = (node.module or "").removeprefix("ldm_core").removeprefix(".")
            for name in node.names:
                inner = f"{package}.{name.name}".removeprefix(".")
                yield inner if file_of(inner) else package
        elif isinstance(node, ast.Import):
            yield from (
                n.name.removeprefix("ldm_core.") for n in node.names if n.name.startswith("ldm_core.")
            )


def file_of(module: str) -> Path | None:
    """The file of a module, named from the package on."""
    path = PACKAGE / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


GROUND = {"errors", "noise", "images", "support", "windows"}
NETWORKS = {"unet", "autoencoder", "clip", "bert", "control", "prior"}
SCHEDULE = GROUND | {"noise_schedule"}
MODEL = SCHEDULE | NETWORKS | {"attention", "nn", "config", "model_config", "condition", "protocols", "model"}
SAMPLER = MODEL | {
    "conditioners",
    "editing",
    "guidance",
    "inpainting",
    "prompts",
    "request",
    "request_condition",
    "high_resolution",
    "sampler",
    "circular_padding",
    "start",
    "schedulers",
    "task_types",
    "tasks",
    "upscaling",
    "windowed_model",
}
LOADING = MODEL | {"checkpoint", "conditioners", "loading", "restoration"}

# The rooms of the package, from the ground up, and the rooms that each may know besides itself.
ARROWS = {
    "errors": set(),
    "noise": set(),
    "support": {"errors"},
    "prompts": GROUND,
    "images": {"support"},
    "windows": {"support"},
    "circular_padding": GROUND | {"nn"},
    "noise_schedule": GROUND,
    "checkpoint": GROUND,
    "nn": GROUND,
    "kernels": GROUND | {"nn"},
    "attention": GROUND | {"nn", "kernels"},
    "unet": GROUND | {"nn", "attention", "checkpoint"},
    "autoencoder": GROUND | {"nn", "attention", "checkpoint"},
    "clip": GROUND | {"nn", "attention", "checkpoint"},
    "bert": GROUND | {"nn", "attention", "checkpoint"},
    "control": GROUND | {"nn", "attention", "checkpoint", "unet", "clip", "condition"},
    "prior": SCHEDULE | {"nn", "attention", "checkpoint", "clip", "schedulers"},
    "restoration": GROUND | {"nn", "attention", "checkpoint", "autoencoder"},  # `load` is an alias
    "text_encoder": {"clip"},
    "tokenizer": {"clip"},
    "model_config": SCHEDULE | NETWORKS | {"conditioners"},
    "config": SCHEDULE | NETWORKS | {"conditioners", "model_config"},
    "condition": GROUND | {"nn"},
    "protocols": GROUND | {"condition"},
    "model": MODEL | {"conditioners"},
    "guidance": SCHEDULE | {"condition", "schedulers", "unet"},
    "schedulers": SCHEDULE,
    "conditioners": SCHEDULE
    | {"nn", "attention", "checkpoint", "bert", "clip", "prior", "condition", "prompts", "protocols"},
    "compilation": GROUND | {"nn", "unet", "autoencoder"},
    "inpainting": MODEL,
    "windowed_model": MODEL | {"conditioners"},
    "request": GROUND | {"condition", "schedulers", "control"},
    "request_condition": SAMPLER - {"sampler", "start", "tasks", "upscaling", "high_resolution"},
    "start": SAMPLER - {"sampler", "tasks", "upscaling", "high_resolution"},
    "task_types": GROUND | {"condition", "request", "control"},
    "upscaling": MODEL | {"conditioners", "task_types", "windowed_model"},
    "editing": MODEL | {"conditioners", "guidance", "task_types"},
    "tasks": SAMPLER - {"sampler"},
    "sampler": SAMPLER,
    "high_resolution": SAMPLER - {"sampler", "tasks", "high_resolution"},
    "unclip": SAMPLER,
    "loading": LOADING,
    "adapters": LOADING,
    "watch": LOADING | SAMPLER,
    "recipe": LOADING | SAMPLER,
    "testing": LOADING | SAMPLER | {"kernels", "watch"},
    "training": LOADING | SAMPLER | {"adapters", "watch", "kernels"},
    "workbench": GROUND | {"conditioners", "condition", "config", "guidance", "recipe", "schedulers"},
    "jobs": LOADING | SAMPLER | {"recipe"},
    "exercises": LOADING | SAMPLER | {"adapters", "testing", "training", "cli"},  # `cli` prints what it says
    "serve": LOADING | SAMPLER | {"recipe", "watch"},
    "cli": LOADING | SAMPLER | {"adapters", "watch", "recipe", "workbench", "jobs", "serve"},
    "__main__": {"cli"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_arrows_point_one_way() -> None:
    wrong = []
    for path in set(FILES) - {PACKAGE / "__init__.py"}:
        used = {module.split(".")[0] for module in imports(path)} - {room(path), ""}
        if not used <= ARROWS[room(path)]:
            wrong.append(f"{path}: {room(path)} may import {sorted(ARROWS[room(path)])}, not {sorted(used)}")
    assert wrong == []


def test_no_imports_go_in_a_circle() -> None:
    graph = {path: {file_of(module) for module in imports(path)} - {path, None} for path in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the files


def test_files_can_be_read_in_one_sitting() -> None:
    wrong = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        if len(text.splitlines()) > 400:
            wrong.append(f"{path} is longer than 400 lines")
        if not ast.get_docstring(tree):
            wrong.append(f"{path} does not begin with what it is")
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60]
        wrong += [f"{path}: {name} is longer than 60 lines" for name in long]
    assert wrong == []


def test_the_public_names_are_there() -> None:
    for name in ldm_core.__all__:
        assert getattr(ldm_core, name) is not None
    for name in ("SD1", "SD1_INPAINT", "SD2_BASE", "SD2_V"):
        assert isinstance(getattr(ldm_core.config, name), ldm_core.config.LatentDiffusionConfig)
    assert issubclass(ldm_core.checkpoint.CheckpointError, ValueError)
    assert callable(ldm_core.checkpoint.read)
    assert callable(ldm_core.checkpoint.inspect)
    assert callable(ldm_core.checkpoint.save)
    for module, name in (
        ("unet", "UNet"),
        ("autoencoder", "AutoencoderKL"),
        ("text_encoder", "CLIPTextEncoder"),
        ("tokenizer", "CLIPTokenizer"),
    ):
        assert callable(getattr(getattr(ldm_core, module), name))


@pytest.mark.slow  # builds the package in a process of its own
def test_a_wheel_holds_the_bundled_model(tmp_path: Path) -> None:
    import zipfile

    root = PACKAGE.parent
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "from ldm_core.loading.load import bundled_model, load; print(bundled_model()); load()"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(tmp_path / "site" / "ldm_core" / "weights" / "emoji.safetensors")
    for file in (
        "py.typed",
        *("bert/data/bert-base-uncased-vocab.txt.gz", "bert/data/LICENSE-google-bert.txt"),
        *(f"restoration/mtcnn/data/{name}" for name in ("mtcnn.safetensors", "LICENSE-facenet-pytorch.txt")),
        *("conditioners/data/imagenet_classes.json", "conditioners/data/LICENSE-timm.txt"),
    ):
        assert (tmp_path / "site" / "ldm_core" / file).exists()
