"""Exercise 7: the look-up of a VQ autoencoder."""

from torch import Tensor


def quantize(h: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codes of latents: (z_q, indices).

    h: latents (B, D, h, w). codebook: (K, D), one code per row.
    z_q: the codes (B, D, h, w); its gradient goes to h unchanged, and none to the codebook.
    indices: LongTensor (B, h, w) of rows of the codebook, in 0..K-1.
    """
    raise NotImplementedError
