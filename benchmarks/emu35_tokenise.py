"""How fast Emu3.5's text tokenizer is: MB of UTF-8 a second, both ways, by kind of text. Knows no model.

    python -m benchmarks.emu35_tokenise --tokenizer FOLDER [--megabytes 1] [--repeats 9] [--out FILE]

Texts are sentences below in a seeded order, about `--megabytes` each. "prompts" mixes them with special tokens, two to a
sentence; "images" are visual tokens written out. FOLDER holds the published `emu3.tiktoken` and `emu3_vision_tokens.txt`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.timing import publish
from emu_embodied.emu35.text import Emu35Text, load_text_tokenizer
from emu_embodied.metrics import bootstrap_interval

SEED = 0
ENGLISH = """The robot waits at the edge of the table until somebody tells it which of the cubes it should move first.
It doesn't know how heavy they are; it pushes gently, watches what happens, and corrects itself.
On 14 March 2025 the workshop measured 1,280 pushes in two days, and 94 of 100 ended within 4 cm of the mark.
When a drawer sticks, pull slowly, then a little harder, and stop before the handle comes off in your hand.
"Put the mug next to the kettle," she said, "and please don't spill the coffee this time."
A model that dreams of the next frame must remember where things were when the arm hid them from view.
Rain had fallen since the early morning, so the path through the orchard was soft and smelled of apples.
Nobody could say afterwards whether the experiment had failed because of the camera or because of the light."""
CHINESE = """机器人停在桌子边上，等人告诉它先移动哪一个方块。
它不知道方块有多重，只能轻轻地推，看看会发生什么，然后修正自己的动作。
二〇二五年三月，实验室在两天之内测量了1280次推动，其中94%落在目标附近四厘米以内。
如果抽屉卡住了，先慢慢地拉，再稍微用力，在把手脱落之前停下来。
她说：“请把杯子放到水壶旁边，这一次不要把咖啡洒出来。”
能够想象下一帧画面的模型，必须记得物体被手臂挡住之前的位置。
从清晨开始就一直下雨，果园里的小路变得松软，空气里有苹果的味道。
后来谁也说不清楚，实验失败究竟是因为相机，还是因为光线。"""


def sample_text(sentences: str, size: int, rng: random.Random) -> str:
    """About `size` bytes of sentences in random order, a few to a paragraph."""
    lines, parts, length = sentences.splitlines(), [], 0
    while length < size:
        parts.append(rng.choice(lines) + rng.choice([" ", " ", " ", "\n\n"]))
        length += len(parts[-1].encode())
    return "".join(parts)


def sample_texts(size: int, codes: int) -> dict[str, str]:
    """One text of each kind, the same for a seed."""
    rng = random.Random(SEED)
    texts = {"english": sample_text(ENGLISH, size, rng), "chinese": sample_text(CHINESE, size, rng)}
    lines = [*ENGLISH.splitlines(), *CHINESE.splitlines()]
    wrapped = "\n".join(f"<|extra_203|>USER: {line} ASSISTANT: <|extra_100|>" for line in lines)
    texts["prompts"] = sample_text(wrapped, size, rng)
    texts["images"] = "".join(f"<|visual token {rng.randrange(codes):06d}|>" for _ in range(size // 25))
    return texts


def rates(function: Callable[[], object], size: int, repeats: int) -> dict[str, object]:
    """MB a second over `repeats` calls after one that is not counted: median and its 95% interval."""
    function()
    values = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        values.append(size / 1e6 / (time.perf_counter() - begun))
    return {"median": float(np.median(values)), "interval": bootstrap_interval(np.array(values)), "n": repeats}


def measure(tokenizer: Emu35Text, size: int, repeats: int) -> dict:
    """The rates of every kind of text, and what they were measured on."""
    result: dict = {"megabytes_per_second": {}}
    for kind, text in sample_texts(size, tokenizer.vocabulary.codebook_size).items():
        ids, length = tokenizer.encode(text), len(text.encode())
        assert tokenizer.decode(ids) == text, f"{kind} does not come back"
        result["megabytes_per_second"][kind] = {
            "encode": rates(lambda text=text: tokenizer.encode(text), length, repeats),
            "decode": rates(lambda ids=ids: tokenizer.decode(ids), length, repeats),
            "bytes": length,
            "ids": len(ids),
        }
    return result


def main() -> None:
    """Measures, prints JSON, and writes it where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emu35_tokenise", description=__doc__.partition("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="the folder of the two published files")
    parser.add_argument("--megabytes", type=float, default=1.0, help="of each text")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    tokenizer = load_text_tokenizer(arguments.tokenizer)
    result = {"seconds_to_load": time.perf_counter() - begun}
    result |= measure(tokenizer, int(arguments.megabytes * 1e6), arguments.repeats)
    publish(result | {"size": tokenizer.size, "seed": SEED}, arguments.out, ("tiktoken",))


if __name__ == "__main__":
    main()
