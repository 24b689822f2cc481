"""Qwen2.5-VL (2502.13923) as a judge of looks, as Flow-GRPO (2505.05470) has it: five levels from bad to excellent.

What the levels look at and the form of the answer are as there; the wording is this project's. The prompt plays no
part.
"""

from __future__ import annotations

import re
from typing import ClassVar

from flowopd.rewards.chat import ChatJudge, Rubric

QUESTION = """You judge how good pictures look. These are the levels:
1 (bad): blurred or drowned in noise, far too dark, nothing to recognise, no composition.
2 (poor): visibly soft, badly lit, pale colours, an awkward composition that cuts its subject.
3 (fair): sharp and lit well enough, but dull in colour and ordinary in composition.
4 (good): sharp, well exposed, lively in colour, composed with care around a clear subject.
5 (excellent): flawless in sharpness and exposure, rich in colour, masterly composed and moving.
First reason about the picture level by level within <Thought> and </Thought>.
Then give one score from 1 to 5 in this form, and nothing after it:
<Score>your score</Score>"""


class QwenVl(ChatJudge):
    """Rates looks alone; details: `qwenvl` in 1..5."""

    rubric: ClassVar = Rubric(
        name="qwenvl",
        served="Qwen/Qwen2.5-VL-7B-Instruct",
        question=lambda prompt: QUESTION,
        answer=re.compile(r"<Score>\s*(-?\d+(?:\.\d+)?)\s*</Score>", re.IGNORECASE),
        form="'<Score>x</Score>'",
    )
