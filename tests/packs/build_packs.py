# SPDX-License-Identifier: Apache-2.0
"""Build a wheel of every broken pack, every example and the projects named: `build_packs.py <folder> [project ...]`.

Takes the hatchling that is installed: thirteen isolated builds would be thirteen downloads of it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "ir-broken-{name}"
version = "1.0"
description = "A kernel pack that is broken on purpose"

[project.entry-points."ir_core.kernels"]
{name} = "{module}:{attribute}"

[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]
"""


def write_project(pack: dict[str, str], folder: Path) -> None:
    """Write the project of one entry of broken.toml into ``folder``."""
    module = f"ir_broken_{pack['name'].replace('-', '_')}"
    attribute = pack.get("entry_point", "PACK")
    (folder / "pyproject.toml").write_text(
        PYPROJECT.format(name=pack["name"], module=module, attribute=attribute)
    )
    (folder / f"{module}.py").write_text(pack["module"].lstrip())


def build_wheel(project: Path, out: Path) -> None:
    """Build the project's wheel into ``out``."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{project.name} does not build:\n{done.stdout}{done.stderr}")


def main(folder: str, *projects: str) -> None:
    """Build everything into ``folder``, also these projects."""
    out = Path(folder).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for pack in tomllib.loads((HERE / "broken.toml").read_text())["pack"]:
            project = Path(work) / pack["name"]
            project.mkdir()
            write_project(pack, project)
            build_wheel(project, out)
    examples = [pyproject.parent for pyproject in sorted(EXAMPLES.glob("*/pyproject.toml"))]
    for project in (*examples, *map(Path, projects)):
        build_wheel(project, out)
    print(f"{len(list(out.glob('*.whl')))} wheels in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
