"""Planners, their costs, and scripted pushers; they know the protocols, and no concrete world model."""
