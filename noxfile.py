# SPDX-License-Identifier: Apache-2.0
"""The project's sessions: `nox -l` lists them, CONTRIBUTING.md says when to use which.

Every session installs with pip from constraints/, torch first and pinned: an open torch pulls gigabytes.
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import Final

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True

ROOT: Final = Path(__file__).parent

# Distribution -> the siblings it stands on. All others must be absent where that layer is installed alone.
LAYERS: Final[dict[str, tuple[str, ...]]] = {
    "ir-core": (),
    "ir-platform": (),
    "ir-kernels-triton": ("ir-core", "ir-platform"),
    "ir-vllm-adapter": ("ir-core", "ir-platform"),
}
# GPU targets whose kernels are compiled everywhere and run where there is such a card.
TARGETS: Final = ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120")
# Supported vLLM -> the trio of torch, Triton and vLLM that were released together.
VLLM_VERSIONS: Final[dict[str, str]] = {
    "0.20.0": "constraints/vllm-0.20.0.txt",
    "0.26.0": "constraints/vllm-0.26.0.txt",
    "0.32.0": "constraints/vllm-0.32.0.txt",
    "0.33.0": "constraints/vllm-0.33.0.txt",
}
# Minor versions of typer that ir-core[cli] allows: each has had ideas of its own about the names of options.
TYPER_MINORS: Final = tuple(f"0.{minor}" for minor in range(16, 30))

# Benchmark -> the trio whose vLLM stands beside us in it, and whether it needs a GPU.
BENCHMARKS: Final[dict[str, tuple[str, bool]]] = {
    "eager_dispatch": ("0.32.0", False),
    "lowering": ("0.32.0", False),
    "linear": ("0.26.0", True),
    "model": ("0.26.0", True),
    "norms": ("0.26.0", True),
    "vllm_latency": ("0.26.0", True),
}

EVERYDAY: Final = "constraints/everyday.txt"
MINIMUMS: Final = "constraints/minimums.txt"
# Where tests that need a GPU are; the session runs each of them, once.
GPU_TESTS: Final = ("packages", "tests", "examples/liger_pack/tests")
NO_HARDWARE: Final = "not gpu and not vllm and not packs"
WHEELS: Final = ROOT / ".nox" / "wheels"

PYPROJECT: Final = nox.project.load_toml(ROOT / "pyproject.toml")


def group(*names: str) -> tuple[str, ...]:
    """Requirements of the named dependency groups of the root pyproject."""
    return nox.project.dependency_groups(PYPROJECT, *names)


def requirements(*dists: str, extras: bool = True) -> list[str]:
    """What these distributions need from outside this repository, torch first; with their command lines (``cli``)."""
    found: set[str] = set()
    for dist in dists:
        project = nox.project.load_toml(ROOT / "packages" / dist / "pyproject.toml")["project"]
        found.update(project["dependencies"])
        if extras:
            found.update(project.get("optional-dependencies", {}).get("cli", ()))
    outside = [requirement for requirement in found if not requirement.startswith(tuple(LAYERS))]
    return sorted(outside, key=lambda requirement: (not requirement.startswith("torch"), requirement))


def install_outside(
    session: nox.Session,
    dists: tuple[str, ...],
    *extra: str,
    constraints: str = EVERYDAY,
    extras: bool = True,
) -> None:
    """Install the pinned third-party requirements of these distributions, and ``extra``.

    Compiling all of torch takes longer than installing it, so bytecode is made as modules are imported, and
    kept out of the tree.
    """
    session.env.update(PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(ROOT / ".nox" / "pycache"))
    session.install("--no-compile", "-c", constraints, *requirements(*dists, extras=extras), *extra)


def install_editable(session: nox.Session, *extra: str, constraints: str = EVERYDAY) -> None:
    """Install the four distributions from the working tree, and ``extra``; --no-venv takes what is there."""
    if isinstance(session.virtualenv, nox.virtualenv.PassthroughEnv):
        session.log("no environment of its own: using what this interpreter has installed")
        return
    tools = ("hatchling", "editables", "numpy")
    install_outside(session, tuple(LAYERS), *tools, *extra, constraints=constraints)
    editable = [flag for dist in LAYERS for flag in ("-e", f"packages/{dist}")]
    session.install("--no-deps", "--no-build-isolation", *editable)


@functools.cache
def wheels() -> Path:
    """Folder for the wheels of this run of nox, empty at first."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    WHEELS.mkdir(parents=True)
    return WHEELS


