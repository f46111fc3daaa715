# SPDX-License-Identifier: Apache-2.0
"""What one compiled kernel is made of, read from its TTGIR, PTX and cubin."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from ir_kernels_triton import compat
from ir_kernels_triton.kernel_spec import KernelSpec


@dataclass(frozen=True)
class Compiled:
    """Facts of one compiled kernel. Counts are static instructions of the PTX, per thread."""

    reductions: tuple[str, ...]
    """Operand layout of each reduction, in program order, written out."""
    accesses: tuple[int, ...]
    """Bytes of each global load and store of a thread."""
    shuffles: int
    barriers: int
    fused: tuple[str, ...]
    """float32 multiply-adds beyond those that the kernel asks for by name (``tl.fma``)."""
    inexact: tuple[str, ...]
    """Approximate or flushing instructions."""
    registers: int
    spilled: int
    """Bytes of stack and local memory."""
    shared: int
    threads: int
    waits: bool
    """Whether each way from its start to a global access passes a wait for the kernel before it."""


def target(name: str) -> GPUTarget:
    """``sm90`` as Triton's target."""
    return GPUTarget("cuda", int(name.removeprefix("sm").removeprefix("_")), 32)


def inspect(spec: KernelSpec, name: str) -> Compiled:
    """Compile ``spec`` for the target ``name`` and read the facts."""
    kernel = compat.compile_for(spec, target(name))
    asm = kernel.asm
    return read(asm["ttgir"], asm["ptx"], asm["cubin"], kernel.metadata, asm["llir"])


def read(ttgir: str, ptx: str, cubin: bytes, metadata: Any, llir: str = "") -> Compiled:
    """The facts of the stages of one compilation; without ``llir`` every multiply-add counts as fused."""
    calls = re.findall(r"\bcall (?:<(\d+) x )?float>? @llvm\.fma\.", llir)
    asked = sum(int(width or 1) for width in calls)
    # From SM 10.0 on one instruction has two of them: f32x2.
    fused = [
        name for name, two in re.findall(r"\b(fma\.[\w.]*f32(x2)?)\b", ptx) for _ in range(2 if two else 1)
    ]
    registers, spilled = resources(cubin)
    return Compiled(
        reductions=reductions(ttgir),
        accesses=accesses(ptx),
        shuffles=len(re.findall(r"^\s*(?:@%p\d+ )?shfl\.sync", ptx, re.M)),
        barriers=len(re.findall(r"^\s*(?:@%p\d+ )?bar(?:rier)?\.sync", ptx, re.M)),
        fused=tuple(fused[asked:]),
        inexact=tuple(re.findall(r"\b[a-z0-9]+\.[\w.]*(?:approx|ftz|full)[\w.]*", ptx)),
        registers=registers,
        spilled=spilled,
        shared=int(metadata.shared),
        threads=32 * int(metadata.num_warps),
        waits=waits(ptx),
    )


def reductions(ttgir: str) -> tuple[str, ...]:
    """Operand type of every ``tt.reduce``, with the layout's definition in place of its number."""
    layouts = dict(re.findall(r"^(#\w+) = (.+)$", ttgir, re.M))
    found = re.findall(r'"tt\.reduce"\(.*?\}\) : \((tensor<[^)]*>)\)', ttgir, re.S)
    return tuple(
        re.sub(r"#\w+(?:<[^>]*>)?", lambda m: layouts.get(m[0], m[0]), operand)
        if "slice" not in operand
        else re.sub(r"#(?!ttg)\w+", lambda m: layouts.get(m[0], m[0]), operand)
        for operand in found
    )


def waits(ptx: str) -> bool:
    """Whether ``griddepcontrol.wait`` stands on every path from the entry to a global load or store."""
    lines = [line.split("//")[0].strip() for line in ptx.splitlines()]
    labels = {line[:-1]: at for at, line in enumerate(lines) if re.fullmatch(r"[$\w]+:", line)}
    todo, seen = [lines.index("{")], set()
    while todo:
        at = todo.pop()
        while at < len(lines) and at not in seen:
            seen.add(at)
            line = lines[at]
            if re.match(r"griddepcontrol\.wait\b", line):
                break
            if re.search(r"\b(?:ld|st|atom|red)\.(?:\w+\.)*global\b", line):
                return False
            jump = re.match(r"(@!?%p\d+\s+)?bra(?:\.uni)?\s+([$\w]+)\s*;", line)
            if jump:
                todo.append(labels[jump[2]])
            if re.match(r"ret\b|exit\b|trap\b", line) or (jump and not jump[1]):
                break
            at += 1
    return "griddepcontrol.wait" in ptx


def accesses(ptx: str) -> tuple[int, ...]:
    """Bytes of each global access."""
    found = re.findall(r"\b(?:ld|st)\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b", ptx)
    return tuple(int(count or 1) * int(bits) // 8 for count, bits in found)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes, by the ``cuobjdump`` that Triton ships."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of resources: {text}")
    return int(found[1]), int(found[2]) + int(found[3])
