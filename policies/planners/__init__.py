"""The planners: each a search that asks for the costs of action sequences. They know no world and no goal."""
