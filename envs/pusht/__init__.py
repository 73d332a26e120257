"""PushT-v0: LeRobot's PushT in this package's keys and units."""
