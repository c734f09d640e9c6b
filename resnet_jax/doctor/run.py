"""What one run needs: its data, its directory, and a cache of compiled programs."""

# ruff: noqa: PLC0415 - TFDS and scikit-learn take seconds, and only data need them

import functools
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from etils import epath
from ml_collections import ConfigDict

from resnet_jax.checkpoint import workdir as of_workdir
from resnet_jax.checkpoint.lock import holder_of
from resnet_jax.checkpoint.workdir import CHECKPOINTS, CONFIG, prepare_workdir
from resnet_jax.data.dataset_info import FROM_PYTHON
from resnet_jax.data.datasets import open_source
from resnet_jax.data.splits import parse_split
from resnet_jax.doctor.finding import Finding, diagnose, fail, ok, warn
from resnet_jax.doctor.host import nearest_existing
from resnet_jax.errors import ConfigError, DataError, WriteError
from resnet_jax.utils.paths import is_remote

if TYPE_CHECKING:
    from resnet_jax.data.images.preprocessing import ScaleAndCrop

_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "9p", "fuse.")
_MOST_SHOWN = 6
_ANY_SIZE = 224  # pixels, to which photographs are cropped where no config says


def check_config(
    load: Callable[[], ConfigDict], *, workdir: Path | None, data_dir: str | None
) -> Iterator[Finding]:
    """Whether a config is valid, its data are there, and the run in `workdir` has the same one.

    Args:
        load: makes the config, or raises what is wrong with it.
        workdir: of the run, if it is known.
        data_dir: folder of prepared sets; None for the config's.

    Raises:
        ConfigError: an invalid config, or not the one that `workdir` is bound to.
        DataError: the file of `init_from`, which names the network, can't be read.
    """
    from resnet_jax.config.io import describe_differences, to_json
    from resnet_jax.config.schema import validate
    from resnet_jax.train.data_sizes import evaluation_crop
    from resnet_jax.train.pretrained import name_model

    config = load()
    validate(config)
    config = name_model(config, workdir or Path())
    yield ok(
        "config",
        f"{config.model.name} on {config.data.name}, {config.duration:g} {config.duration_unit}"
        f" in batches of {config.batch_size}",
    )
    roles = ("train", "validation", "test")
    splits = {role: config.data[role] for role in roles if config.data[role]}
    data = functools.partial(
        check_data,
        config.data.name,
        data_dir=data_dir or config.data.dir,
        crop=evaluation_crop(config),
        splits=splits,
    )
    yield from diagnose({"data": data})
    if workdir:
        of_workdir.check_config(workdir, to_json(config), describe_differences)


def check_data(
    name: str,
    *,
    data_dir: str | None = None,
    crop: "ScaleAndCrop | None" = None,
    splits: Mapping[str, str] | None = None,
    label: str = "data",
) -> Iterator[Finding]:
    """Whether the data set is there and whole as far as can be told without decoding it.

    Args:
        name: of the data set.
        data_dir: folder of prepared sets; None for the default.
        crop: how images get one size; None for those that have it.
        splits: role → split expression, as in a config; None if no config is known.
        label: name of the finding.

    Raises:
        ConfigError: an unknown data set or split.
        DataError: data that are missing or damaged.
    """
    to_come = None if name in ("digits", "folder", FROM_PYTHON) else _to_come(name, data_dir)
    if to_come:
        yield to_come
        return
    sized = "images of"
    try:
        source = open_source(name, data_dir, crop=crop)
    except ConfigError:
        if splits is not None:
            raise
        from resnet_jax.data.images.preprocessing import ScaleAndCrop

        # Without a config photographs have no common size yet.
        source = open_source(name, data_dir, crop=ScaleAndCrop.square(_ANY_SIZE, resize=_ANY_SIZE))
        sized = "images of different sizes, cropped to"
    if splits is None:
        sizes = dict(source.lengths)
    else:
        spans = {role: parse_split(spec, source.lengths, name) for role, spec in splits.items()}
        sizes = {
            f"{role} ({splits[role]})": sum(span.stop - span.start for span in parts)
            for role, parts in spans.items()
        }
    mebibytes = sum(source.lengths.values()) * math.prod(source.image_shape) / 2**20
    yield ok(
        label,
        f"{name}: {', '.join(f'{split} {size:,}' for split, size in sizes.items())} {sized}"
        f" {'×'.join(map(str, source.image_shape))}, {len(source.class_names)} classes;"
        f" decoded, the whole set takes {mebibytes:,.1f} MiB",
    )


