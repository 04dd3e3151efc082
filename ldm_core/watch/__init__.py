"""Looking at a model while it draws."""
