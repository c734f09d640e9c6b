"""Compiles convolution.cc, beside itself, with the machine's C++ compiler."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from resnet_jax.errors import ConfigError, WriteError

SOURCE = Path(__file__).with_name("convolution.cc")
LIBRARY = SOURCE.with_suffix(".so")


def build(library: Path = LIBRARY) -> Path:
    """Compile the library; returns its path.

    Needs a C++ compiler ($CXX, g++ or clang++) and oneDNN with its headers: Debian's libdnnl-dev,
    or PyPI's onednn and onednn-devel in this environment.

    Raises:
        ConfigError: one of them is missing.
        WriteError: the folder, by default the package's, can't be written.
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
            made.replace(library)
    except OSError as error:
        reason = error.strerror or error
        raise WriteError(f"{library.parent} can't be written ({reason}).") from None
    return library


def _has(program: str) -> bool:
    return shutil.which(program) is not None


def _explain(said: str) -> str:
    if "dnnl.hpp" in said or "-ldnnl" in said:
        return (
            "oneDNN isn't there: install Debian's libdnnl-dev, or `pip install onednn"
            " onednn-devel`."
        )
    errors = [line for line in said.splitlines() if "error" in line] or [said.strip()[-200:]]
    return f"The compiler failed: {errors[0]}"
