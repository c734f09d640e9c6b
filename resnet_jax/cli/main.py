"""resnet-jax SUBCOMMAND: commands for models, weights, data and runs."""

import argparse
import json
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from resnet_jax import __version__
from resnet_jax.cli import (
    bench,
    build,
    compare,
    completion,
    convert,
    doctor,
    evaluate,
    export,
    mlperf,
    plan,
    predict,
    prepare,
    push,
    reproduce,
    status,
    summary,
    sweep,
    verify,
)
from resnet_jax.cli import compile as compile_
from resnet_jax.cli import list as list_
from resnet_jax.cli import report as report_
from resnet_jax.cli.common.config_flag import take_overrides
from resnet_jax.cli.common.exits import outlive_terminal, report, show_progress, unwritten_output
from resnet_jax.errors import UsageError, did_you_mean
from resnet_jax.utils.compilation_cache import enable_compilation_cache
from resnet_jax.utils.console import plain_console
from resnet_jax.utils.malloc import configure_malloc
from resnet_jax.utils.streams import escaped

_GROUPS: dict[str, dict[str, ModuleType]] = {
    "models and weights": {
        "list": list_,
        "summary": summary,
        "predict": predict,
        "eval": evaluate,
        "convert": convert,
        "export": export,
        "push": push,
    },
    "data": {
        "prepare": prepare,
    },
    "runs": {
        "status": status,
        "verify": verify,
        "mlperf": mlperf,
    },
    "research": {
        "reproduce": reproduce,
        "sweep": sweep,
        "compare": compare,
        "report": report_,
    },
    "machines": {
        "doctor": doctor,
        "bench": bench,
        "build": build,
        "compile": compile_,
        "plan": plan,
    },
    "shell": {
        "completion": completion,
    },
}
_SUBCOMMANDS = {name: module for group in _GROUPS.values() for name, module in group.items()}

_EPILOG = """\
to train a network:
  python train.py --config=configs/digits.py --workdir=runs/one  (in a checkout)
  resnet_jax.fit(config, workdir)                                (from Python)

exit codes:
   0 done, results are on disk      71 a process is lost or hangs
   1 a bug of this package          73 a file or the output can't be written
  64 wrong command line             75 stopped early, but saved: start it again
  65 bad data                       78 bad config, or not the run's
  70 numbers aren't finite, or a   130 interrupted
     callback failed

resnet-jax SUBCOMMAND --help shows a subcommand's arguments and an example."""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, with exit code 64."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = did_you_mean(wrong[1], re.findall(r"[\w.-]+", wrong[2])) if wrong else ""
        sys.exit(report(UsageError(f"{message}{hint} ({self.prog} --help explains)")))


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="resnet-jax",
        usage="resnet-jax [-h] [--version] SUBCOMMAND ...",
        description=f"Commands for models, weights, data and runs.\n\n{_list_commands()}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"resnet_jax {__version__}")
    subparsers = parser.add_subparsers(
        dest="subcommand",
        metavar="SUBCOMMAND",
        required=True,
        prog="resnet-jax",
        parser_class=_Parser,
        help=argparse.SUPPRESS,  # the description has all of them, by task
    )
    for name, module in _SUBCOMMANDS.items():
        subparser = subparsers.add_parser(
            name, description=module.HELP, epilog=f"example: {module.EXAMPLE}"
        )
        module.add_arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def describe_commands() -> dict[str, str]:
    """What `--help` prints, for `resnet-jax` and each `resnet-jax SUBCOMMAND`."""
    parser = _make_parser()
    (subparsers,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    commands = {f"resnet-jax {name}": sub for name, sub in subparsers.choices.items()}
    return {
        name: command.format_help() for name, command in {"resnet-jax": parser, **commands}.items()
    }


def _list_commands() -> str:
    """The subcommands by task, each with its line of help."""
    lines = []
    for title, group in _GROUPS.items():
        lines.append(f"{title}:")
        for name, module in group.items():
            first = f"  {name:<12}"
            lines += textwrap.wrap(
                module.HELP, width=80, initial_indent=first, subsequent_indent=" " * len(first)
            )
        lines.append("")
    return "\n".join(lines[:-1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code.

    The module of a subcommand has `HELP`, `EXAMPLE`, `add_arguments(parser)`, `run(args)`, which
    returns one JSON-like document, and `show(document, console)`, which prints the document for
    people. The document of a failure has the "exit_code" of the process.
    """
    parser = _make_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what a word can be; the process ends here
        completion.complete(parser)
    outlive_terminal()
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
            module.show(escaped(document), plain_console())
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        code = report(error)
        if code is None:
            raise
        return code
    unwritten = unwritten_output()
    return int(document.get("exit_code", 0)) or unwritten
