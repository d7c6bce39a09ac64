"""A training run: its settings, its folder with checkpoints, evaluation."""
