"""Runs for people to look at: records, pictures, an HTML report, and a dream driven in the browser."""
