# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of the modules that decide what runs, with mutmut: ``nox -s mutation -- MODULE ...``.

A mutant is the module with one small change. The tests named for the module run on it, and at least one should fail.
mutmut leaves out decorated functions and what stands outside of functions. We leave out changes to the text of an
error, a refusal or a log line (:func:`message_only`): no test compares whole sentences.

    python tests/mutation.py MODULE ... [--sample N] [--seed S] [--folder FOLDER] [--again]

With ``--sample`` a seeded random choice of the mutants is run. What survives is printed as a diff. ``--again`` runs
only what survived last time, by the results in the folder: for the time in which tests are written, not sources.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent


@dataclass(frozen=True)
class Module:
    """What is mutated, and which tests of its distribution look for it: files, or single tests of them."""

    dist: str
    path: str
    tests: tuple[str, ...]
    interpreted: bool = False
    without: tuple[str, ...] = ()
    """Tests that cannot run on mutated code (they look into a function that mutmut wraps), or take seconds."""


def _core(path: str, *tests: str, without: tuple[str, ...] = ()) -> Module:
    return Module("ir-core", f"ir_core/{path}", tests, without=without)


def _triton(path: str, *tests: str, interpreted: bool = False) -> Module:
    return Module("ir-kernels-triton", f"ir_kernels_triton/{path}", tests, interpreted)


MODULES: Final = {
    "lock_file": _core("lock_file.py", "test_locking.py", "test_orders.py"),
    "evidence": _core("verification/evidence.py", "test_evidence.py"),
    "identity": _core("verification/identity.py", "test_evidence.py"),
    "resolve": _core(
        "resolve.py",
        *("test_selection.py", "test_orders.py", "test_requirements_kept.py"),
        without=(
            "test_orders.py::test_the_fast_path_asks_the_preference_again",
            "test_requirements_kept.py::test_no_warning_where_all_is_well",
        ),
    ),
    "selection": _core("selection.py", "test_selection.py", "test_orders.py"),
    "facts": _core("facts.py", "test_facts.py", "test_argument_checks.py"),
    "requirement": _core("requirement.py", "test_requirement.py"),
    "policy": _core(
        "policy.py",
        *("test_policy_scopes.py", "test_priority_grammar.py"),
        without=(
            "test_policy_scopes.py::test_spawn_starts_from_the_environment",
            "test_priority_grammar.py::test_a_list_written_out_is_read_back",
        ),
    ),
    "lowering_pass": _core("lowering/lowering_pass.py", "test_lowering.py"),
    "clone_elimination": _core("lowering/clone_elimination.py", "test_lowering.py"),
    "functionalization": _core("lowering/functionalization.py", "test_lowering.py"),
    "replacement": _core("lowering/replacement.py", "test_lowering.py"),
    "nodes": _core("lowering/nodes.py", "test_lowering.py"),
    "cache_key": _core("lowering/cache_key.py", "test_lowering.py"),
    "predicates": _triton("predicates.py", "test_predicates.py"),
    "arguments": _triton("arguments.py", "test_launch.py"),
    "launcher": _triton("launcher.py", "test_launcher.py", "test_launch.py"),
    "launch_config": _triton("launch_config.py", "test_launch.py"),
    "kernel_spec": _triton("kernel_spec.py", "test_kernel_spec.py"),
    "prepared_norm": _triton("prepared_norm.py", "test_launch.py", interpreted=True),
}
# Exit codes of the tests of one mutant: they failed, pytest broke, ran out of time (SIGXCPU, SIGKILL), crashed.
KILLED: Final = {1, 2, 3, -24, 24, 152, 255, -9, -11}
# Calls and variables whose texts are for reading; so is everything that is raised.
SPEAKING: Final = ("Error", "error", "Rejected", "warn", "warning", "info", "debug")
TEXTS: Final = ("what", "why", "fix", "reason", "detail")


def prepare(module: Module, folder: Path) -> None:
    """Lay out what mutmut expects: the distribution's ``src`` and ``tests``, and the settings."""
    package = ROOT / "packages" / module.dist
    ignore = shutil.ignore_patterns("__pycache__", "engine")
    shutil.copytree(package / "src", folder / "src", ignore=ignore)
    shutil.copytree(package / "tests", folder / "tests", ignore=ignore)
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    without = "".join(f"    --deselect\n    tests/{test}\n" for test in module.without)
    selection = "\n".join(f"    tests/{test}" for test in module.tests)
    (folder / "setup.cfg").write_text(
        "[mutmut]\n"
        "source_paths=src\n"
        f"only_mutate=src/{module.path}\n"
        "also_copy=conftest.py\n"
        "process_isolation=forkserver\n"  # tests that import helpers do not run twice in one process
        f"pytest_add_cli_args=\n    -m\n    not slow and not gpu and not vllm and not packs\n{without}"
        f"pytest_add_cli_args_test_selection=\n{selection}\n"
    )


def functions(code: str) -> dict[str, ast.AST]:
    """The functions and methods of a mutated file by name, mutants and originals, all under one name inside."""
    found: dict[str, ast.AST] = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and "__mutmut_" in node.name:
            found[node.name] = node
            node.name = node.name.rpartition("__mutmut_")[0]
    return found


