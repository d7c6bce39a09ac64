"""The operating system and other people's code: files, signals, the terminal, text."""
