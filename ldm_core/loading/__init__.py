"""Load models from files and save them."""
