"""Adapters: LoRA and its variants, and textual inversion."""
