"""A tiny released model, written in the official format, to become a world model."""

from emu_embodied.emu35.action_adapter import AdoptionConfig

ADOPTION = AdoptionConfig(image_size=64, encoded_size=64, text_length=96)
