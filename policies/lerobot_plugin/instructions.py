"""From an instruction to what a planner minimises: a door to the worlds' tasks. Knows no LeRobot and no episode."""

from __future__ import annotations

from emu_embodied.errors import InputError
from emu_embodied.protocols import Cost, WorldModel


def cost_of(instruction: str, goal: str, model: WorldModel) -> Cost:
    """The cost of an instruction.

    Args:
        instruction: the task as text.
        goal: one of `configuration_emu_mpc.GOALS`. "reward" adds the walk behind the cube to a table-top instruction,
            the walk to the T to PushT's.
        model: what its objects are.

    Raises:
        InputError: goal "positions", and the instruction is neither PushT's nor one of the table-top's, or about what the model
            does not know.
    """
    from emu_embodied.envs.pusht.geometry import AIMS_CM, TASK
    from emu_embodied.envs.tabletop.tasks import parse_task
    from emu_embodied.policies.costs import RewardHead
    from emu_embodied.rollouts.goals.task_costs import pose_cost, task_cost

    wanted = "reward" if goal == "reward" else "positions"
    try:
        if instruction == TASK:
            return pose_cost(wanted, AIMS_CM, model.objects)
        return task_cost(wanted, parse_task(instruction), model.objects)
    except InputError:
        if goal == "positions":
            raise
        return RewardHead()
