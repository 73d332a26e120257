"""Odd arguments: of every call of the package, and of the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .battery import Job, NotRun, Trial, battery
from .hostile_files import optional
from .processes import call_main, in_child

SECONDS = 5.0  # of a core, in which a word is refused


@battery(
    "calls",
    fault="NaN, inf, wrong shape, dtype or range in actions and observations",
    expected="a typed error naming field, value and rule; valid ones are taken",
    bar="10k fuzzed, 0 silent",
    n=10_000,
)
def calls(job: Job) -> Iterator[Trial]:
    """tests/support/fuzz.py's calls of env, vector env, planner, proposer, world model and `load`."""
    optional("fuzz")
    seed = job.chance.randrange(2**31)
    ending = in_child(lambda: _fuzzed(seed, job.n), 120 + job.n / 2)
    if ending.kind != "done":
        raise NotRun(f"the calls came to no end: {ending}")
    for door, arguments, fault, seconds in ending.value:
        yield Trial(f"{door}: {arguments}"[:200], not fault, seconds, fault)


def _fuzzed(seed: int, n: int) -> list[tuple[str, str, str, float]]:
    import fuzz

    return [(call.door, call.arguments, call.fault[:400], call.seconds) for call in fuzz.fuzz_calls(seed, n)]


@battery(
    "words",
    fault="odd words on the command line",
    expected="one line and exit code 2, or done; no traceback",
    bar="100%",
    n=100,
)
def words(job: Job) -> Iterator[Trial]:
    """tests/support/odd_words.py's command lines, those that users met and drawn ones, half of each."""
    odd = optional("odd_words")
    known = job.chance.sample(odd.FIXED, min(len(odd.FIXED), (job.n + 1) // 2))
    drawn = odd.odd_commands(job.chance.randrange(2**31), job.n - len(known))
    for command in (*known, *drawn):
        what = " ".join(repr(word)[1:-1][:60] for word in command.words)
        ending = in_child(lambda words=command.words: _in_folder(job.folder, list(words)), 60)
        answer = ending.value if ending.kind == "done" else {"code": ending.kind, "said": str(ending)}
        one_line = answer["code"] == 2 and answer["said"].count("\n") == 1
        held = one_line and command.names in answer["said"] and ending.computed < SECONDS
        yield Trial(what, held, ending.computed, "" if held else f"exit code {answer['code']}: {answer['said']}"[:400])


def _in_folder(folder: Path, words: list[str]) -> dict:
    os.chdir(folder)
    return call_main(words)
