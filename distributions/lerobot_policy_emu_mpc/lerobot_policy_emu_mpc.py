"""Lets LeRobot find the policy `emu_mpc` and the env `emu_tabletop`: it imports whatever is called lerobot_policy_*."""

from emu_embodied.policies import lerobot_plugin as lerobot_plugin
