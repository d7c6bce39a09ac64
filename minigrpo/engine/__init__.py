"""What makes the same numbers cheap: skip it at first reading."""
