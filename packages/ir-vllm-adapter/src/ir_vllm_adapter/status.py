# SPDX-License-Identifier: Apache-2.0
"""What runs, through which seam, and what in this configuration is not batch-invariant: as data and as a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ir_vllm_adapter import compat, counters, evidence, ir_seam, layer_seam, log, state
from ir_vllm_adapter.attachment import ATTACHED
from ir_vllm_adapter.version import __version__

PLUGIN = "ir_vllm_adapter"


def anything_named() -> bool:
    """Whether a list of vLLM's names one of our providers for an op of vLLM's IR."""
    return any(
        provider in ATTACHED.providers.get(name, {})
        for name, (theirs, _) in ir_seam.shared_ops().items()
        for provider in theirs.get_priority()
    )


def collect() -> dict[str, Any]:
    """Everything the table shows, as plain data for JSON."""
    from ir_core import current
    from ir_vllm_adapter.standing import target_here

    host = compat.host()
    policy = current()
    target = target_here(state.STATE.index)
    return {
        "adapter": __version__,
        "vllm": {"version": host.version, "verdict": host.verdict, "line": host.line},
        "enabled": host.supported and not policy.disabled and plugin_allowed(),
        "batch_invariant": policy.batch_invariant,
        "strict": policy.strict,
        "target": {"name": target.describe(), "batch_invariant": target.batch_invariant},
        "ops": _ops(target),
        "layers": _layers(),
        "parts": [part.to_dict() for part in parts(target)],
        "fusions_off": dict(ATTACHED.fusions_off),
        "not_batch_invariant": exceptions(host, policy, target),
        "counters": counters.snapshot(),
        "warnings": list(log.LINES),
    }


def parts(target: Any) -> list[Any]:
    """The parts of a forward pass of the loaded model, with the evidence on ``target``; [] before one is loaded."""
    return [evidence.look_up(part, target) for part in state.STATE.parts]


def plugin_allowed() -> bool:
    """Whether VLLM_PLUGINS lets vLLM load the adapter (vLLM itself decides; this is for the reader)."""
    listed = os.environ.get("VLLM_PLUGINS")
    return listed is None or PLUGIN in listed.split(",")


def _ops(target: Any) -> list[dict[str, Any]]:
    from ir_core import current, get_op
    from ir_core.catalog import op_names
    from ir_vllm_adapter.standing import order, standing

    shared = ir_seam.shared_ops()
    rows: list[dict[str, Any]] = []
    for name in op_names():
        op = get_op(name)
        found = shared.get(name)
        priority = found[0].get_priority() if found else []
        rows.append({
            "op": name,
            "seam": ("IR" if found else "layer") if name in _NORM_OPS or found else "none",
            "order": order(op, current(), target),
            "vllm_priority": priority,
            "candidates": [c.to_dict() for c in standing(op, current(), target)],
        })  # fmt: skip
    return rows


_NORM_OPS = ("rms_norm", "fused_add_rms_norm")


def _layers() -> list[dict[str, Any]]:
    graph = "IR" if compat.ir_op_names() else "ir_vllm op"
    rows: list[dict[str, Any]] = []
    for name in sorted({*layer_seam.LAYERS, *state.STATE.layers}):
        taken = name in ATTACHED.layers
        rows.append({
            "layer": name,
            "count": state.STATE.layers[name] if state.STATE.loaded else None,
            "taken_over": taken,
            "seam": f"layer when eager, {graph} when compiled" if taken else "vLLM's own",
        })  # fmt: skip
    return rows


def exceptions(host: compat.Host, policy: Any, target: Any) -> list[str]:
    """What in this configuration is not batch-invariant although batch-invariant mode is on; one sentence each."""
    if not policy.batch_invariant:
        return ["batch-invariant mode is off (VLLM_BATCH_INVARIANT is not 1)"]
    found: list[str] = []
    if not target.batch_invariant:
        found.append(f"device: {target.batch_invariant_reason}")
    for name, count in sorted(state.STATE.layers.items()):
        if name not in ATTACHED.layers:
            found.append(f"{count} {name}: not a layer that ir-core has an op for; vLLM's own code runs")
    for name in compat.ir_op_names():
        if name not in ATTACHED.providers:
            found.append(f"vLLM IR op {name}: ir-core has no implementation of it; vLLM's native runs")
    for part in parts(target):
        if part.verdict == "refuted":
            found.append(f"{part.kind} {part.runs}: refuted on this device ({part.date[:10]}): {part.detail}")
    if state.STATE.compiled and not compat.inductor_batch_invariant():
        found.append(
            "Inductor's own reductions: its batch-invariant switch is off (TORCHINDUCTOR_BATCH_INVARIANT=1 sets it "
            "from torch 2.13 on; vLLM does so from 0.33 on). The norms are opaque to Inductor and not concerned"
        )
    if (rounding := compat.fused_rounding()) and "RMSNorm" in ATTACHED.layers:
        found.append(f"not a defect, but other bits than vLLM {host.version} alone: {rounding}")
    return found


def render(data: dict[str, Any]) -> str:
    """The table that is logged at start and printed by the command."""
    mode = "batch-invariant mode" if data["batch_invariant"] else "batch-invariant mode off"
    host = f"in vLLM {data['vllm']['version']}" if data["vllm"]["version"] else "without vLLM"
    lines = [f"ir-vllm-adapter {data['adapter']} {host}: {mode}, {data['target']['name']}"]
    if data["vllm"]["line"]:
        lines.append(data["vllm"]["line"])
    if not data["enabled"]:
        lines.append(
            f"not active here (VLLM_PLUGINS must name {PLUGIN} if it is set; IR_DISABLE must not be 1)"
        )
    rows = [("op", "seam", "runs", "behind it")]
    for op in data["ops"]:
        first, *rest = op["order"] or ["-"]
        rows.append((op["op"], op["seam"], _with_home(op, first), ", ".join(rest) or "-"))
    lines += _columns(rows)
    rows = [("layer", "in the model", "runs through", "")]
    for layer in data["layers"]:
        count = "not loaded" if layer["count"] is None else str(layer["count"])
        rows.append((layer["layer"], count, layer["seam"], ""))
    lines += _columns(rows)
    lines += part_lines(data.get("parts", []))
    if data["fusions_off"]:
        lines.append(f"fusions kept off, they replace norms: {', '.join(data['fusions_off'])}")
    lines += [f"not batch-invariant: {text}" for text in data["not_batch_invariant"]]
    if data["counters"]:
        lines.append(
            "calls so far: " + ", ".join(f"{key} {count}" for key, count in data["counters"].items())
        )
    return "\n".join(line.rstrip() for line in lines)


def part_lines(parts: Sequence[dict[str, Any]]) -> list[str]:
    """The parts as a table."""
    if not parts:
        return []
    rows = [("part", "runs", "modules", "order", "evidence on this device")]
    for part in parts:
        runs = f"{part['op']}: {part['runs']}" if part["op"] else part["runs"]
        said = f"{part['verdict']} {part['date'][:10]}".rstrip()
        said += f": {part['detail']}" if part["detail"] else ""
        rows.append(
            (part["kind"], f"{runs} ({part['home']})", str(part["count"]), part["order"] or "-", said)
        )
    lines = _columns(rows)
    if any(part["verdict"] == "not checked" for part in parts):
        lines.append("`python -m ir_vllm_adapter verify MODEL_FOLDER` checks what is not checked")
    return lines


def _with_home(op: dict[str, Any], provider: str) -> str:
    for candidate in op["candidates"]:
        if candidate["provider"] == provider and candidate["distribution"]:
            return f"{provider} ({candidate['distribution']} {candidate['version']})"
    return provider


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    ]
