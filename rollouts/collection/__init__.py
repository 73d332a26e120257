"""Datasets recorded from a simulator or from dreams, in shards that a crash does not lose."""
