"""The six tasks of the released models: their prompts, word for word, and their defaults. Knows no model and no files.

Four are the official ones: `t2i` (text to image), `x2i` (images and text to an image), `howto` (steps with pictures) and
`story`. Of `explore` and `vla` the official release gives no more than names and the common template; here they mean:

- `explore`: a world seen from within. Given a start frame, a description of the world, or both, the answer is what one sees
  next: frames, with text between them where the model writes some. Free exploration ends here; a user steers by `follow_up`,
  which appends the next instruction ("turn left") to all that was read and written, and the model goes on.
- `vla`: given an instruction and a start frame, the answer alternates between a subtask's text and the key frame at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from emu_embodied.errors import ConfigError, InputError
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.model.vocabulary import Emu35Vocabulary

BEGINNING, SPAN_START, IMAGE = "<|extra_203|>", "<|extra_100|>", "<|IMAGE|>"
QUESTION = "{question}"


class TextEncoder(Protocol):
    """The text tokenizer, as far as prompts need it."""

    vocabulary: Emu35Vocabulary

    def encode(self, text: str, *, specials: bool = True) -> list[int]:
        """Ids; with `specials` False, special tokens in it are text like any other."""
        ...


def _visual(guidance: float, top_k: int = 5120) -> DecodingConfig:
    return DecodingConfig("autoregressive", temperature=1.0, top_k=top_k, guidance=guidance)


@dataclass(frozen=True)
class Task:
    """A task's prompt and defaults.

    Attributes:
        name: as it stands in the prompt.
        system: what else the prompt says before the user's turn.
        image_first: the images stand before the question.
        needs_text, needs_image: what a prompt must have; one of the two, at least.
        images: of the answer, at most; None for any number.
        image_only: the answer is an image, without text.
        tokens: of the answer, at most; None for all the context that the prompt leaves.
        image_area: px that the prompt's images are resized to.
        text, image: sampling, and the guidance of visual tokens.
    """

    name: str
    system: str = ""
    image_first: bool = False
    needs_text: bool = True
    needs_image: bool = False
    images: int | None = None
    image_only: bool = False
    tokens: int | None = None
    image_area: int = 720 * 720
    text: DecodingConfig = field(default_factory=lambda: DecodingConfig(temperature=1.0, top_k=1024, top_p=0.9))
    image: DecodingConfig = field(default_factory=lambda: _visual(3.0))

    def template(self, image: bool) -> str:
        """The official prompt, with `{question}` and, where there are images, `<|IMAGE|>` to be replaced."""
        marker = IMAGE if image else ""
        turn = marker + QUESTION if self.image_first else QUESTION + marker
        head = f"You are a helpful assistant for {self.name} task.{self.system}"
        return f"{BEGINNING}{head} USER: {turn} ASSISTANT: {SPAN_START}"


_STEADY = DecodingConfig(temperature=0.7, top_k=200, top_p=0.8)
_ONE = {"images": 1, "image_only": True, "tokens": 5120, "image_area": 1024 * 1024}
TASKS = {
    task.name: task
    for task in (
        Task("t2i", **_ONE, image=_visual(5.0)),
        Task("x2i", **_ONE, image_first=True, needs_image=True),
        Task("howto", " Please generate a response with interleaved text and images.", text=_STEADY),
        Task("story", image=_visual(3.0, top_k=10240)),
        Task("explore", needs_text=False, text=_STEADY),
        Task("vla", needs_image=True, text=_STEADY, image=_visual(2.0)),
    )
}


def find_task(name: str) -> Task:
    """A task by name.

    Raises:
        ConfigError: an unknown one.
    """
    if name not in TASKS:
        raise ConfigError("task", name, f"choose one of {', '.join(TASKS)}")
    return TASKS[name]


def unconditional_template(image: bool) -> str:
    """The prompt that guidance leads away from: no task, no question, but the same images."""
    return f"{BEGINNING}You are a helpful assistant. USER: {IMAGE if image else ''} ASSISTANT: {SPAN_START}"


@dataclass(frozen=True)
class Prompt:
    """What the model reads: ids of the prompt, and of the unconditional one beside it."""

    ids: list[int]
    unconditional: list[int]


def build_prompt(task: Task, question: str, images: Sequence[Sequence[int]], text: TextEncoder) -> Prompt:
    """The ids of a task's prompt.

    Args:
        task: one of `TASKS`.
        question: the user's text; special tokens in it are taken literally.
        images: ids of each image, from BOI to EOI; all of them stand, one behind the other, in the image's place.
        text: the tokenizer.

    Raises:
        InputError: a prompt without the text or the image that the task needs.
    """
    check_parts(task, question, len(images))
    templates = task.template(bool(images)), unconditional_template(bool(images))
    return Prompt(*(_fill(template, question, images, text) for template in templates))


def check_parts(task: Task, question: str, images: int) -> None:
    """Refuses a prompt without the text or the image that the task needs.

    Raises:
        InputError: so it is.
    """
    if not question.strip() and (task.needs_text or not images):
        raise InputError(
            "prompt", question, f"task {task.name} needs a text" + ("" if task.needs_text else " or an image")
        )
    if task.needs_image and not images:
        raise InputError("images", images, f"task {task.name} needs at least one image")


def follow_up(ids: Sequence[int], answer: Sequence[int], steering: str, text: TextEncoder) -> list[int]:
    """All that was read and written, and the user's next turn: the prompt of the next step of `explore`.

    Appends `<|extra_101|> USER: {steering} ASSISTANT: <|extra_100|>`; an end that the answer has already is left out.

    Args:
        ids: the prompt so far.
        answer: what was generated from it, from the first id to the last.
        steering: what to do next; may be empty.
        text: the tokenizer.
    """
    v, answer = text.vocabulary, list(answer)
    while answer and answer[-1] in (v.end, v.span_end):
        answer.pop()
    turn = text.encode(f" USER: {steering} ASSISTANT: ", specials=False)
    return [*ids, *answer, v.span_end, *turn, v.span_start]


def _fill(template: str, question: str, images: Sequence[Sequence[int]], text: TextEncoder) -> list[int]:
    v = text.vocabulary
    body = template.removeprefix(BEGINNING).removesuffix(SPAN_START)
    first, *others = [text.encode(part.replace(QUESTION, question), specials=False) for part in body.split(IMAGE)]
    pictures = [i for image in images for i in image]
    return [v.beginning, *first, *(i for other in others for i in (*pictures, *other)), v.span_start]
