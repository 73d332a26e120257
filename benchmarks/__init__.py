"""Speed, measured: each module is a command that writes JSON. Nothing here is imported by the package."""
