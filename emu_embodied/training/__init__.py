"""Training: one loop, the stages it runs, and the batches they see. Knows no simulator and no LeRobot."""
