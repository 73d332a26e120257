"""Where a model runs: a user's word, checked before anything is loaded there. Knows torch, and no model."""

from __future__ import annotations

import torch

from emu_embodied.errors import EmuEmbodiedError, InputError

RULE = "choose cpu, or cuda (cuda:0, ...) where PyTorch sees a GPU"


def find_device(device: object = None, error: type[EmuEmbodiedError] = InputError) -> torch.device:
    """The device of a user's word.

    Args:
        device: "cpu", "cuda", "cuda:N", a `torch.device`; None or "auto" for CUDA where there is one, else the CPU.
        error: the class of the error.

    Raises:
        EmuEmbodiedError: of the class `error`: another word, or a device that is not here.
    """
    if device is None or isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise error("device", device, RULE) from None
    if found.type not in ("cpu", "cuda"):
        raise error("device", str(device), RULE)
    if found.type == "cuda" and not 0 <= (found.index or 0) < torch.cuda.device_count():  # cuda:999 has the index -25
        raise error("device", str(device), f"PyTorch sees {torch.cuda.device_count()} CUDA devices here; {RULE}")
    return found
