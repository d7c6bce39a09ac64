"""Independent code that checks the rest."""
