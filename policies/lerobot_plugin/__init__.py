"""The LeRobot plugin: importing it registers policy `emu_mpc` and env `emu_tabletop`. Knows LeRobot; loads no world model."""

from emu_embodied.policies.lerobot_plugin import configuration_emu_mpc as configuration_emu_mpc
from emu_embodied.policies.lerobot_plugin import environment_emu_tabletop as environment_emu_tabletop
