"""Weight files by reference: files, weights of this package, and models on the Hugging Face Hub.

A model on the Hub is downloaded to the cache of the Hub's client, and verified. Its reference is
OWNER/NAME, or OWNER/NAME@REVISION, where the revision is a branch, a tag or a commit's hash. Only a
commit's hash pins the content. The cache has a folder per commit, so a config file lies beside its
weights.
"""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

from resnet_jax.errors import ConfigError, DataError, did_you_mean
from resnet_jax.utils.distribution import install_hint
from resnet_jax.weights.zoo import find_weights, list_weights, zoo_file

_log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"

_REFERENCE = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
_FILES = (".bin", ".ckpt", ".gz", ".h5", ".npy", ".npz", ".pkl", ".pt", ".pth", ".safetensors")
_CONNECT_S = 10.0
_RENAMED = "It may be misspelt, renamed, or private: `hf auth login` shows who you are."


def local_file(reference: str | os.PathLike[str]) -> str:
    """Path of a weight file on this machine; a reference to the Hub is downloaded.

    Args:
        reference: the path of a file, the name of weights of this package (`list_weights`), or
            OWNER/NAME[@REVISION] of a model on the Hub. An existing file takes precedence; a folder
            takes precedence over a model on the Hub only.

    Returns:
        The path, ~ being the user's home. The file need not exist.

    Raises:
        ConfigError: the extra [hub] isn't installed.
        DataError: a file of this package was changed; or the name resembles the name of weights of
            this package, and there is no such file; or the model or revision doesn't exist, has no
            weights in safetensors, or is neither reachable nor in the cache; or a file in the cache
            differs from the published file.
    """
    name = os.path.expanduser(reference)
    if _is_file(name):
        return name
    if path := zoo_file(name):
        return path
    if os.path.lexists(name):
        return name
    parts = _REFERENCE.fullmatch(name)
    if not parts:
        if hint := did_you_mean(name, [own.name for own in list_weights()]):
            raise DataError(f"There is no file {name}, and no such weights of this package.{hint}")
        return name
    return _download(name, parts[1], parts[2] or "main")


def full_name(reference: str | os.PathLike[str]) -> str:
    """The full name of weights of this package; any other reference is returned, ~ expanded.

    Args:
        reference: as for `local_file`.
    """
    name = os.path.expanduser(reference)
    own = None if _is_file(name) else find_weights(name)
    return own.name if own else name


def is_reference(name: str) -> bool:
    """Whether a name is that of weights of this package or of a model on the Hub, not of a file."""
    if _is_file(name):
        return False
    return find_weights(name) is not None or (
        _REFERENCE.fullmatch(name) is not None and not os.path.lexists(name)
    )


def _is_file(name: str) -> bool:
    """Whether the name is that of a file, which may be missing; a folder isn't a file."""
    is_there = os.path.lexists(name) and not os.path.isdir(name)
    return is_there or name.lower().endswith(_FILES)


def hub_client(purpose: str) -> Any:
    """The client of the Hub, the package huggingface_hub.

    Args:
        purpose: what it is needed for, the beginning of a message.

    Raises:
        ConfigError: the extra [hub] isn't installed.
    """
    try:
        import huggingface_hub  # noqa: PLC0415 - an extra
        import huggingface_hub.errors  # noqa: PLC0415 - a module that isn't imported with it
    except ImportError:
        raise ConfigError(
            f"{purpose} needs the client of the Hub: {install_hint('hub')}."
        ) from None
    return huggingface_hub


def _download(reference: str, model: str, revision: str) -> str:
    client = hub_client(f"{reference} isn't a file here; taking it from the Hub")
    errors = client.errors

    def fetch(file: str, commit: str) -> Path:
        path = client.hf_hub_download(
            *(model, file), revision=commit, etag_timeout=_CONNECT_S, library_name="resnet_jax"
        )
        return Path(path)

    def fetch_if_there(file: str, commit: str) -> Path | None:
        known = client.try_to_load_from_cache(model, file, revision=commit)
        if known is client.file_download._CACHED_NO_EXIST:
            return None
        try:
            return fetch(file, commit)
        except errors.LocalEntryNotFoundError:
            raise  # offline: whether the file exists isn't known
        except errors.EntryNotFoundError:
            return None

    try:
        weights = fetch(WEIGHTS, revision)
        commit = weights.parent.name
        files = [weights, config := fetch_if_there(CONFIG, commit)]
        if not (config and b'"pretrained_cfg"' in config.read_bytes()):  # timm's config has it all
            files.append(fetch_if_there(PROCESSOR, commit))
    except Exception as error:  # types of the client, of HTTP and of the system
        raise DataError(_explain(error, reference, model, revision)) from error
    for path in filter(None, files):
        _verify(path, reference)
    if revision != commit:
        _log.info("%s is at commit %s; %s@%s pins it", reference, commit, model, commit)
    return str(weights)


def _verify(path: Path, reference: str) -> None:
    """Compare a file with its published digest, which is the name of its blob in the cache.

    The digest is SHA-256 for large files and Git's SHA-1 of a blob for others. On a file system
    without symbolic links the cache holds no digest, and the file isn't verified.
    """
    if not path.is_symlink():
        return
    published, found = Path(os.readlink(path)).name, ""
    if len(published) == 64:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    elif len(published) == 40:
        data = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if found and found != published:
        raise DataError(
            f"{path} isn't what {reference} has on the Hub (SHA {found[:16]}…, not"
            f" {published[:16]}…). Remove {path.resolve()}, and it is downloaded again."
        )


def _explain(error: Exception, reference: str, model: str, revision: str) -> str:
    from huggingface_hub import errors  # noqa: PLC0415

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{reference} is for those who have accepted its terms on the Hub's page; do so, then"
            " `hf auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"There is no file {reference} here, and no such model on the Hub. {_RENAMED}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model} has no revision {revision!r} on the Hub."
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return (
            f"{reference} isn't in the cache, and the Hub can't be reached. Connect once, or fetch"
            f" {WEIGHTS} and {CONFIG} elsewhere, put them into a folder and name the file there."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return (
            f"{reference} has no {WEIGHTS} on the Hub. Download the file that it has; one of"
            " PyTorch is made into safetensors by `resnet-jax convert`."
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{reference} can't be taken from the Hub ({reason[:300]})."
