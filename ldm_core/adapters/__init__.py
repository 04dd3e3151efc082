"""Small files that change a model: LoRA and its kin, textual inversion."""
