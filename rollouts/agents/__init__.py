"""Who acts in an env: a planner over a world model, the scripted experts, and the policies that LeRobot saved."""
