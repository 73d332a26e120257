"""How good a world model, a plan, a subgoal or a policy is, with intervals. Never imports the viewer."""
