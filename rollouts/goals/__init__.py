"""What a planner is after: tasks as costs, subgoals and who proposes them, goals read from what did happen."""
