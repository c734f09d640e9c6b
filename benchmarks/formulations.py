"""Programs in which a form that GPUs have of their own is left out or replaced by another one.

The package has no option for it: the forms are chosen where `jax.lax.platform_dependent` stands
(resnet_jax/ops), and `variant` puts another choice in place while a program is traced. Here, too,
JAX is imported only then, after the environment of a compiler was prepared.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

Form = Callable[..., Any]

# (file of resnet_jax/ops that chooses, its operands, forms by platform) → the form for GPUs; with
# None it is that of other platforms.
_Choice = Callable[[str, tuple[Any, ...], dict[str, Form]], Form | None]


def _others_in(*files: str) -> _Choice:
    return lambda file, _, forms: None if file in files else forms.get("cuda")


def _no_barrier(_: str, __: tuple[Any, ...], forms: dict[str, Form]) -> Form | None:
    from jax import lax  # noqa: PLC0415

    return None if forms.get("cuda") is lax.optimization_barrier else forms.get("cuda")


def _wide_products(file: str, operands: tuple[Any, ...], forms: dict[str, Form]) -> Form | None:
    if file == "batch_norm":
        channels, features = operands[1].shape
        if features < 4 * channels:
            return None
    return forms.get("cuda")


def _as_on_tpus(file: str, _: tuple[Any, ...], forms: dict[str, Form]) -> Form | None:
    return forms["tpu"] if file == "batch_norm" else forms.get("cuda")


# By name: how a program for GPUs differs from the package's, and what is chosen for it. Σ x·dy is
# no choice of a platform; `variant` replaces it.
VARIANTS: dict[str, tuple[str, _Choice]] = {
    "no_forms": (
        "none of the changes for GPUs",
        _others_in("activation", "batch_norm", "pooling"),
    ),
    "without_relu": ("ReLU is differentiated by its argument", _others_in("activation")),
    "without_barrier": ("no barrier after the ReLU", _no_barrier),
    "without_convolution": (
        "convolutions that widen are normalised afterwards",
        _others_in("batch_norm"),
    ),
    "wide_convolutions": (
        "convolutions to less than four times the channels are normalised afterwards",
        _wide_products,
    ),
    "without_places": ("XLA's gradient of the stem's pooling", _others_in("pooling")),
    "as_on_tpus": ("convolutions are normalised in the TPU's form", _as_on_tpus),
    "rounded_sums": ("Σ x·dy is rounded to bfloat16", _others_in()),
}


@contextlib.contextmanager
def variant(name: str) -> Iterator[None]:
    """Trace programs for GPUs as this variant."""
    from jax import lax  # noqa: PLC0415

    from resnet_jax.ops import projection_gpu  # noqa: PLC0415

    choose, (_, choice) = lax.platform_dependent, VARIANTS[name]

    def other_choice(*operands: Any, **forms: Form) -> Any:
        file = forms["default"].__module__.rpartition(".")[2]
        chosen = {platform: form for platform, form in forms.items() if platform != "cuda"}
        if form := choice(file, operands, forms):
            chosen["cuda"] = form
        return choose(*operands, **chosen)

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(lax, "platform_dependent", other_choice))
        if name == "rounded_sums":
            sums = _rounded(projection_gpu._sums)
            patches.enter_context(mock.patch.object(projection_gpu, "_sums", sums))
        yield


def _rounded(exact_sums: Form) -> Form:
    """Σ x·dy as the gradient of a convolution's kernel, which has the type of `x`."""
    import jax  # noqa: PLC0415

    from resnet_jax.ops.conv import conv2d  # noqa: PLC0415

    def sums(x: Any, y: Any, groups: int, precision: Any = None) -> Any:
        if x is y or groups > 1:
            return exact_sums(x, y, groups, precision)
        kernel = jax.ShapeDtypeStruct((1, 1, x.shape[-1], y.shape[-1]), x.dtype)
        pull = jax.linear_transpose(lambda k: conv2d(x, k, padding=((0, 0), (0, 0))), kernel)
        return pull(y)[0][0].astype("float32")

    return sums
