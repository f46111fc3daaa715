# SPDX-License-Identifier: Apache-2.0
"""``python -m ir_vllm_adapter``: what would run in the vLLM of this environment, and what is known of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from ir_vllm_adapter import compat, hooks, layer_seam, log, plugin, status
from ir_vllm_adapter.errors import AdapterError

FINDING = 1
"""The exit status of a command that found what it looks for."""
WRONG = 2
"""The exit status of a command that could not do its work: bad arguments, no such model, no vLLM."""


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        0: done, and nothing found. 1: something is refuted, or differs. 2: it could not be done, which stderr explains.
    """
    options = _parser().parse_args(argv)
    try:
        # vLLM's log handler takes the stdout of the moment it is set up; stdout is for the data.
        with contextlib.redirect_stdout(sys.stderr):
            text, code = options.run(options)
    except AdapterError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG
    sys.stdout.write(text + "\n")
    return int(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ir_vllm_adapter", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("status", help="what runs, through which seam, and what is known of it")
    one.add_argument(
        "model",
        nargs="?",
        type=Path,
        help="a model's folder: starts an engine with few of its layers and lists its parts",
    )
    _engine_options(one)
    one.set_defaults(run=_status)
    two = commands.add_parser(
        "verify", help="try to refute vLLM's own kernels for a model, and keep certificates"
    )
    two.add_argument("model", type=Path, help="the model's folder; config.json is enough")
    two.add_argument(
        "--budget", type=float, default=300.0, metavar="SECONDS", help="for the cases of one engine"
    )
    two.add_argument(
        "--tokens", type=int, default=0, metavar="N", help="length of the sequences that are generated"
    )
    two.add_argument(
        "--own-budget",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="for each implementation of ir-core; 0: none",
    )
    two.add_argument("--no-save", action="store_true", help="write no certificates")
    two.add_argument(
        "--require",
        choices=["certified"],
        help="exit with 1 when anything is not certified or exempt by construction",
    )
    two.add_argument("--passes", action="store_true", help="only whole passes of the configuration as it is")
    _engine_options(two)
    two.set_defaults(run=_verify)
    three = commands.add_parser(
        "audit", help="prompts alone and together: the first layer, module and operation to differ"
    )
    three.add_argument("model", type=Path, help="the model's folder; without weights in it, weights are made")
    three.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSON: a list of lists of token ids; default: made ones"
    )
    three.add_argument("--new", type=int, default=4, metavar="N", help="how many tokens to generate")
    three.add_argument("--few-layers", action="store_true", help="load few layers, with made weights")
    three.add_argument("--load-format", default="", help="as vLLM's; dummy: weights are made")
    _engine_options(three)
    three.set_defaults(run=_audit)
    return parser


def _engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the same facts as JSON")
    parser.add_argument(
        "-e",
        "--engine",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="an argument of vllm.LLM, its value as JSON or else as text: -e dtype=bfloat16 -e block_size=32",
    )


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _status(options: argparse.Namespace) -> tuple[str, int]:
    if options.model is None:
        data = _facts()
    else:
        from ir_vllm_adapter.probing import engine

        with engine.start(engine.Wanted(options.model, dict(options.engine))):
            data = status.collect()
    return (json.dumps(data, indent=2, default=str) if options.json else status.render(data)), 0


def _verify(options: argparse.Namespace) -> tuple[str, int]:
    from ir_vllm_adapter.probing import engine, verify

    wanted = verify.Wanted(
        engine.Wanted(options.model, dict(options.engine)),
        budget=options.budget,
        tokens=options.tokens,
        own_budget=options.own_budget,
        save=not options.no_save,
        passes=options.passes,
    )
    report = verify.verify(wanted, _say)
    text = json.dumps(report.to_dict(), indent=2, default=str) if options.json else verify.render(report)
    return text, FINDING if report.refuted or (options.require and report.unanswered) else 0


def _audit(options: argparse.Namespace) -> tuple[str, int]:
    from ir_vllm_adapter.probing import audit, engine

    wanted = audit.Wanted(
        engine.Wanted(
            options.model,
            dict(options.engine),
            all_layers=not options.few_layers,
            load_format=options.load_format,
        ),
        prompts=() if options.prompts is None else _prompts(options.prompts),
        new=options.new,
    )
    report = audit.audit(wanted, _say)
    text = json.dumps(report.to_dict(), indent=2, default=str) if options.json else audit.render(report)
    return text, FINDING if report.varies else 0


def _prompts(path: Path) -> tuple[tuple[int, ...], ...]:
    try:
        found = json.loads(path.read_text("utf-8"))
        if not found or not all(isinstance(token, int) for prompt in found for token in prompt):
            raise ValueError("it holds no token ids")
        return tuple(tuple(prompt) for prompt in found)
    except (OSError, ValueError, TypeError) as error:
        raise AdapterError(
            f"{path} cannot be read as prompts: {error}.",
            why="Prompts are token ids, so that no tokenizer has to be at hand.",
            fix="Write a JSON list of lists of integers: [[1, 2, 3], [4, 5]].",
        ) from error


def _say(text: str) -> None:
    sys.stderr.write(f"  {text}\n")


def _facts() -> dict[str, Any]:
    """Attach to the vLLM of this environment as its front end and a worker would, and look."""
    if compat.host().supported:
        plugin.register()
        hooks.attach_all()
        log.guarded("take over the norm layers", layer_seam.install)
    return status.collect()


if __name__ == "__main__":
    sys.exit(main())
