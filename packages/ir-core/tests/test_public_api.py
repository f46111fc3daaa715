# SPDX-License-Identifier: Apache-2.0
"""The public API: what it is, that it is typed, and that importing it does nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import ir_core

# Adding a name is a decision, and taking one away breaks somebody: both are seen here.
PUBLIC = """
    AllOf Accepted AnyOf Candidate Capability Evidence Feature ImplSpec IrError IrOp IrOpImpl IrWarning KernelPack
    Kind OpPolicy Order PACK_API Policy RESERVED_PROVIDERS Rejected Requirement SM Selection Target __version__ audit
    batch_invariant_mode bind_policy change_default compile current enable enable_torch_wrap errors failures get_op ops
    packs
    parse_requirement patch refresh register_op scope select set_default_torch_wrap
"""


def test_the_names() -> None:
    assert sorted(ir_core.__all__) == sorted(PUBLIC.split())
    assert sorted(dir(ir_core)) == sorted(PUBLIC.split())


@pytest.mark.parametrize("name", PUBLIC.split())
def test_each_is_there_typed_and_documented(name: str) -> None:
    found = getattr(ir_core, name)
    if inspect.isfunction(found):
        hints = inspect.signature(found)
        assert hints.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in hints.parameters.values())
        assert inspect.getdoc(found)
    elif inspect.isclass(found):
        assert inspect.getdoc(found)
        parameters = list(inspect.signature(found.__init__).parameters.values())[1:]
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        assert all(p.annotation is not inspect.Parameter.empty for p in named), named


def test_what_is_not_there_says_so() -> None:
    with pytest.raises(AttributeError, match="'ir_core' has no attribute 'no_such_thing'"):
        _ = ir_core.no_such_thing


def test_importing_it_imports_no_torch_and_keeps_the_function_failures() -> None:
    code = (
        "import sys, ir_core; assert 'torch' not in sys.modules\n"
        "import ir_core.discovery; assert ir_core.failures() == (), ir_core.failures()\n"
        "assert not [name for name in sys.modules if name.startswith('triton')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"IR_PACKS": ""}, timeout=120)
