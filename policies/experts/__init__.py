"""Scripted policies that make data. They read true positions, and no pixels."""
