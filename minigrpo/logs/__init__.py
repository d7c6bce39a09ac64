"""Groups of completions out of other people's training logs."""
