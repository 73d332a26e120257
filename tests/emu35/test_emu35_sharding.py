"""Two processes that each hold a half say what one says that holds all."""

from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_emu35_lm import TINY, tiny_language_model, write_language_model

from emu_embodied.errors import ConfigError, EngineError

IDS = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(0))


def work(rank: int, count: int, folder: str) -> None:
    from emu_embodied.emu35.language_model import load_language_model

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting-{count}", rank=rank, world_size=count)
    mesh = dist.device_mesh.init_device_mesh("cpu", (count,))
    if count == 3:
        with pytest.raises(ConfigError, match="num_key_value_heads"):
            load_language_model(folder, dtype=torch.float32, mesh=mesh)
    else:
        model = load_language_model(folder, dtype=torch.float32, mesh=mesh)
        with torch.no_grad():
            expected = tiny_language_model()(IDS)
            torch.testing.assert_close(model(IDS), expected, atol=1e-4, rtol=1e-4)
            cache = model.new_cache(2, 11)
            parts = [model(part, cache) for part in IDS.split([7, 1, 3], 1)]
            torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)
            if find_spec("torchao"):
                rounded = load_language_model(folder, dtype=torch.float32, quantisation="int8", mesh=mesh)
                assert torch.cosine_similarity(rounded(IDS), expected, dim=-1).min() > 0.99
        with pytest.raises(EngineError, match="int4 on a mesh"):
            load_language_model(folder, quantisation="int4", mesh=mesh)
        matrix = model.model.layers[0].self_attn.k_proj.weight.to_local()
        assert matrix.shape == (TINY.num_key_value_heads * TINY.head_dim // count, TINY.hidden_size)
        held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in model.model.layers.parameters())
        assert held < 0.6 * sum(p.numel() for p in tiny_language_model().model.layers.parameters())
        assert matrix.untyped_storage().nbytes() == 4 * matrix.numel()  # nothing of the other half is held
    dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch was built without gloo")
@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_layers(tmp_path, count):
    write_language_model(tmp_path, tiny_language_model(), shards=2)
    mp.spawn(work, (count, str(tmp_path)), count)
