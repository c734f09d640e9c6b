"""Export of a network for LiteRT, formerly TensorFlow Lite: a file for phones and small devices.

LiteRT's converter (the package litert-converter, which needs no TensorFlow) translates the
StableHLO of `export_program`.
"""

import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from resnet_jax.errors import ConfigError
from resnet_jax.inference.export import describe_program, export_program, write_described
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.surgery import unstack_units
from resnet_jax.utils.distribution import install_hint


def tflite_program(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    *,
    normalization: Mapping[str, Any] | None = None,
    batch_size: int = 1,
) -> jax.export.Exported:
    """Lower the inference of a network to a program that LiteRT's converter can convert.

    The blocks of a network with `scan=True` are unrolled. The program is a TPU's, which has XLA's
    own convolutions; a CPU's has other formulations of them.

    Args:
        model, variables, image_shape, normalization: as in `export_program`.
        batch_size: the batch size of the file.

    Raises:
        ConfigError: as `export_program`.
    """
    if isinstance(model, ResNet) and model.scan:
        model, variables = model.copy(scan=False), unstack_units(variables)
    return export_program(
        model,
        variables,
        image_shape,
        normalization=normalization,
        batch_size=batch_size,
        platforms=["tpu"],
    )


def convert_to_tflite(program: jax.export.Exported) -> bytes:
    """Convert a program to a TFLite file with the signature "serving_default".

    The input "images" and the output "logits" are those of the program, and the logits are equal up
    to rounding.

    Args:
        program: from `tflite_program`.

    Raises:
        ConfigError: the extra [tflite] isn't installed, or the converter has no counterpart for
            an operation; the message names the operation.
    """
    try:
        from litert_converter import converter_api_ext  # noqa: PLC0415 - an extra
        from litert_converter.mlir import ir, passmanager  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "TFLite is written with the package litert-converter, the extra [tflite]:"
            f" {install_hint('tflite')}."
        ) from None
    context = ir.Context()
    converter_api_ext.prepare_mlir_context(context)
    with context, ir.Location.unknown():
        module = ir.Module.parse(program.mlir_module())
        (main,) = (op for op in module.body.operations if op.attributes["sym_name"].value == "main")
        converter_api_ext.set_signature(main, "serving_default", ["images"], ["logits"])
        try:
            converter_api_ext.run_convert_to_tfl_passes(
                module, passmanager.PassManager(), converter_api_ext.ConvertToTFLConfig()
            )
            return bytes(converter_api_ext.export_flatbuffer_to_bytes(module.operation))
        except (RuntimeError, ValueError) as error:
            reason = _explain(str(error), module.operation.get_asm(large_elements_limit=16))
            raise ConfigError(
                f"LiteRT's converter can't convert the network: {reason}."
                " Export StableHLO, which has every operation."
            ) from error


def _explain(error: str, module_text: str) -> str:
    """Name the operations that an error is about, or else give the first line of the error."""
    if refused := re.search(r"failed to legalize operation '([\w.]+)'", error):
        return f"it has no counterpart for {refused[1]}"
    left = re.findall(r' = "?(?:stable|v)hlo\.(\w+?)(?:_v\d+)?"?[ (]', module_text)
    if left:
        return f"it has no counterpart for {', '.join(sorted({*left}))}"
    return (error.strip().splitlines() or ["it says no reason"])[0].rstrip(" .:")


def write_tflite(
    path: str | os.PathLike[str],
    program: jax.export.Exported,
    *,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a file that LiteRT reads, and its description to `path` + ".json".

    Args:
        path: a file on this machine; an existing file is replaced atomically.
        program: from `tflite_program`.
        notes: more entries of the description, such as "class_names"; JSON-like.

    Returns:
        The description, which has the file's SHA-256.

    Raises:
        ConfigError: as `convert_to_tflite`.
        WriteError: a file can't be written; an existing file is intact.
    """
    data = convert_to_tflite(program)
    interface = describe_program(program)
    versions = interface["versions"] | {"litert-converter": version("litert-converter")}
    description = {"images": interface["images"], "logits": interface["logits"]}
    return write_described(Path(path), data, {**(notes or {}), **description, "versions": versions})
