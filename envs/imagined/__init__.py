"""Imagined-v0: dreams of a world model behind the real env's interface, single and as a vector env."""