def _to_come(name: str, data_dir: str | None) -> Finding | None:
    """The finding about a set of TFDS that the first run copies or prepares; None for others."""
    from resnet_jax.data.prepare.cifar_archive import official_archive
    from resnet_jax.data.readers.tfds import find_prepared
    from resnet_jax.data.readers.tfds_files import data_folder, local_data_folder

    folder = data_folder(data_dir)
    if data_dir and not is_remote(folder):
        local_data_folder(name, data_dir)  # raises if it doesn't exist
    if is_remote(folder):
        folder /= name.partition(":")[0].partition("/")[0]
        if folder.is_dir():
            return ok("data", f"{folder} is there; the first run copies it to this host")
        return fail(
            "data", f"there is no {folder}", "prepare it and copy it there", error=DataError
        )
    if name not in ("cifar10", "cifar100") or find_prepared(name, Path(folder)):
        return None
    archive = official_archive(name)
    path = folder / "downloads" / "manual" / archive.file_name
    if path.exists():
        return ok("data", f"{name} will be prepared in {folder} by the first run, from {path}")
    return warn(
        "data",
        f"{name} isn't prepared in {folder}",
        f"the first run downloads {archive.url} ({archive.size // 10**6} MB) and prepares it;"
        f" without a network, put that file at {path}",
    )


def check_workdir(
    workdir: epath.Path, *, several: str, proc: Path = Path("/proc")
) -> Iterator[Finding]:
    """Whether a run can write to `workdir`, what it holds, and who else writes or sees it.

    Args:
        workdir: of a run that is to begin or to go on, on this host or in a bucket.
        several: why the run would be one of several processes, or "".
        proc: where the kernel describes its processes.

    Raises:
        WriteError: a bucket can't be written.
    """
    if is_remote(workdir):
        prepare_workdir(workdir)
        yield ok("workdir", f"{workdir} can be written; it is in a bucket, which all hosts see")
        return
    base = nearest_existing(workdir)
    exists = base == workdir.expanduser().absolute()
    if reason := why_not_writable(base) or _closed_checkpoints(workdir):
        yield fail(
            "workdir",
            f"{workdir} can't be written ({reason})",
            "choose another --workdir, or have its owner open it",
            error=WriteError,
        )
        return
    if holder := holder_of(epath.Path(workdir)):
        yield fail(
            "workdir",
            f"{workdir} is in use by {holder}",
            "let that run end, or choose another --workdir",
            error=WriteError,
        )
        return
    steps = checkpoint_steps(workdir)
    if not exists:
        holds = f"can be made in {base}"
    elif steps:
        shown = ", ".join(f"{step:,}" for step in steps[-_MOST_SHOWN:])
        more = f"the newest of {len(steps)}: " if len(steps) > _MOST_SHOWN else ""
        holds = f"can be written, and has checkpoints of steps {more}{shown}"
    else:
        config = "a config but " if (workdir / CONFIG).exists() else ""
        holds = f"can be written, and has {config}no checkpoints"
    kind = file_system(base, proc=proc)
    network = kind.startswith(_NETWORK_FILE_SYSTEMS)
    seen = "other hosts may see it too" if network else "only this host sees it"
    found = f"{workdir} {holds}; on {kind or 'an unknown file system'}: {seen}"
    if several and not network:
        yield warn(
            "workdir",
            f"{found}, but a run would be one of several processes ({several})",
            "unless all of them are on this host, choose a folder that all hosts share",
        )
    else:
        yield ok("workdir", found)


def why_not_writable(folder: Path) -> str:
    """Why a run couldn't make its directory in `folder`; "" if it could.

    The proof is that of a run, in a folder with a name of its own: one that runs isn't disturbed.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".resnet-jax-doctor-") as temporary:
            prepare_workdir(Path(temporary) / "probe")
    except OSError as error:
        return f"{error.strerror or error}: {folder}"
    except WriteError as error:
        return str(error)
    return ""


def _closed_checkpoints(workdir: Path) -> str:
    checkpoints = workdir / CHECKPOINTS
    needed = os.R_OK | os.W_OK | os.X_OK
    effective = os.access in os.supports_effective_ids
    if checkpoints.exists() and not os.access(checkpoints, needed, effective_ids=effective):
        return f"Permission denied: {checkpoints}"
    return ""


def checkpoint_steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints that were finished; Orbax renames them when they are."""
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def file_system(path: Path, *, proc: Path = Path("/proc")) -> str:
    """The type of the file system of `path`, such as "ext4", from proc(5)'s mountinfo, or ""."""
    try:
        lines = (proc / "self/mountinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        return ""
    place = path.resolve()
    depth, kind = -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        # Blanks in names are written as \040.
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        mount = Path(point)
        # Of two mounts on one point the later one hides the other.
        if place.is_relative_to(mount) and len(mount.parts) >= depth:
            depth, kind = len(mount.parts), after.split()[0]
    return kind


def check_compilation_cache(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether JAX_COMPILATION_CACHE_DIR, if it is set, can be written."""
    name = "JAX_COMPILATION_CACHE_DIR"
    folder = environment.get(name)
    if not folder:
        return
    if "://" in folder:
        yield warn(
            "compilation cache",
            f"{name} is {folder}, which isn't a local folder and wasn't tried",
            "see that this machine may write there",
        )
    elif reason := why_not_writable(nearest_existing(Path(folder))):
        yield warn(
            "compilation cache",
            f"{name} is {folder}, which can't be written ({reason})",
            "unset it or choose another folder; else each start compiles anew",
        )
    else:
        yield ok("compilation cache", f"{folder} can be written")
