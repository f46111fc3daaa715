# SPDX-License-Identifier: Apache-2.0
"""What the benchmark scripts share: the machine's description, fair timing, and files of results."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import timeit
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

RESULTS = Path(__file__).parent / "results"

T = TypeVar("T")


def machine() -> dict[str, Any]:
    """The machine and the versions that a number was measured with."""
    import torch

    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_name(),
        "cores": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    for name in ("torch", "triton", "vllm", "ir-core", "ir-kernels-triton", "ir-vllm-adapter"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def interleaved(calls: dict[str, Callable[[], object]], *, number: int, rounds: int) -> dict[str, float]:
    """Best seconds a call of each function; rounds alternate between them, so that noise hits all alike."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            best[name] = min(best[name], timeit.timeit(call, number=number) / number)
    return best


def graph_of(call: Callable[..., Any], sets: Sequence[tuple[Any, ...]], turns: int) -> Any:
    """A CUDA graph of ``turns`` calls, which go through the sets of arguments one after the other."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call(*sets[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(turns):
            call(*sets[turn % len(sets)])
    return graph


def replay(graphs: Mapping[Any, Any], turns: int, replays: int, digits: int = 3) -> dict[Any, float]:
    """Median microseconds a call; the contenders take turns, so that a hot or throttled card is so for all."""
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times: dict[Any, list[float]] = {name: [] for name in graphs}
    for turn in range(replays + 2):
        for name, graph in graphs.items():
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 2:
                times[name].append(begin.elapsed_time(end) * 1000 / turns)
    return {name: round(statistics.median(values), digits) for name, values in times.items()}


def save(name: str, results: dict[str, Any]) -> Path:
    """Write ``results/<name>.json`` with the machine's description."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    return path


def bars(name: str, title: str, unit: str, groups: dict[str, dict[str, float]]) -> Path | None:
    """Draw ``results/<name>.png``: one group of bars a case, one colour a contender; ``None`` without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    contenders = list(dict.fromkeys(c for group in groups.values() for c in group))
    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.45 * len(groups) * max(len(contenders), 1)))
    height = 0.8 / len(contenders)
    for i, contender in enumerate(contenders):
        at = [row + (i - (len(contenders) - 1) / 2) * height for row in range(len(groups))]
        drawn = axes.barh(
            at, [g.get(contender, 0.0) for g in groups.values()], height * 0.92, label=contender
        )
        axes.bar_label(drawn, fmt=lambda v: f"{v:.0f}" if v >= 100 else f"{v:.3g}", padding=3)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(title)
    axes.margins(x=0.15)
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path = RESULTS / f"{name}.png"
    figure.savefig(path, dpi=110)
    return path


def importable(makers: Mapping[str, Callable[[], T]]) -> tuple[dict[str, T], dict[str, str]]:
    """What each maker makes, by name, and why the others make nothing here."""
    found, missing = {}, {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except Exception as error:  # a peer may fail to import in any way
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return found, missing
