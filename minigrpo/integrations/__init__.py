"""λ-GRPO inside other people's training libraries; `trl.py` needs `pip install "minigrpo[trl]"`."""
