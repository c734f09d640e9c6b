"""Publishing on the Hub, which a local server stands for: what is sent, and what never is."""

import getpass
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

import resnet_jax
from resnet_jax.cli.main import main
from resnet_jax.config.io import from_json
from resnet_jax.errors import ConfigError, UsageError, WriteError
from resnet_jax.inference.push import Choice, prepare_push
from resnet_jax.weights.hub_upload import upload
from tests.cli.mistakes import assert_one_line
from tests.fake_hub import COMMIT, TOKEN, serve

constants = pytest.importorskip("huggingface_hub.constants")

NAME = "someone/resnet8.digits"
SECRET = "s3cr3t-of-another-service"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run that was trained with private settings."""
    from tests.conftest import make_tiny_config

    config = make_tiny_config()
    config.checkpoint_every = 32.0
    folder = tmp_path_factory.mktemp("home-of-alice")
    config.prometheus_dir = str(folder / "collector")
    config.data.dir = str(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "another-workstation")
        resnet_jax.fit(config, folder / "secret_project")
    return folder / "secret_project"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The server; its cache is empty, and somebody is logged in."""
    (tmp_path / "hub").mkdir()
    server = serve(tmp_path / "hub")
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        *(constants, "HUGGINGFACE_CO_URL_TEMPLATE"),
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SERVICE_PASSWORD", SECRET)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()


def _received(hub):
    return hub.RequestHandlerClass.received


@pytest.mark.thorough
def test_without_yes_it_shows_everything_and_sends_nothing(run, hub, capsys, tmp_path):
    assert main(["push", str(run), NAME, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sent"] is False
    names = ["README.md", "config.json", "curves.png", "metrics.jsonl", "model.safetensors"]
    assert sorted(document["files"]) == sorted(names)
    assert all(size > 0 for size in document["files"].values())
    assert _received(hub) == []
    assert list((tmp_path / "hub").iterdir()) == []
    assert main(["push", str(run), NAME]) == 0
    shown = capsys.readouterr().out
    assert f"nothing was sent; with --yes these files go to {NAME}" in shown
    assert all(name in shown for name in names)
    assert document["card"].strip() in shown


@pytest.mark.thorough
@pytest.mark.parametrize("flags", [[], ["--checkpoint=best"], ["--ema"]])
def test_what_was_pushed_is_read_back(run, hub, capsys, tmp_path, flags):
    assert (
        main(
            ["push", str(run), NAME, "--yes", "--license=mit", "--note=twelve | steps\n---", *flags]
        )
        == 0
    )
    assert f"sent: {constants.ENDPOINT}/{NAME}/commit/{COMMIT}" in capsys.readouterr().out
    checkpoint = "best" if flags == ["--checkpoint=best"] else "last"
    own = resnet_jax.restore_run(run, checkpoint=checkpoint, ema="--ema" in flags)
    network = resnet_jax.pretrained(NAME)
    model = resnet_jax.create_model("resnet20", num_classes=10, stage_sizes=(1, 1, 1), width=4)
    for variables in (network.variables, resnet_jax.load_weights(model, NAME)):
        jax.tree.map(np.testing.assert_array_equal, variables, dict(own.variables))
    assert network.class_names == own.class_names
    images = list(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8))
    np.testing.assert_allclose(network.predict(images), own.predict(images), rtol=1e-5)

    folder = tmp_path / "hub" / NAME
    summary = json.loads((run / "summary.json").read_text())
    scores = {"last": summary["final"]["test"], "best": summary["best"]["test"]}[checkpoint]
    scores = summary["final"]["test_ema"] if "--ema" in flags else scores
    _, metadata, page = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(metadata)
    assert (metadata["license"], metadata["pipeline_tag"]) == ("mit", "image-classification")
    (index,) = metadata["model-index"]
    assert index["name"] == "resnet8.digits"
    values = {m["type"]: m["value"] for result in index["results"] for m in result["metrics"]}
    assert values == {
        "accuracy": pytest.approx(scores["top1"]), "loss": pytest.approx(scores["loss"]),
    }  # fmt: skip
    assert f'pretrained("{NAME}")' in page
    assert r"| training | twelve \| steps ---: 12 steps of 32" in page
    config = from_json((folder / "config.json").read_text())
    assert tuple(config.model.stage_sizes) == (1, 1, 1)
    assert (config.data.dir, config.prometheus_dir) == (None, "")
    assert (folder / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


@pytest.mark.thorough
def test_nothing_private_is_sent(run, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "alices-workstation")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    assert main(["push", str(run), NAME, "--yes"]) == 0
    sent = b"".join(body for _, body in _received(hub))
    files = [path.read_bytes() for path in (tmp_path / "hub" / NAME).iterdir()]
    private = [TOKEN, SECRET, "alices-workstation", "alice", str(run), str(tmp_path), os.getcwd()]
    private += ["secret_project", "collector", str(Path.home())]
    private.append("another-workstation")  # where it was trained
    for text in private:
        assert text.encode() not in sent, text
        assert all(text.encode() not in file for file in files), text


@pytest.mark.thorough
def test_a_note_with_a_path_or_a_token_is_refused(run, hub, tmp_path):
    for number, (note, kind) in enumerate(
        (
            ("see /home/alice/notes.txt", "a path of this machine"),
            (f"see /home/{NAME}/notes.txt", "a path of this machine"),
            (f"the password is {SECRET}", "a token"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ConfigError, match=f"README.md would hold {kind}") as caught:
            prepare_push(run, NAME, folder, Choice(note=note))
        assert SECRET not in str(caught.value)
    assert _received(hub) == []


@pytest.mark.thorough
def test_a_network_without_scores_is_refused(run, hub, tmp_path):
    with pytest.raises(ConfigError, match=r"has no scores of the network of step 11"):
        prepare_push(run, NAME, tmp_path, Choice(checkpoint="11"))
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    with pytest.raises(ConfigError, match="isn't a finished run"):
        prepare_push(copy, NAME, tmp_path, Choice())


@pytest.mark.parametrize("repo", ["name", "a/b/c", "a/b@main", "a/ b", "", "a/..", "-a/b"])
def test_another_name_is_refused_before_anything_is_read(repo, tmp_path):
    with pytest.raises(UsageError, match="isn't OWNER/NAME"):
        prepare_push(tmp_path / "missing", repo, tmp_path, Choice())


def test_who_is_not_logged_in_is_told_so(hub, tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"nobody is logged in; `hf auth login`"):
        upload(tmp_path / "files", NAME, private=False, message="m")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(WriteError, match=rf"{NAME} can't be written on the Hub \(") as caught:
        upload(tmp_path / "files", NAME, private=False, message="m")
    assert "\n" not in str(caught.value)
    assert "hf_of_somebody_else" not in str(caught.value)


def test_a_model_that_exists_is_not_taken_for_a_private_one(hub, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "README.md").write_text("---\nlicense: mit\n---\n")
    for _ in range(2):  # the second commit goes to the model that the first has created
        upload(tmp_path / "files", NAME, private=False, message="m")
    before = len(_received(hub))
    with pytest.raises(WriteError, match=rf"{NAME} can't be written on the Hub .*409"):
        upload(tmp_path / "files", NAME, private=True, message="m")
    assert [path for path, _ in _received(hub)[before:]] == ["/api/repos/create"]


def test_a_temporary_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    message = f"The temporary folder {tmp_path / 'nowhere'} can't be written (No such file"
    assert_one_line(["push", str(tmp_path), "someone/model"], 73, message, capsys)


def test_without_the_extra_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[hub\]'"):
        prepare_push(tmp_path, NAME, tmp_path, Choice())
