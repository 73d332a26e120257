"""Worlds of other packages in this package's keys and units: one adapter, and a table of how each is read."""
