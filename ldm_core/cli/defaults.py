"""The choices and defaults of the command line's options, in one place for the parser and the plan."""

SCHEDULERS = (
    "ddim",
    "ddpm",
    "plms",
    "pndm",
    "pndm-rk",
    "dpm++2m",
    "dpm++2m-karras",
    "unipc",
    "euler",
    "euler-a",
    "heun",
    "lms",
)
SCHEDULER = "ddim"
SPACINGS = ("leading", "trailing", "linspace", "compvis", "karras", "exponential", "uniform_lambda")
DTYPES = ("float32", "float16", "bfloat16")
PROMPT_SYNTAXES = ("a1111", "a1111-no-norm", "compel", "compel-remove")
MAX_PICTURES = 1_000_000  # per prompt, and per batch

# The bundled model's defaults are those that its card recommends; the others are those of CompVis's scripts.
BUNDLED_STEPS, BUNDLED_GUIDANCE = 25, 4.0
STEPS, GUIDANCE = 50, 7.5
STRENGTH = {"img2img": 0.75, "inpaint": 1.0}
