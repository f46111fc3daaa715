# SPDX-License-Identifier: Apache-2.0
"""What an engine run must show, as plain assertions on its result."""

from __future__ import annotations

from typing import Any


def differences(result: dict[str, Any]) -> list[str]:
    """Every (scenario, prompt, field) whose bits differ from those of the prompt alone; [] if none does."""
    alone = result["runs"]["alone"]
    found: list[str] = []
    for scenario, prompts in result["runs"].items():
        for prompt, fields in prompts.items():
            for field, value in fields.items():
                if field == "prompt_logprobs" and not value:
                    continue  # not asked for in that scenario
                if value != alone[prompt][field]:
                    found.append(f"{scenario}: prompt {prompt}: {field}")
    return found


def was_chunked(result: dict[str, Any], scenario: str, budget: int) -> bool:
    """Whether a pass was filled to the budget by several requests, so that a prompt was cut into chunks."""
    return any(sum(tokens) == budget and len(tokens) > 1 for tokens in result["passes"][scenario])


def hit_the_cache(result: dict[str, Any], lengths: dict[str, int], block: int = 16) -> bool:
    """Whether the first pass with a warm prefix cache scheduled only what no full block holds."""
    expected = [length - (length - 1) // block * block for length in lengths.values()]
    return any(tokens == expected for tokens in result["passes"]["prefix_cached"])
