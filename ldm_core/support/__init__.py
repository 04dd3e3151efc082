"""What every part of the package may use: files, text, limits of values."""
