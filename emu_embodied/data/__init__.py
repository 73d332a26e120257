"""Episodes on disk: LeRobot datasets, and the flat arrays that training reads. Never runs a simulator."""
