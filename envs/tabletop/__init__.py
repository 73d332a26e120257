"""TabletopPush-v0: cubes on a table, a pusher, and what its instructions mean."""
