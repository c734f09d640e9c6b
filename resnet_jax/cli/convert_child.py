"""The process of `resnet-jax convert` that reads a pickle; no other code reads pickles.

    python convert_child.py JSON

JSON is an object with the fields of `Job`. The process writes the tensors to a safetensors file,
and one JSON object to standard output: {"error": …}, {"unwritable": …}, or {"torch", "taken",
"left_out"}. It has resource limits and imports nothing from this package; its parent trusts nothing
that it writes.
"""

import dataclasses
import json
import re
import sys
from typing import Any

SUPPORTED = (
    *("float64", "float32", "float16", "bfloat16", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs store a network's tensors beside other objects."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The parent's request."""

    source: str  # the pickle
    target: str  # the safetensors file to write
    key: str | None  # the key of the tensors; None: one of WRAPPERS, or the top level
    oldest: tuple[int, int]  # the oldest safe version of torch
    memory_bytes: int  # limit of the address space
    cpu_s: int
    tensor_bytes: int  # limit for all tensors together


class _RefusedError(Exception):
    """The file is refused. The message continues a sentence that begins with the file's name."""


def main(argument: str) -> None:
    """Read, check and write; print the answer on standard output."""
    fields = json.loads(argument)
    job = Job(**{**fields, "oldest": tuple(fields["oldest"])})
    _limit(job)
    try:
        answer = _convert(job)
    except _RefusedError as error:
        answer = {"error": str(error)}
    except Exception as error:
        if not _is_about_memory(error):
            raise
        answer = {"error": "needs more memory than there is for it, so it isn't plain weights."}
    print(json.dumps(answer))


def _limit(job: Job) -> None:
    import resource  # noqa: PLC0415 - not available on Windows

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(
        resource.RLIMIT_CPU, (job.cpu_s, job.cpu_s + 5)
    )  # SIGXCPU first, SIGKILL 5 s later
    resource.setrlimit(resource.RLIMIT_FSIZE, (job.tensor_bytes, job.tensor_bytes))
    if sys.platform == "linux":  # other systems don't enforce it
        resource.setrlimit(resource.RLIMIT_AS, (job.memory_bytes, job.memory_bytes))


def _convert(job: Job) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - after the limits
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    if torch.__version__ < job.oldest:  # torch compares it with tuples
        oldest = ".".join(map(str, job.oldest))
        raise _RefusedError(f"needs torch {oldest} to be read; {torch.__version__} isn't safe.")
    try:
        # An open file: torch would choose another reader by the file's name.
        with open(job.source, "rb") as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # of many types, depending on the file
        if _is_about_memory(error):
            raise
        raise _RefusedError(_reason(error)) from None
    taken, found = _find_tensors(loaded, job.key)
    total = 0
    for name, value in found.items():
        _check(name, value)
        total += value.numel() * value.element_size()
    if total > job.tensor_bytes:  # a small storage can have any number of elements
        raise _RefusedError(
            f"holds tensors of {total:,} bytes, more than weights have ({job.tensor_bytes:,})."
        )
    # safetensors requires that tensors don't share memory.
    plain = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in found.items()
    }
    try:
        save_file(plain, job.target)
    except (OSError, SafetensorError) as error:
        return {"unwritable": str(error)}
    left_out = sorted(str(key) for key in loaded if key != taken) if taken else []
    return {"torch": torch.__version__, "taken": taken, "left_out": left_out}


def _is_about_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _reason(error: Exception) -> str:
    """The reason why torch can't load a file, without torch's advice to load it unsafely."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+) (was not an allowed global|whose module)", text):
        return (
            f"refers to {found[1]}, and is more than tensors: reading it could run code. Ask for a"
            " file of the state_dict alone."
        )
    if "TorchScript" in text:
        return "is a TorchScript program, not only tensors. Ask for a file of the state_dict alone."
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    detail = lines[0] if lines else type(error).__name__
    if "Weights only load failed" in detail:  # the reason comes last, before a link
        others = [line for line in lines if "weights_only" not in line and "http" not in line]
        detail = others[-1] if others else "it isn't only tensors"
    return f"can't be loaded by torch ({detail[:160]}). Download or copy it again."


def _find_tensors(loaded: Any, key: str | None) -> tuple[str | None, dict[str, Any]]:
    """(The key of the tensors or None for the top level, the tensors)."""
    if not isinstance(loaded, dict):
        raise _RefusedError(f"holds a {type(loaded).__name__}, not tensors by name.")
    if key is None:
        # The most common key first. Other keys, such as for moving averages, need --key.
        key = next((name for name in WRAPPERS if isinstance(loaded.get(name), dict)), None)
    elif not isinstance(loaded.get(key), dict):
        have = ", ".join(sorted(str(k) for k, v in loaded.items() if isinstance(v, dict)))
        raise _RefusedError(f"has no tensors under {key!r}; there are: {have or 'no such keys'}.")
    if key is not None:
        return key, loaded[key]
    inner = sorted(str(k) for k, v in loaded.items() if isinstance(v, dict))
    if inner:
        raise _RefusedError(f"holds several things; choose one by --key: {', '.join(inner)}.")
    return None, loaded


def _check(name: Any, value: Any) -> None:
    """Refuse anything but a dense tensor under a string."""
    import torch  # noqa: PLC0415

    if not isinstance(name, str):
        raise _RefusedError(
            f"has the name {name!r} of type {type(name).__name__}; tensors have texts."
        )
    if not isinstance(value, torch.Tensor):
        raise _RefusedError(
            f"has a {type(value).__name__} under {name!r}, not a tensor. Ask for a file of the"
            " state_dict alone, or choose a part by --key."
        )
    kind = str(value.dtype).removeprefix("torch.")
    if value.layout != torch.strided or value.device.type != "cpu" or kind not in SUPPORTED:
        raise _RefusedError(
            f"has {name!r} of type {kind} ({value.layout}, {value.device}); what can be converted"
            " are dense floats, integers and booleans of at most 64 bits."
        )


if __name__ == "__main__":
    main(sys.argv[1])
