"""λ-GRPO inside other people's training libraries: `trl.py`, `verl.py` and a page on others."""