def install_wheels(session: nox.Session, *dists: str) -> None:
    """Install these distributions from our own wheels, built once a run, with no index to fall back on."""
    folder = wheels()
    missing = [dist for dist in dists if not any(folder.glob(f"{dist.replace('-', '_')}-*.whl"))]
    if missing:
        sources = [str(ROOT / "packages" / dist) for dist in missing]
        session.run(
            *("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)), *sources
        )
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", *LAYERS, silent=True)
    session.install("--no-index", "--find-links", str(folder), *dists)
    session.run("python", "-m", "pip", "check", silent=True)


def pytest(session: nox.Session, *args: str, require: str = "", **env: str) -> None:
    """Run pytest; ``require`` names the kinds of test of which at least one must have passed."""
    session.run("python", "-m", "pytest", *args, env={"IR_REQUIRE_KINDS": require, **env})


def run_tests(session: nox.Session, *paths: str, interpreted: bool, slow: bool = True) -> None:
    """All tests under ``paths`` that need no GPU and no vLLM; ``interpreted``: Triton's are among them.

    Triton decides when a kernel is decorated whether it is compiled or interpreted, so the interpreted
    tests have a process of their own.
    """
    wanted = NO_HARDWARE if slow else f"{NO_HARDWARE} and not slow"
    pytest(session, "-m", f"{wanted} and not interpreter", *paths, *session.posargs)
    if interpreted:
        selection = f"{wanted} and interpreter"
        pytest(
            session, "-m", selection, *paths, *session.posargs, require="interpreter", TRITON_INTERPRET="1"
        )


@nox.session
def demo(session: nox.Session) -> None:
    """The main job: this README through a decoder whose every norm is selected and compared bit by bit."""
    install_editable(session)
    session.run(
        "python",
        "-m",
        "ir_core",
        "demo",
        *(session.posargs or ["README.md"]),
        env={"VLLM_BATCH_INVARIANT": "1"},
    )


@nox.session
def tests(session: nox.Session) -> None:
    """Every test that needs no GPU and no vLLM, on the working tree."""
    install_editable(session, *group("tests", "models"))
    run_tests(session, "packages", "tests", interpreted=True)


@nox.session
@nox.parametrize("dist", [nox.param(dist, id=dist) for dist in LAYERS])
def layer(session: nox.Session, dist: str) -> None:
    """One distribution alone, from its wheel: without the higher layers its own tests pass, the slow ones aside."""
    below = LAYERS[dist]
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "rich", "typer", silent=True)
    install_outside(session, (dist, *below), extras=False)
    install_wheels(session, dist, *below)
    session.run("python", "-I", "tests/layer_alone.py", dist, *below)
    install_outside(session, (dist, *below), *group("tests"))
    run_tests(session, f"packages/{dist}/tests", interpreted=dist == "ir-kernels-triton", slow=False)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format and the layer rule, and that the change notes make a changelog."""
    session.install("-c", EVERYDAY, *group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    version = (ROOT / "VERSION").read_text().strip()
    session.run("towncrier", "build", "--draft", "--version", version, silent=True)


@nox.session
def types(session: nox.Session) -> None:
    """Strict type check of the four distributions."""
    install_outside(session, tuple(LAYERS), *group("types"))
    session.run("mypy", *session.posargs)


def card(session: nox.Session) -> str:
    """The sm of the first visible NVIDIA GPU of this machine, or nothing."""
    code = (
        "import torch as t; print('sm%d%d' % t.cuda.get_device_capability() if t.cuda.is_available() else '')"
    )
    return str(session.run("python", "-c", code, silent=True) or "").strip()


def install_beside_vllm(session: nox.Session, version: str, *extra: str) -> None:
    """Install the four distributions beside the real vLLM of this version, and ``extra``."""
    install_editable(session, "vllm", *extra, constraints=VLLM_VERSIONS[version])
    # Built for CUDA: beside a CPU torch they break `import transformers`.
    unwanted = ("torchvision", "torchaudio", "torchcodec")
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", *unwanted)


@nox.session(default=False)
@nox.parametrize("target", [nox.param(target, id=target, tags=[target]) for target in TARGETS])
def gpu(session: nox.Session, target: str) -> None:
    """Compile every kernel for one GPU target, anywhere; run the GPU tests where there is such a card."""
    install_editable(session, *group("tests"))
    pytest(session, "packages/ir-kernels-triton/tests/test_static_proof.py", IR_PROOF_TARGET=target)
    present = card(session)
    if present == target:
        if not isinstance(session.virtualenv, nox.virtualenv.PassthroughEnv):
            session.install("-c", EVERYDAY, "--no-build-isolation", "./examples/liger_pack")
        pytest(session, "-m", "gpu", *GPU_TESTS, *session.posargs, require="gpu")
        return
    verdict = f"kernels compile for {target}, but were not run: this machine has {present or 'no NVIDIA GPU'}"
    if os.environ.get("IR_REQUIRE_TARGET") == target:
        session.error(f"{verdict}, and IR_REQUIRE_TARGET={target}")
    session.skip(verdict)


@nox.session(default=False)
def packs(session: nox.Session) -> None:
    """Third-party and broken packs, built to wheels and all installed at once beside ours.

    They are found, selected, lowered and verified here, and so is the pack that `ir-core new-pack` writes. That a pack
    is found in vLLM too is tested where vLLM is installed anyway, from the same kind of wheel: in the vllm session.
    """
    install_outside(session, tuple(LAYERS), *group("tests"), "hatchling")
    install_wheels(session, *LAYERS)
    folder = Path(session.create_tmp()).resolve() / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    made = folder.with_name("made-kernels")
    shutil.rmtree(made, ignore_errors=True)
    # A run before this one has installed it here.
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", made.name, silent=True)
    with session.chdir(made.parent):
        session.run("python", "-m", "ir_core", "new-pack", made.name)
    session.run("python", "tests/packs/build_packs.py", str(folder), str(made))
    built = sorted(str(wheel) for wheel in folder.glob("*.whl"))
    session.install("--no-deps", "--force-reinstall", *built)
    session.install("-c", EVERYDAY, *built)  # what an example wraps
    pytest(session, "-m", "packs", "tests/packs", *session.posargs, require="packs", TRITON_INTERPRET="1")
    for example in sorted(ROOT.glob("examples/*/tests")):
        pytest(session, str(example), *session.posargs, TRITON_INTERPRET="1")
    with session.chdir(made):  # by its own settings, as its author would
        pytest(session, *session.posargs, TRITON_INTERPRET="1")


@nox.session(default=False)
@nox.parametrize("version", [nox.param(version, id=version) for version in VLLM_VERSIONS])
def vllm(session: nox.Session, version: str) -> None:
    """The adapter inside the real vLLM of one version; 0.32.0 runs the engine itself, on the CPU.

    Last, the example pack is installed from its wheel, and must be found in this vLLM through the adapter.
    """
    install_beside_vllm(session, version, *group("tests"))
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "acme-kernels", silent=True)
    session.install("--no-deps", "--no-build-isolation", "-e", "packages/ir-vllm-adapter/tests/engine")
    selection = ("-m", "vllm and not gpu")
    pytest(session, *selection, "packages/ir-vllm-adapter/tests", *session.posargs, require="vllm")
    if session.posargs:
        return
    example = ROOT / "examples" / "third_party_pack"
    folder = Path(session.create_tmp()).resolve()
    session.run(
        *("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", str(folder), str(example)),
    )
    built = sorted(map(str, folder.glob("acme_kernels-*.whl")))
    if not built:  # with --install-only nothing is built
        return
    session.install("--no-index", "--no-deps", "--force-reinstall", *built)
    pytest(
        session,
        *selection,
        str(example / "tests" / "test_acme_in_vllm.py"),
        require="vllm",
        TRITON_INTERPRET="1",
    )


@nox.session(default=False)
@nox.parametrize("minor", [nox.param(minor, id=minor) for minor in TYPER_MINORS])
def typer(session: nox.Session, minor: str) -> None:
    """The command line with one minor version of typer, of those that ir-core[cli] allows."""
    install_editable(session, *group("tests"))
    session.install(f"typer=={minor}.*")
    pytest(
        session, "packages/ir-core/tests/test_cli_options.py", "packages/ir-core/tests/test_cli_commands.py"
    )


@nox.session(default=False)
def mutation(session: nox.Session) -> None:
    """Mutation testing: which small changes of the named modules does no test notice? Prints the score of each."""
    if not session.posargs:
        session.error(
            "name modules: nox -s mutation -- lock_file [--sample N --seed S]; see tests/mutation.py"
        )
    install_editable(session, *group("tests", "mutation"))
    session.run("python", "tests/mutation.py", *session.posargs)


@nox.session(default=False)
def minimums(session: nox.Session) -> None:
    """The tests with the lowest supported version of every dependency."""
    install_editable(session, *group("tests"), constraints=MINIMUMS)
    run_tests(session, "packages", "tests", interpreted=True)


@nox.session(default=False)
@nox.parametrize("script", [nox.param(script, id=script) for script in BENCHMARKS])
def bench(session: nox.Session, script: str) -> None:
    """One benchmark beside the vLLM it is compared with; the result goes to benchmarks/results."""
    version, needs_gpu = BENCHMARKS[script]
    install_beside_vllm(session, version, "matplotlib")
    if needs_gpu and not card(session):
        session.skip(f"{script} measures a GPU, and this machine has none")
    session.run("python", f"benchmarks/{script}.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, with warnings as errors."""
    install_editable(session, *group("docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Wheels and source distributions of all four, each wheel built from its sdist, checked by twine."""
    session.install("-c", EVERYDAY, *group("build"))
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    for dist in LAYERS:
        session.run("python", "-m", "build", "--outdir", "dist", f"packages/{dist}", silent=True)
    files = sorted(str(path) for path in (ROOT / "dist").iterdir())
    session.run("twine", "check", "--strict", *files)
    session.run("python", "tests/wheel_contents.py", *files)
