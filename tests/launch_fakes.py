"""Fakes of the commands that the scripts of launch/ call."""

import shlex
import time

LOG_CALL = "printf '%q ' {name} \"$@\" >> {log}; echo >> {log}"
"""Bash that appends a call to a log, for `called`: format it with `name` and `log`."""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def called(log):
    """The calls that a fake has logged with `log_call`, as lists of words."""
    return [shlex.split(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(path):
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.1)
    raise TimeoutError(path)
