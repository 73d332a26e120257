"""The verbs' configuration: `<verb>.yaml`, and the groups `env/` and `preset/`. Holds data only."""
