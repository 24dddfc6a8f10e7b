"""What each stage does, and what they share: the models and the forward pass."""
