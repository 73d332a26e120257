"""Frechet video distance of dreams, of the features that VideoMAE has of whole clips. Knows no world model.

The original metric (arXiv 1812.01717) reads clips with an I3D classifier, which is distributed as files that run code, and
which looks at single frames more than at motion; features of a video autoencoder look at motion too ("On the Content Bias in
Frechet Video Distance", arXiv 2404.12391). So figures compare with others of the same network alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from emu_embodied.errors import ConfigError
from emu_embodied.validation import choice, number, whole_number

from .prediction_metrics import Rollouts
from .tables import Row

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the colours that VideoMAE was trained on
BATCH = 4
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "selu", "silu")
LARGEST = {  # what is read of a config.json; nothing else that it says reaches transformers
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 64, "num_hidden_layers": 48},
    **{"image_size": 512, "patch_size": 64, "num_channels": 3, "num_frames": 64, "tubelet_size": 8},
}


class VideoReader:
    """A released VideoMAE (arXiv 2203.12602): clips to features.

    Args:
        source: its folder or hub name, such as "MCG-NJU/videomae-base"; its safetensors and JSON are read, nothing else.

    Attributes:
        length: frames of a clip.

    Raises:
        ConfigError: transformers or the weights are missing, or they are another network's.
    """

    def __init__(self, source: str) -> None:
        try:
            from transformers import VideoMAEConfig, VideoMAEModel
        except ImportError:
            raise ConfigError("fvd", source, 'it needs transformers: pip install "emu-embodied[fvd]"') from None
        remedy = "name a folder of a VideoMAE's config.json and model.safetensors, or a hub name that has these"
        try:
            described, _ = VideoMAEConfig.get_config_dict(source)
            kind, sizes = described.get("model_type"), {name: described[name] for name in LARGEST if name in described}
            for name, size in sizes.items():
                whole_number(f"{source}: {name}", size, 1, LARGEST[name])
            flags = {name: described[name] is True for name in ("qkv_bias", "use_mean_pooling") if name in described}
            shape = {
                "hidden_act": choice(f"{source}: hidden_act", described.get("hidden_act", "gelu"), ACTIVATIONS),
                "layer_norm_eps": number(f"{source}: layer_norm_eps", described.get("layer_norm_eps", 1e-12), 0, 1e-2),
            }
            config = VideoMAEConfig(**sizes, **flags, **shape)
            found = {"missing_keys": []}
            if kind == "videomae":
                loaded: Any = VideoMAEModel.from_pretrained(
                    source, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
                )
                self.model, found = loaded
        except ConfigError:
            raise
        except Exception as error:  # transformers raises what its parts raise
            raise ConfigError("fvd", source, f"{remedy} ({(str(error) or type(error).__name__).splitlines()[0]})") from None
        if kind != "videomae":
            raise ConfigError("fvd", source, f"it is a {kind}: {remedy}")
        if found["missing_keys"]:
            raise ConfigError("fvd", source, f"weights are missing, {sorted(found['missing_keys'])[0]}: {remedy}")
        self.model.eval()
        self.length, self.size = config.num_frames, whole_number("image_size", config.image_size, 1)

    @torch.inference_mode()
    def features(self, clips: np.ndarray) -> np.ndarray:
        """Features (W, D) float64, means over a clip's patches, of clips (W, length, H, W, 3) uint8."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        found = []
        for part in torch.from_numpy(np.ascontiguousarray(clips)).split(BATCH):
            frames_N3HW = part.flatten(0, 1).movedim(-1, 1).float() / 255
            sized = F.interpolate(frames_N3HW, (self.size, self.size), mode="bilinear", antialias=True)
            pixels_WT3HW = ((sized - mean) / std).unflatten(0, part.shape[:2])
            found.append(self.model(pixels_WT3HW).last_hidden_state.mean(1))
        return torch.cat(found).double().numpy()


def video_distance_row(rollouts: Rollouts, reader: VideoReader) -> Row:
    """FVD of the dreams' first frames, as many as the network reads, to what really came.

    Raises:
        ConfigError: dreams that are shorter than a clip.
    """
    if rollouts.steps < reader.length:
        rule = f"it reads clips of {reader.length} frames, dreams have {rollouts.steps}: give longer horizons and steps"
        raise ConfigError("fvd", rollouts.steps, rule)
    length = reader.length
    return rollouts.distance_row("FVD, VideoMAE", length, lambda frames: reader.features(frames[:, :length]))
