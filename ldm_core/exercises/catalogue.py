"""The exercises, easiest first: one row each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    name: of its stub, its check and its page. defines: the function or class to write. minutes: that it takes
    about. source: the paper and its equations. solution: the file of this package that does the same.
    """

    number: int
    name: str
    title: str
    defines: str
    minutes: int
    source: str
    solution: str

    @property
    def stub(self) -> str:
        """The text of the file to begin with."""
        return (PACKAGE / "stubs" / f"{self.name}.py").read_text(encoding="utf-8")

    @property
    def page(self) -> str:
        """The path of its page in the repository."""
        return f"docs/exercises/{self.number:02}-{self.name.replace('_', '-')}.md"


EXERCISES = (
    Exercise(
        1,
        "forward_process",
        "The forward process",
        "add_noise",
        10,
        "DDPM, equation 4",
        "ldm_core/noise_schedule.py",
    ),
    Exercise(
        2,
        "guidance",
        "Classifier-free guidance",
        "guidance",
        10,
        "Ho and Salimans 2022, equation 6",
        "ldm_core/guidance/classifier_free.py",
    ),
    Exercise(
        3,
        "ddim_step",
        "DDIM's step",
        "ddim_step",
        20,
        "DDIM, equations 12 and 16",
        "ldm_core/schedulers/ddim.py",
    ),
    Exercise(
        4,
        "min_snr",
        "Min-SNR weights",
        "min_snr_weight",
        15,
        "Hang et al. 2023, section 3.4",
        "ldm_core/training/diffusion_loss.py",
    ),
    Exercise(
        5,
        "attention",
        "Attention",
        "attention",
        20,
        "Vaswani et al. 2017, equation 1",
        "ldm_core/nn/attention_backends.py",
    ),
    Exercise(
        6,
        "lora_layer",
        "A LoRA layer",
        "LoRALinear",
        25,
        "LoRA, equation 3",
        "ldm_core/training/lora.py",
    ),
    Exercise(
        7,
        "vq_lookup",
        "The look-up of a VQ autoencoder",
        "quantize",
        25,
        "VQ-VAE, equations 1 and 2",
        "ldm_core/autoencoder/vq.py",
    ),
    Exercise(
        8,
        "img2img_start",
        "Where img2img starts",
        "img2img_start",
        25,
        "SDEdit, section 3; DDPM, equation 4",
        "ldm_core/schedulers/spacing.py",
    ),
    Exercise(
        9,
        "bpe_merge",
        "A byte-pair merge",
        "merge",
        30,
        "Sennrich et al. 2016, section 3.2",
        "ldm_core/clip/bpe.py",
    ),
    Exercise(
        10,
        "residual_block",
        "A residual block with the file's weights",
        "res_block",
        40,
        "DDPM, appendix B",
        "ldm_core/nn/blocks.py",
    ),
    Exercise(
        11,
        "plms",
        "PLMS",
        "PLMS",
        45,
        "PNDM, equations 11 and 12",
        "ldm_core/schedulers/pndm.py",
    ),
    Exercise(
        12,
        "key_map",
        "A key map",
        "file_key",
        60,
        "no paper: the layout of CompVis's checkpoints",
        "ldm_core/unet/names.py",
    ),
)


def exercise(number: int) -> Exercise:
    """The exercise of a number from 1 on. Raises ValueError if there is none."""
    if not 1 <= number <= len(EXERCISES):
        raise ValueError(f"there is no exercise {number}; expected a number from 1 to {len(EXERCISES)}")
    return EXERCISES[number - 1]
