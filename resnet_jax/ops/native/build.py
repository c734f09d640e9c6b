"""Compiles convolution.cc with the machine's C++ compiler, and checks the library."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from resnet_jax.errors import ConfigError, WriteError
from resnet_jax.ops.native.library import (
    CHOICE,
    LIBRARY,
    SOURCE,
    circumstances,
    log_of,
    record_of,
)

_CHECK_S, _LONGEST_CHECK_S = 15.0, 300


def build(library: Path = LIBRARY, *, check_s: float = _CHECK_S) -> dict[str, Any]:
    """Compile the library and check it; only a library that passes is kept.

    Needs a C++ compiler ($CXX, g++ or clang++) and oneDNN with its headers: PyPI's
    onednn-devel-cpu-gomp in this environment (the extra "cpu"), or Debian's libdnnl-dev.

    Args:
        library: path of the library.
        check_s: seconds of the check on random problems.

    Returns:
        The result of `resnet_jax.ops.native.check.check`.

    Raises:
        ConfigError: the compiler or oneDNN is missing, or oneDNN computes wrongly or crashes here.
        WriteError: the library's folder, by default the package's, can't be written.
    """
    import jaxlib  # noqa: PLC0415 - for its headers only

    compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and _has(c)), None)
    if compiler is None:
        raise ConfigError("There is no C++ compiler: install g++, or set CXX.")
    headers = Path(jaxlib.__file__).parent / "include"
    prefix = Path(sys.prefix)
    try:
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            command = [compiler, "-O2", "-std=c++17", "-fPIC", "-shared", str(SOURCE)]
            command += ["-isystem", str(headers), f"-I{prefix}/include", f"-L{prefix}/lib"]
            command += [f"-Wl,-rpath,{prefix}/lib", "-ldnnl", "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ConfigError(_explain(done.stderr))
            try:
                result = certify(made, check_s=check_s)
            except ConfigError:  # a library that passed an earlier check isn't used either
                for file in (record_of(library), library):
                    file.unlink(missing_ok=True)
                raise
            # Between the two lines the record doesn't fit, and the library isn't used.
            made.replace(library)
            record_of(made).replace(record_of(library))
    except OSError as error:
        reason = error.strerror or error
        raise WriteError(f"{library.parent} can't be written ({reason}).") from None
    return result


def build_in_background(library: Path = LIBRARY) -> bool:
    """Start `build` in a process of its own, at the lowest priority, once for an installation.

    The process writes what it says to `log_of(library)`; `resnet-jax doctor` shows the last line.

    Returns:
        Whether a process was started: there is neither a library nor such a file, and the
        environment variable RESNET_JAX_NATIVE isn't set.

    Raises:
        WriteError: the library's folder can't be written.
    """
    if library.exists() or CHOICE in os.environ:
        return False
    command = [sys.executable, "-m", "resnet_jax", "build"]
    try:
        with log_of(library).open("x", encoding="utf-8") as log:
            subprocess.Popen(
                ["nice", "-n", "19", *command] if _has("nice") else command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except FileExistsError:
        return False
    except OSError as error:
        reason = error.strerror or error
        raise WriteError(f"{library.parent} can't be written ({reason}).") from None
    return True


def _has(program: str) -> bool:
    return shutil.which(program) is not None


def _explain(said: str) -> str:
    if "dnnl.hpp" in said or "-ldnnl" in said:
        return (
            "oneDNN isn't there: `pip install onednn-devel-cpu-gomp` in this environment, or"
            " install Debian's libdnnl-dev."
        )
    errors = [line for line in said.splitlines() if "error" in line] or [said.strip()[-200:]]
    return f"The compiler failed: {errors[0]}"


def certify(library: Path, *, check_s: float = _CHECK_S) -> dict[str, Any]:
    """Check a library in another process, which oneDNN may crash, and record that it passed.

    Raises:
        ConfigError: oneDNN computes wrongly, or crashes.
        OSError: the record can't be written.
    """
    result = _checked(library, check_s)
    record = json.dumps(circumstances(library, result["oneDNN"]), indent=2)
    record_of(library).write_text(record + "\n", encoding="utf-8")
    return result


def _checked(library: Path, check_s: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "resnet_jax.ops.native.check", str(library), str(check_s)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST_CHECK_S,
        )
    except subprocess.TimeoutExpired:
        raise _unusable(f"its check didn't end within {_LONGEST_CHECK_S} s") from None
    if done.returncode < 0:
        raise _unusable(f"its check was ended by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its check ended with {done.returncode}"]
        raise _unusable(said[-1])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if result["wrong"]:
        raise _unusable(
            f"of {result['checked']} problems {len(result['wrong'])} were wrong with oneDNN"
            f" {result['oneDNN']}, among them {result['wrong'][0]}"
        )
    if not result["checked"]:
        raise _unusable(f"oneDNN {result['oneDNN']} has no kernel for any convolution")
    return result


def _unusable(reason: str) -> ConfigError:
    return ConfigError(
        f"oneDNN was compiled, but can't be used here: {reason}. XLA's convolutions are used."
        " Try another oneDNN: PyPI's onednn-devel-cpu-gomp, or Debian's libdnnl-dev."
    )
