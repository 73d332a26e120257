"""The planners by name. Knows each of them, and no world."""

from __future__ import annotations

from emu_embodied.errors import ConfigError

from .base import PlannerConfig, SearchPlanner
from .categorical_cem import CategoricalCEM
from .cem import CEM
from .gradient import GradientPlanner
from .icem import ICEM
from .mppi import MPPI
from .predictive_sampling import PredictiveSampling

_ALL = (CEM, ICEM, MPPI, PredictiveSampling, GradientPlanner, CategoricalCEM)
PLANNERS: dict[str, type[SearchPlanner]] = {planner.Config.name: planner for planner in _ALL}
CONFIGS: dict[str, type[PlannerConfig]] = {planner.Config.name: planner.Config for planner in _ALL}


def planner_config(name: str, **options) -> PlannerConfig:
    """A planner's config by its name.

    Raises:
        ConfigError: an unknown planner.
        InputError: an option out of range.
    """
    if not isinstance(name, str) or name not in PLANNERS:
        raise ConfigError("planner", name, f"choose one of {tuple(PLANNERS)}")
    return CONFIGS[name](**options)


def make_planner(config: PlannerConfig, seed: int = 0) -> SearchPlanner:
    """The planner that a config is of."""
    return PLANNERS[config.name](config, seed)
