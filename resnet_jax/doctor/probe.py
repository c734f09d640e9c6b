"""A program of its own that prints, as JSON, the devices that JAX finds here, or why it finds none.

A backend that starts may hang, abort the process or lock its devices, which mustn't happen to a
program that only wants to know. Nothing of this package is imported, so it runs from anywhere.
"""

import json
import sys
from typing import Any


def describe_devices() -> dict[str, Any]:
    """Start JAX's default backend and describe its devices."""
    import jax  # noqa: PLC0415 - versions that don't match make the import itself fail

    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kinds": sorted({device.device_kind for device in devices}),
        "local": jax.local_device_count(),
        "total": jax.device_count(),
        "processes": jax.process_count(),
        "memory_bytes": _memory_bytes(jax.local_devices()[0]),
    }


def _memory_bytes(device: Any) -> int | None:
    """What XLA may allocate on the device; None if the backend doesn't tell."""
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # each backend has its own way to say that it doesn't know
        return None


if __name__ == "__main__":
    try:
        answer = describe_devices()
    except Exception as error:
        answer = {"error": str(error).strip() or type(error).__name__}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
