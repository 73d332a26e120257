"""What a planner minimises: small costs over imagined futures, composed by weight."""

from emu_embodied.policies.costs.core import ActionEffort, PerWorld, RewardHead, Uncertainty, WeightedSum
from emu_embodied.policies.costs.images import FeatureGoal, GoalImage, code_features
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
    "Uncertainty",
    "WeightedSum",
    "code_features",
    "walk_around",
]
