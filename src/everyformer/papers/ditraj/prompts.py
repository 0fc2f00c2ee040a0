"""Splitting a prompt into one for the subject and one for what is around it, by any language model."""

from __future__ import annotations

import re
from collections.abc import Callable

INSTRUCTIONS = """\
Split a prompt for a video generator into two prompts.
The foreground prompt describes the main subject only, in a close shot that it fills.
The background prompt describes everything else, as in the given prompt, and never mentions the subject.
Keep the style of the prompt in both. Answer with two lines and nothing else:
foreground_prompt: ...
background_prompt: ...

Prompt: """


def separate(prompt: str, llm: Callable[[str], str]) -> tuple[str, str]:
    """The foreground prompt and the background prompt of ``prompt``, as ``llm`` (text to text) splits it.

    Raises ``ValueError`` if the prompt is empty, or the answer does not have both parts.
    Source: arXiv 2509.21839, foreground-background separation guidance.
    """
    if not prompt.strip():
        raise ValueError("prompt must not be empty")
    answer = llm(INSTRUCTIONS + prompt.strip())
    found = re.search(r"foreground_prompt:\s*(\S.*?)\s*background_prompt:\s*(\S.*?)\s*$", answer, re.DOTALL)
    if found is None:
        raise ValueError(f"llm must answer 'foreground_prompt: ... background_prompt: ...', got {answer[:200]!r}")
    return found[1], found[2]
