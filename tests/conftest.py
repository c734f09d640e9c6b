"""Eight fake CPU devices for the whole suite, and one compilation cache."""

import fcntl
import logging
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from tests.program_cache import PREFIX


def _hear_signals() -> None:
    """Set Python's own handlers of signals.

    With nohup, or in the background of a script, a run ignores signals, as it should.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


_hear_signals()

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Most of the suite's time is compilation, of which these options save half. What they leave out
# makes large programs fast; a flag that the user gives comes later, and wins.
_quickly = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # later ones don't have this flag
    _quickly += " --xla_cpu_use_fusion_emitters=false"

# Convolutions that someone compiled here aren't those of a fresh machine.
os.environ["RESNET_JAX_NATIVE"] = "0"

# The workers of pytest-xdist and the processes that tests start share one cache of programs, small
# ones as well, of which each run has fifty. It lasts for one session: programs of another machine
# might not run on this one.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix=PREFIX)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # With a limit, a test that kills a process while it writes a program spoils the others' cache.
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = "-1"
    os.environ["XLA_FLAGS"] = f"{_quickly} {os.environ.get('XLA_FLAGS', '')}".strip()
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


_LIBRARY = "convolution.so"

# Those with minutes of thorough tests come first, in this order, so that no worker begins one of
# them when the other has nothing left to do.
_LONGEST = (
    "integration/test_fixed_shards.py",
    "faults/test_kills.py",
    "test_notebooks.py",
    "train/test_jobs.py",
    "weights/test_own_files.py",
    "integration/test_verified_runs.py",
    "faults/test_signals.py",
    "test_gpu_benchmark.py",
    "research/test_table6.py",
    "faults/test_storage.py",
    "integration/test_sweep_tasks.py",
    "ops/native/test_onednn.py",
)


def pytest_configure() -> None:
    """Let no test of Hypothesis fail because the machine is busy."""
    from hypothesis import HealthCheck, settings

    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")


@pytest.fixture(autouse=True)
def signals_are_heard() -> None:
    """Undo what a command of an earlier test did last: it lets the process ignore signals."""
    _hear_signals()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests."""
    tests, places = Path(__file__).parent, {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(tests).as_posix(), len(_LONGEST)))


def make_tiny_config() -> ConfigDict:
    """Twelve steps of a ResNet-8 of width 4 on digits, on one device; every fourth is saved."""
    from resnet_jax.config.schema import default_config

    config = default_config()
    config.model.stage_sizes = (1, 1, 1)
    config.model.width = 4
    config.data.train = "train[:256]"
    config.data.validation = "train[256:320]"
    config.data.test = "test[:100]"
    config.data.crop_padding = 1
    config.batch_size = 32
    config.eval_batch_size = 64
    config.duration_unit = "examples"
    config.duration = 12 * 32.0
    config.eval_every = 4 * 32.0
    config.checkpoint_every = 4 * 32.0
    config.log_every = 5
    config.steps_per_dispatch = 4
    config.schedule.warmup = 2 * 32.0
    config.ema_decay = 0.9
    config.mesh.data = 1
    return config


@pytest.fixture(scope="session", autouse=True)
def _quick_pictures():
    from tests.runs import quick_pictures

    quick_pictures()


@pytest.fixture
def tiny_config() -> ConfigDict:
    """A fresh copy of `make_tiny_config`, free to be changed."""
    return make_tiny_config()


@pytest.fixture(autouse=True)
def _loggers_as_before():
    """Undo what the command line sets up for a process of its own."""
    loggers = [logging.getLogger(name) for name in (None, "absl", "resnet_jax")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, logger.propagate, logger.handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, once for all workers of pytest-xdist."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, made = root / name, root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def onednn_library(tmp_path_factory):
    """The path of a library of oneDNN's convolutions that was built and checked."""
    from resnet_jax.errors import ConfigError
    from resnet_jax.ops.native.build import build

    try:
        folder = _made_once(
            tmp_path_factory, "native", lambda folder: build(folder / _LIBRARY, check_s=2.0)
        )
    except ConfigError as error:
        if "can't be used here" in str(error):
            raise
        pytest.skip(str(error))  # no compiler, or no oneDNN
    return folder / _LIBRARY


@pytest.fixture
def onednn(onednn_library, monkeypatch):
    """Let this process use oneDNN's convolutions, in programs for one device."""
    from resnet_jax.ops.native import library

    monkeypatch.setenv(library.CHOICE, str(onednn_library))
    library.state.cache_clear()
    jax.clear_caches()
    assert library.state().library
    yield
    monkeypatch.undo()
    library.state.cache_clear()
    jax.clear_caches()


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Work directory of a run in a process of its own that nothing happened to; not to be changed.

    Its steps and what they leave: `TINY` in tests/runs.py.
    """
    from tests.runs import train

    def make(folder: Path) -> None:
        ended = train(folder / "run")
        assert ended.code == 0, ended.said

    return _made_once(tmp_path_factory, "whole", make) / "run"


@pytest.fixture(scope="session")
def bucket(tmp_path_factory):
    """The folder that is gs://bucket; see tests/fake_bucket.py."""
    import fsspec
    from etils.epath import backend
    from orbax.checkpoint._src.path import gcs_utils

    from tests.fake_bucket import BucketFileSystem, serve

    root = tmp_path_factory.mktemp("buckets")
    server = serve(root)
    patch = pytest.MonkeyPatch()
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_address[1]}")
    patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    patch.setattr(BucketFileSystem, "root", str(root))
    for protocol in BucketFileSystem.protocol:
        fsspec.register_implementation(protocol, BucketFileSystem, clobber=True)
    # Orbax would ask Google's own client, for the sake of a kind of bucket that this isn't.
    patch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    backend.fsspec_backend._get_filesystem.cache_clear()
    (root / "bucket").mkdir()
    yield root / "bucket"
    backend.fsspec_backend._get_filesystem.cache_clear()
    patch.undo()
    server.shutdown()
