"""CodeFormer: a transformer that names the codes of a clean face, and the VQ autoencoder of the codes."""

from ldm_core.restoration.codeformer.config import CodeFormerConfig, FaceAutoencoderConfig
from ldm_core.restoration.codeformer.network import CodeFormer, FaceAutoencoder

__all__ = ["CodeFormer", "CodeFormerConfig", "FaceAutoencoder", "FaceAutoencoderConfig"]
