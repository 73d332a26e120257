"""The released Emu3.5 models (arXiv 2510.26583): loading, prompts, tasks, and actions on top."""
