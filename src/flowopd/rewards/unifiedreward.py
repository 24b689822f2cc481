"""UnifiedReward (2503.05236): a vision-language model trained to rate a picture for its prompt, looks included.

The two criteria, the scale and the form of the answer are those of its point-wise rating; the wording is this
project's.
"""

from __future__ import annotations

import re
from typing import ClassVar

from flowopd.rewards.chat import ChatJudge, Rubric


def question(prompt: str) -> str:
    """What is asked of a picture and its prompt."""
    return (
        "Here is a picture that was generated from a caption. Rate it by two things.\n"
        "1. Alignment: are the objects of the caption there, with the attributes and relations that it gives them?\n"
        "2. Quality: is the picture clear, rich in detail, true in colour and pleasing to look at?\n"
        "Weigh both and end your answer with one score from 1 to 5, written after 'Final Score:'.\n"
        f"Text Caption: [{prompt}]"
    )


class UnifiedReward(ChatJudge):
    """Rates alignment and quality together; details: `unifiedreward` in 1..5."""

    rubric: ClassVar = Rubric(
        name="unifiedreward",
        served="CodeGoat24/UnifiedReward-7b-v1.5",
        question=question,
        answer=re.compile(r"Final Score:[\s*]*(-?\d+(?:\.\d+)?)", re.IGNORECASE),
        form="'Final Score: x'",
    )
