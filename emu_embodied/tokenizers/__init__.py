"""Frames, text and actions to tokens and back."""
