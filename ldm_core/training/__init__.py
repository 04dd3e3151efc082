"""Training each part: losses, data, the loop."""
