"""The planners by name. Knows each of them, and no world."""

from __future__ import annotations

from emu_embodied.errors import ConfigError
from emu_embodied.policies.categorical import CategoricalCEM
from emu_embodied.policies.cem import CEM
from emu_embodied.policies.gradient import GradientPlanner
from emu_embodied.policies.icem import ICEM
from emu_embodied.policies.mppi import MPPI
from emu_embodied.policies.planner import PlannerConfig, SearchPlanner
from emu_embodied.policies.predictive import PredictiveSampling

PLANNERS: dict[str, type[SearchPlanner]] = {
    planner.Config.name: planner for planner in (CEM, ICEM, MPPI, PredictiveSampling, GradientPlanner, CategoricalCEM)
}


def planner_config(name: str, **options) -> PlannerConfig:
    """A planner's config by its name.

    Raises:
        ConfigError: an unknown planner.
        InputError: an option out of range.
    """
    if not isinstance(name, str) or name not in PLANNERS:
        raise ConfigError("planner", name, f"choose one of {tuple(PLANNERS)}")
    return PLANNERS[name].Config(**options)


def make_planner(config: PlannerConfig, seed: int = 0) -> SearchPlanner:
    """The planner that a config is of."""
    return PLANNERS[config.name](config, seed)
