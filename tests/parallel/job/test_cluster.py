"""How a process detects its job and connects to it; whole jobs are in tests/train/test_jobs.py."""

import os

import pytest

from resnet_jax.errors import UsageError
from resnet_jax.parallel.job.cluster import Job, connect, connected, detect_cluster

_SCHEDULERS = ("SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "MEGASCALE_", "JAX_")
_SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[003-007,9]",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch):
    for name in [n for n in os.environ if n.startswith(_SCHEDULERS)]:
        monkeypatch.delenv(name)


def _set(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_without_a_scheduler_or_flags_there_is_one_process():
    assert detect_cluster() is None
    assert connect(None, end=print) is None
    with connected(None, timeout_s=1, end=print):
        pass


def test_flags_say_it_all():
    assert detect_cluster(coordinator="a:1", processes=4, process=3) == Job("a:1", 4, 3)
    assert detect_cluster(coordinator="a:1", processes=1, process=0) is None


def test_slurm_is_read(monkeypatch):
    _set(monkeypatch, **_SLURM)
    assert detect_cluster() == Job("node003:61441", 6, 2, (0,))
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "4,5")
    assert detect_cluster() == Job("node003:61441", 6, 2, (4, 5))
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert detect_cluster() is None


def test_open_mpi_4_is_read(monkeypatch):
    variables = {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "8",
        "OMPI_COMM_WORLD_RANK": "5",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    }
    _set(monkeypatch, **variables)
    job = detect_cluster()
    assert (job.processes, job.process, job.local_devices) == (8, 5, (1,))
    assert job.coordinator.startswith("10.96.0.1:")


def test_open_mpi_5_knows_the_numbers_but_not_where_process_0_is(monkeypatch):
    _set(monkeypatch, OMPI_COMM_WORLD_SIZE="8", OMPI_COMM_WORLD_RANK="5")
    with pytest.raises(UsageError, match="--coordinator is missing: there are 8 processes"):
        detect_cluster()
    assert detect_cluster(coordinator="first:1234") == Job("first:1234", 8, 5)


def test_open_mpi_5_inside_slurm_gives_each_process_a_device_of_its_own(monkeypatch):
    """SLURM started one daemon on each node, so its own numbers are those of the daemons."""
    ranks = {"SIZE": "16", "RANK": "11", "LOCAL_RANK": "3"}
    _set(monkeypatch, **_SLURM, **{f"OMPI_COMM_WORLD_{name}": n for name, n in ranks.items()})
    job = detect_cluster()
    assert (job.processes, job.process, job.local_devices) == (16, 11, (3,))


def test_more_processes_than_there_can_be_are_refused(monkeypatch):
    """Whoever tells of them; waiting for them would take for ever."""
    _set(monkeypatch, **_SLURM | {"SLURM_NTASKS": str(10**9)})
    with pytest.raises(UsageError, match="The environment tells of 1000000000 processes; there"):
        detect_cluster()
    monkeypatch.setenv("JAX_NUM_PROCESSES", str(10**9))
    with pytest.raises(UsageError, match="--num_processes is 1000000000; it must be in 1 … 65536"):
        detect_cluster()


def test_jaxs_variables_are_read(monkeypatch):
    _set(
        monkeypatch,
        JAX_COORDINATOR_ADDRESS="first:1234",
        JAX_NUM_PROCESSES="4",
        JAX_PROCESS_ID="0",
        JAX_LOCAL_DEVICE_IDS="2",
    )
    assert detect_cluster() == Job("first:1234", 4, 0, (2,))
    assert detect_cluster(processes=8, process=7) == Job("first:1234", 8, 7, (2,))
    for wrong in ("four", "-4", "4,5", "4_0", "٤", "9" * 5000):
        monkeypatch.setenv("JAX_NUM_PROCESSES", wrong)
        with pytest.raises(UsageError, match="JAX_NUM_PROCESSES is '.*'; it must be a number"):
            detect_cluster()
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    with pytest.raises(UsageError, match="--num_processes is missing: JAX_COORDINATOR_ADDRESS and"):
        detect_cluster()


def test_a_process_on_its_own_asks_no_cluster(monkeypatch):
    from jax._src.clusters import ClusterEnv

    def ask(*_):
        raise RuntimeError("not allowed to list pods")

    monkeypatch.setattr(ClusterEnv, "auto_detect_unset_distributed_params", ask)
    with pytest.raises(UsageError, match=r"not allowed to list pods.*or --num_processes=1 for"):
        detect_cluster()
    assert detect_cluster(processes=1) is None


def test_a_tpu_slice_on_kubernetes_is_read(monkeypatch):
    """Two slices of two hosts; this is the second host of the second."""
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    _set(
        monkeypatch,
        TPU_WORKER_HOSTNAMES="localhost,other",
        TPU_WORKER_ID="1",
        TPU_SKIP_MDS_QUERY="1",
        MEGASCALE_COORDINATOR_ADDRESS="localhost:8080",
        MEGASCALE_NUM_SLICES="2",
        MEGASCALE_SLICE_ID="1",
    )
    job = detect_cluster()
    assert (job.coordinator, job.processes, job.process) == ("localhost:8482", 4, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"processes": 4}, "--coordinator and --process_id is missing: --num_processes was given"),
        ({"coordinator": "a:1"}, "--num_processes and --process_id is missing"),
        ({"coordinator": "a:1", "processes": 4, "process": 4}, "it must be in 0 … 3"),
        ({"coordinator": "a:1", "processes": 0, "process": 0}, "it must be in 1 … 65536"),
        ({"coordinator": "a:1", "processes": 10**12, "process": 0}, "it must be in 1 … 65536"),
    ],
)
def test_an_incomplete_description_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        detect_cluster(**given)


@pytest.mark.parametrize("timeout_s", [float("inf"), float("nan"), 0.0, -1.0, 1e9])
def test_a_time_out_without_end_is_refused(timeout_s):
    with pytest.raises(
        UsageError, match=r"--coordinator_timeout_s is .*; it must be in 1 … 86,400"
    ):
        connect(Job("127.0.0.1:9", 2, 1), timeout_s=timeout_s, end=print)
