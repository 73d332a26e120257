"""What a planner minimises: small costs over imagined futures, composed by weight."""

from emu_embodied.policies.costs.core import ActionEffort, PerWorld, RewardHead, SuccessHead, Uncertainty, WeightedSum
from emu_embodied.policies.costs.images import FeatureGoal, GoalImage, TokenGoal, code_features
from emu_embodied.policies.costs.objects import BehindObject, ObjectLost, ObjectPositions, walk_around

__all__ = [
    "ActionEffort",
    "BehindObject",
    "FeatureGoal",
    "GoalImage",
    "ObjectLost",
    "ObjectPositions",
    "PerWorld",
    "RewardHead",
    "SuccessHead",
    "TokenGoal",
    "Uncertainty",
    "WeightedSum",
    "code_features",
    "walk_around",
]
