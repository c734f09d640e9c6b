"""Opening the trackers of a config: what is missing ends a new run, before it trains."""

import json
import sys

import pytest
from etils import epath

from resnet_jax.config.schema import default_config
from resnet_jax.errors import ConfigError, StoppedEarly
from resnet_jax.logging import tracking
from resnet_jax.logging.tracking import check_installed, hyperparameters, open_trackers


class Service:
    """A tracker that works unless `error` is set."""

    title, error, known = "Service", None, []

    def __init__(self, workdir, *, run_id):
        if self.error:
            raise self.error
        self.known.append(run_id)
        self.run_id, self.where, self.outcomes = run_id or "new", "here", []

    def hyperparameters(self, values):
        assert values["model.name"] == "resnet20"

    def end(self, outcome):
        pass


@pytest.fixture
def config():
    config = default_config()
    config.trackers = ("wandb",)
    return config


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(Service, "error", None)
    monkeypatch.setattr(Service, "known", [])
    monkeypatch.setitem(tracking._SERVICES, "wandb", Service)
    return Service


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_extra_is_one_line(config, monkeypatch, name):
    config.trackers = ("tensorboard", name)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"client isn't installed: .*\.\[{name}\]") as caught:
        check_installed(config)
    assert "\n" not in str(caught.value)


def test_a_folder_of_the_clients_name_is_not_the_client(config, monkeypatch, tmp_path):
    """W&B makes a folder "wandb" in the current directory."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="isn't installed"):
        check_installed(config)


def test_a_run_goes_on_in_the_same_run_of_the_service(config, service, tmp_path):
    workdir = epath.Path(tmp_path)
    with open_trackers(config, workdir, start_step=0):
        pass
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "new"}
    with open_trackers(config, workdir, start_step=4):
        pass
    with open_trackers(config, workdir, start_step=0):  # nothing was saved: it begins anew
        pass
    assert service.known == [None, "new", None]


@pytest.mark.parametrize("text", ["{", "[]", '{"wandb": 1}', ""])
def test_a_damaged_list_of_runs_begins_new_ones(config, service, tmp_path, text):
    (tmp_path / "trackers.json").write_text(text)
    with open_trackers(config, epath.Path(tmp_path), start_step=4) as trackers:
        assert trackers
    assert service.known == [None]


def test_a_service_that_refuses_ends_a_new_run_only(config, service, tmp_path, caplog):
    config.trackers = ("tensorboard", "wandb")
    service.error = ValueError("No API key configured.\nUse `wandb login`")
    with pytest.raises(ConfigError, match=r"Service can't be used \(No API key configured\)"):
        open_trackers(config, epath.Path(tmp_path), start_step=0)
    with open_trackers(config, epath.Path(tmp_path), start_step=4) as trackers:
        assert trackers  # TensorBoard
    assert caplog.messages == [
        "Service's copy of the record ends here (No API key configured); metrics.jsonl goes on."
    ]


def test_a_signal_while_a_service_is_opened_is_not_an_error_of_the_service(
    config, service, tmp_path
):
    service.error = StoppedEarly("stopped")
    for step in (0, 4):
        with pytest.raises(StoppedEarly):
            open_trackers(config, epath.Path(tmp_path), start_step=step)


def test_no_tracker_at_all(config, tmp_path):
    config.trackers = ()
    with open_trackers(config, epath.Path(tmp_path), start_step=0) as trackers:
        assert not trackers
    assert list(tmp_path.iterdir()) == []


def test_hyperparameters_are_what_is_set_without_folders(config, tmp_path):
    config.data.dir = config.prometheus_dir = str(tmp_path)
    config.schedule.scales = (1.0, 0.1)
    values = hyperparameters(config)
    assert values["optimizer.name"] == "sgd"
    assert values["schedule.scales"] == "(1.0, 0.1)"
    assert values["optimizer.nesterov"] is False
    assert not {"data.dir", "prometheus_dir", "init_from", "model.width"} & values.keys()
    assert str(tmp_path) not in json.dumps(values)
