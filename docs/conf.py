# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration. The reference is made of docstrings, of ``ir_core.env`` and of the commands' own help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

project = "ir"
author = "The ir authors"
copyright = author
version = release = (Path(__file__).parents[1] / "VERSION").read_text().strip()

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"ir {version}"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
suppress_warnings = ["myst.xref_missing", "misc.highlighting_failure"]


class CommandHelp(SphinxDirective):
    """``{command-help} explain``: what ``ir-core explain --help`` prints."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        env = {**os.environ, "COLUMNS": "96", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "ir_core", *self.arguments, "--help"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise self.error(f"{' '.join(command)} failed: {done.stderr}")
        text = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        return [nodes.literal_block(text, text)]


def setup(app: Any) -> None:
    """Register the directive."""
    app.add_directive("command-help", CommandHelp)
