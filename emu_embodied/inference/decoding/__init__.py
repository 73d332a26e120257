"""Loops over a step engine that turn a cache and an action into the next frame; blind to who executes the step."""
