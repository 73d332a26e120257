"""The network: a transformer over one id space of text, visual and action tokens. Knows no sampling, no files and no env."""
