# SPDX-License-Identifier: Apache-2.0
"""Ranks compare what they would run; a difference ends the start with both lists."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from ir_vllm_adapter import agreement, log, worker
from ir_vllm_adapter.errors import AgreementError

TRITON = {
    "rms_norm": ["triton_batch_invariant (ir-kernels-triton 0.1.0) 0123", "portable (ir-core 0.1.0) 4567"]
}
PORTABLE = {"rms_norm": ["portable (ir-core 0.1.0) 4567"]}


def test_equal_ballots_agree() -> None:
    agreement.compare([TRITON, dict(TRITON), dict(TRITON)])


def test_a_difference_names_both_lists() -> None:
    with pytest.raises(AgreementError) as caught:
        agreement.compare([TRITON, TRITON, PORTABLE])
    text = str(caught.value)
    assert "ranks 0 and 2" in text
    assert "rank 0: triton_batch_invariant (ir-kernels-triton 0.1.0) 0123, portable" in text
    assert "rank 2: portable (ir-core 0.1.0) 4567" in text


def test_another_version_of_one_provider_is_a_difference() -> None:
    other = {"rms_norm": ["triton_batch_invariant (ir-kernels-triton 0.2.0) 89ab", TRITON["rms_norm"][1]]}
    with pytest.raises(AgreementError, match=r"ir-kernels-triton 0\.2\.0"):
        agreement.compare([TRITON, other])


def test_it_is_never_swallowed() -> None:
    def disagree() -> None:
        agreement.compare([TRITON, PORTABLE])

    with pytest.raises(AgreementError):
        log.guarded("start", disagree)


def test_a_broken_lock_is_never_swallowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ir_core
    from ir_core.errors import LockError

    lock = tmp_path / "ir.lock"
    lock.write_text('{"format": 1, "ops": {}}')
    monkeypatch.setenv("IR_LOCK", str(lock))
    ir_core.refresh()
    try:
        with pytest.raises(LockError, match="not in the lock file"):
            log.guarded("start", worker._check_lock)
    finally:
        monkeypatch.delenv("IR_LOCK")
        ir_core.refresh()


def test_a_lone_rank_asks_nobody() -> None:
    agreement.check(SimpleNamespace(world_size=1), lambda: pytest.fail("it made a ballot"))


def test_a_ballot_names_digests_of_what_would_run() -> None:
    mine = agreement.ballot()
    assert {"rms_norm", "fused_add_rms_norm"} <= mine.keys()
    assert all(entry.split()[-1].isalnum() for entries in mine.values() for entry in entries)


def test_two_processes_over_a_real_group() -> None:
    code = textwrap.dedent(
        """
        import os, sys
        from types import SimpleNamespace
        import torch.distributed as dist
        from ir_vllm_adapter import agreement
        from ir_vllm_adapter.errors import AgreementError
        rank, port = int(sys.argv[1]), sys.argv[2]
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        group = SimpleNamespace(world_size=2, cpu_group=dist.group.WORLD)
        agreement.check(group, lambda: {"rms_norm": ["same"]})
        try:
            agreement.check(group, lambda: {"rms_norm": [f"provider of rank {rank}"]})
        except AgreementError as error:
            print(error, flush=True)
        dist.barrier()
        os._exit(0)  # taking gloo down while the other rank goes aborts now and then
        """
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), port], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in ranks:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "rank 0: provider of rank 0; rank 1: provider of rank 1" in out
