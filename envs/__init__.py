"""The worlds: the MuJoCo table-top and the imagined envs. Importing this package registers them with Gymnasium."""

from emu_embodied.envs import registration as registration