def change(original: Any, mutant: Any) -> Iterator[Any]:
    """The nodes of the original from the function down to the one that was changed."""
    yield original
    if type(original) is not type(mutant) or not isinstance(original, ast.AST):
        return
    for name, before in ast.iter_fields(original):
        after = getattr(mutant, name)
        pairs = [(before, after)]
        if isinstance(before, list) and isinstance(after, list):
            if len(before) != len(after):
                return
            pairs = list(zip(before, after, strict=True))
        for one, other in pairs:
            same = (
                ast.dump(one) == ast.dump(other)
                if isinstance(one, ast.AST) and isinstance(other, ast.AST)
                else one == other
            )
            if not same:
                yield from change(one, other)
                return


def message_only(original: ast.AST, mutant: ast.AST) -> bool:
    """Whether only a text that is raised, logged or given as a reason was changed or left out."""
    nodes = [node for node in change(original, mutant) if isinstance(node, ast.AST)]

    def speaks(node: ast.AST) -> bool:
        if isinstance(node, ast.Assign):
            return ast.unparse(node.targets[0]) in TEXTS
        if not isinstance(node, ast.Call):
            return isinstance(node, ast.Raise)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return name.endswith(SPEAKING)

    if not any(map(speaks, nodes)):
        return False
    last = nodes[-1]
    if isinstance(last, ast.Call):  # an argument was left out
        return speaks(last)
    return isinstance(last, (ast.JoinedStr, ast.FormattedValue, ast.BinOp)) or (
        isinstance(last, ast.Constant) and isinstance(last.value, str)
    )


def run(
    name: str, folder: Path, sample: int | None, seed: int, before: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Mutate one module and run its tests on each mutant, one after the other; or on the survivors of ``before``."""
    module = MODULES[name]
    prepare(module, folder)
    os.chdir(folder)
    from mutmut import configuration
    from mutmut.mutation.file_mutation import mutate_file_contents

    configuration.reset_config()
    source = f"src/{module.path}"
    mutated = mutate_file_contents(source, Path(source).read_text())
    defined = functions(mutated.code)
    dotted = module.path.removesuffix(".py").replace("/", ".")

    def original(mutant: str) -> ast.AST:
        return defined[f"{mutant.rpartition('__mutmut_')[0]}__mutmut_orig"]

    wanted = [each for each in mutated.mutant_names if not message_only(original(each), defined[each])]
    chosen = wanted if sample is None else random.Random(seed).sample(wanted, min(sample, len(wanted)))
    (folder / "mutants" / "src").mkdir(
        parents=True
    )  # Python remembers a folder that was missing when it started
    known: dict[str, int] = {} if before is None else before["exit_codes"]
    chosen = sorted(known or chosen)
    now = [each for each in chosen if known.get(each, 0) not in KILLED]
    variables = {
        "PYTHONPATH": str(folder / "mutants" / "src"),  # for the processes that tests start
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "1" if module.interpreted else "0",
    }
    with (folder / "log").open("w") as log:
        subprocess.run(
            ["mutmut", "run", "--max-children", "1", *(f"{dotted}.{each}" for each in now)],
            env={**os.environ, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    data = json.loads(Path(f"mutants/{source}.meta").read_text())["exit_code_by_key"]
    codes = {**known, **{each: data[f"{dotted}.{each}"] for each in now}}
    if unrun := sum(code is None for code in codes.values()):
        raise RuntimeError(f"{name}: {unrun} mutants were not run.\n{tail(folder / 'log')}")
    survivors = {
        each: difference(original(each), defined[each]) for each, code in codes.items() if code not in KILLED
    }
    return {
        "module": name,
        "mutants": len(mutated.mutant_names),
        "message_only": len(mutated.mutant_names) - len(wanted),
        "run": len(chosen),
        "killed": len(chosen) - len(survivors),
        "seed": None if len(chosen) == len(wanted) else before["seed"] if before else seed,
        "exit_codes": codes,
        "survivors": survivors,
    }


def difference(original: ast.AST, mutant: ast.AST) -> str:
    """The lines of a function that were changed, with one around them."""
    before, after = (ast.unparse(node).splitlines() for node in (original, mutant))
    return "\n".join(list(difflib.unified_diff(before, after, lineterm="", n=1))[2:])


def tail(path: Path) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").replace("\r", "\n").splitlines()[-60:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "modules", nargs="+", choices=sorted(MODULES), metavar="MODULE", help=", ".join(MODULES)
    )
    parser.add_argument("--sample", type=int, help="how many mutants of each module are run; all by default")
    parser.add_argument("--seed", type=int, default=0, help="which sample")
    parser.add_argument(
        "--folder", type=Path, help="where work and results are kept; a temporary one by default"
    )
    parser.add_argument("--again", action="store_true", help="only what survived last time")
    options = parser.parse_args()
    os.nice(19)
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        for name in options.modules:
            work = folder / name
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            kept = folder / f"{name}.json"
            before = json.loads(kept.read_text()) if options.again else None
            try:
                result = run(name, work, options.sample, options.seed, before)
            except RuntimeError as error:
                print(error, flush=True)
                failed.append(name)
                continue
            kept.write_text(json.dumps(result, indent=1))
            for mutant, diff in result["survivors"].items():
                print(f"{mutant} survived (exit code {result['exit_codes'][mutant]})\n{diff}\n")
            part = "" if result["seed"] is None else f", a random sample (seed {result['seed']})"
            print(
                f"{name}: {result['killed']} of {result['run']} mutants killed, "
                f"{result['killed'] / max(result['run'], 1):.1%}{part}; "
                f"{result['message_only']} of texts only were left out",
                flush=True,
            )
    if failed:
        sys.exit(f"Not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
