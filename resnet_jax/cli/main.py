"""resnet-jax SUBCOMMAND: commands for models, weights, data and runs."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console

from resnet_jax import __version__
from resnet_jax.cli import (
    bench,
    build,
    compare,
    convert,
    doctor,
    evaluate,
    export,
    list_models,
    mlperf,
    plan,
    predict,
    prepare,
    reproduce,
    status,
    summary,
    sweep,
    verify,
)
from resnet_jax.cli import compile as compile_
from resnet_jax.cli import report as report_
from resnet_jax.cli.common.config_flag import take_overrides
from resnet_jax.cli.common.exits import outlive_terminal, report, show_progress, unwritten_output
from resnet_jax.errors import UsageError
from resnet_jax.utils.compilation_cache import enable_compilation_cache
from resnet_jax.utils.malloc import configure_malloc
from resnet_jax.utils.streams import escaped

_SUBCOMMANDS = {
    "list": list_models,
    "summary": summary,
    "eval": evaluate,
    "predict": predict,
    "doctor": doctor,
    "bench": bench,
    "build": build,
    "compile": compile_,
    "convert": convert,
    "export": export,
    "mlperf": mlperf,
    "plan": plan,
    "prepare": prepare,
    "reproduce": reproduce,
    "sweep": sweep,
    "compare": compare,
    "report": report_,
    "status": status,
    "verify": verify,
}


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, with exit code 64."""

    def error(self, message: str) -> NoReturn:
        sys.exit(report(UsageError(f"{message} ({self.prog} --help explains)")))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code.

    The module of a subcommand has `HELP`, `EXAMPLE`, `add_arguments(parser)`, `run(args)`, which
    returns one JSON-like document, and `show(document, console)`, which prints the document for
    people. The document of a failure has the "exit_code" of the process.
    """
    outlive_terminal()
    parser = _Parser(prog="resnet-jax", description=__doc__)
    parser.add_argument("--version", action="version", version=f"resnet_jax {__version__}")
    subparsers = parser.add_subparsers(dest="subcommand", required=True, parser_class=_Parser)
    for name, module in _SUBCOMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=module.HELP, description=module.HELP, epilog=f"example: {module.EXAMPLE}"
        )
        module.add_arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print one JSON document")
    try:
        args, unknown = parser.parse_known_args(argv)
    except SystemExit as end:  # after --help, --version or an error
        sys.exit(end.code or unwritten_output())
    if unknown := take_overrides(args, unknown):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    show_progress()
    configure_malloc(decoded_as_needed=True)
    enable_compilation_cache()
    module = _SUBCOMMANDS[args.subcommand]
    try:
        document = module.run(args)
        if args.json:
            print(json.dumps(document, indent=2, allow_nan=False))
        else:
            module.show(escaped(document), Console(highlight=False, soft_wrap=True))
    except (Exception, KeyboardInterrupt) as error:
        code = report(error)
        if code is None:
            raise
        return code
    unwritten = unwritten_output()
    return int(document.get("exit_code", 0)) or unwritten
