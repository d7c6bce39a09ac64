"""λ-GRPO inside other people's training libraries.   Each needs an extra: `pip install "minigrpo[trl]"` for `integrations.trl`."""
