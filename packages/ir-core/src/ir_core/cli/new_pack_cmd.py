# SPDX-License-Identifier: Apache-2.0
"""``ir-core new-pack``: write a kernel pack that builds, installs and passes its tests as it stands."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated, Final

import typer

from ir_core.cli import options, output
from ir_core.errors import IrError

# File of the folder pack_template -> where it goes. The templates end in .txt, so that linters and builders do not
# take them for modules and a project of this repository.
FILES: Final = {
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "init.py.txt": "src/{module}/__init__.py",
    "pack.py.txt": "src/{module}/pack.py",
    "triton_rms_norm.py.txt": "src/{module}/triton_rms_norm.py",
    "torch_rms_norm.py.txt": "src/{module}/torch_rms_norm.py",
    "test_contract.py.txt": "tests/test_contract.py",
    "test_pack.py.txt": "tests/test_pack.py",
}


def new_pack(
    name: Annotated[
        str, typer.Argument(help="Name of the distribution, and of the new folder.", metavar="NAME")
    ],
    json: options.Json = False,
) -> None:
    """Write a kernel pack into the new folder NAME: rms_norm in Triton and in torch, with a contract test.

    It builds, installs and passes its tests as it stands; its README says how. Then put your kernels in their place.
    """
    module = module_name(name)
    folder = Path(name)
    written = write(folder, texts(name, module))
    if json:
        output.print_json({"folder": name, "module": module, "files": written})
        return
    for file in written:
        output.out().print(f"{name}/{file}", markup=False)
    output.note(f"Next: cd {name} && pip install -e '.[test]' && TRITON_INTERPRET=1 pytest")


def module_name(name: str) -> str:
    """The module of a distribution of that name.

    Raises:
        typer.BadParameter: the name cannot be a distribution's, or its module could not be imported.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", name):
        raise typer.BadParameter(
            f"{name!r} is no name for a distribution; write lower-case letters, digits and single hyphens, "
            "as in acme-kernels"
        )
    module = re.sub("[-.]", "_", name)
    if keyword.iskeyword(module):
        raise typer.BadParameter(f"{name!r} is a keyword of Python, so nothing can import it; add a word")
    found = importlib.util.find_spec(module)
    if found is not None and found.origin is not None:  # without an origin it is just a folder
        raise typer.BadParameter(
            f"{name!r} would bring the module {module}, and this environment has one of that name "
            f"({found.origin}); choose another name"
        )
    return module


def texts(name: str, module: str) -> dict[str, str]:
    """The files of the pack: path inside its folder, and text."""
    from ir_core.pack import PACK_API
    from ir_core.version import __version__

    words = {
        "name": name,
        "module": module,
        "stem": module.removesuffix("_kernels"),
        "api": PACK_API,
        "core": __version__.partition("+")[0],
    }
    templates = resources.files("ir_core.cli") / "pack_template"
    return {
        path.format(module=module): Template((templates / template).read_text("utf-8")).substitute(words)
        for template, path in FILES.items()
    }


def write(folder: Path, files: dict[str, str]) -> list[str]:
    """Write the files into a new folder; return their paths inside it.

    Raises:
        IrError: there is such a folder or file, or it cannot be written (then also an ``OSError``).
    """
    if folder.exists() or folder.is_symlink():
        raise IrError(
            f"{folder} exists already.",
            why="A new pack goes into a new folder, so that nothing is overwritten.",
            fix="Choose another name or another place, or remove it.",
        )
    with output.writing(folder):
        folder.mkdir()
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
    return list(files)
