"""Files that run code where they are unpickled, built or imported: each would leave a file `canary` where it is run."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import torch


class Payload:
    """Unpickled, it leaves the canary."""

    def __reduce__(self):
        return os.system, ("touch canary",)


def payloads() -> dict[str, bytes]:
    """By kind."""
    zipped, objects, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"weights": Payload()}, zipped)
    np.save(objects, np.array([Payload()], dtype=object), allow_pickle=True)
    np.savez(archive, weights=np.array([Payload()], dtype=object))
    return {
        "pickle": pickle.dumps(Payload()),
        "old pickle": pickle.dumps(Payload(), protocol=0),
        "torch.save": zipped.getvalue(),
        "object array": objects.getvalue(),
        "object archive": archive.getvalue(),
        "yaml": b"!!python/object/apply:os.system ['touch canary']",
        "python": b"import os; os.system('touch canary')",
    }
