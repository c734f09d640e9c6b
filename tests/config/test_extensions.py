"""Modules of the user: found as Python finds modules, and never in the directory of a run."""

import importlib
import json
import sys
import zipfile

import pytest
from etils import epath

import resnet_jax
from resnet_jax.config.extensions import describe_changes, extension_digests, import_extensions
from resnet_jax.config.io import from_json
from resnet_jax.config.schema import default_config, validate
from resnet_jax.errors import ConfigError, StoppedEarly
from resnet_jax.research.compare import read_run


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """A current directory that isn't on the import path; what is imported is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _make_run(folder):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text('{"extensions": []}')
    return folder


def test_a_module_is_found_in_the_current_directory(tmp_path):
    (tmp_path / "my_losses.py").write_text("import my_helpers\n")
    (tmp_path / "my_helpers.py").write_text("")
    import_extensions(("my_losses",))
    assert {"my_losses", "my_helpers"} <= set(sys.modules)


def test_the_import_path_comes_first(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text("where = 'here'\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "my_losses.py").write_text("where = 'on the path'\n")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    import_extensions(("my_losses",))
    assert sys.modules["my_losses"].where == "on the path"
    assert str(tmp_path) not in sys.path


def test_a_module_of_a_package_is_found(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "losses.py").write_text("")
    import_extensions(["mine.losses"])
    assert "mine.losses" in sys.modules


def test_the_import_path_is_as_before(tmp_path, monkeypatch):
    """Packages find their other modules all the same, when these are needed."""
    before = list(sys.path)
    for folder in ("mine", "mine_bare"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "losses.py").write_text("def late():\n    from . import other\n")
        (tmp_path / folder / "other.py").write_text("")
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    import_extensions(("mine.losses", "mine_bare.losses"))
    assert sys.path == before
    for folder in ("mine", "mine_bare"):
        sys.modules[f"{folder}.losses"].late()
        assert f"{folder}.other" in sys.modules
    with pytest.raises(ConfigError, match="broken fails"):
        import_extensions(("broken",))
    assert sys.path == before
    monkeypatch.setattr(sys, "path", [*before, str(tmp_path)])
    (tmp_path / "my_losses.py").write_text("")
    importlib.invalidate_caches()
    import_extensions(("my_losses",))
    assert sys.path == [*before, str(tmp_path)]


def test_a_single_name_is_a_sequence_of_one(tmp_path):
    (tmp_path / "my_r.py").write_text("")
    assert default_config("my_r").extensions == ("my_r",)


def test_configs_import_their_extensions_before_all_else(tmp_path):
    (tmp_path / "my_losses.py").write_text("")
    config = default_config(("my_losses",))
    assert config.extensions == ("my_losses",)
    assert sys.modules.pop("my_losses")
    from_json('{"extensions": ["my_losses"]}')
    assert sys.modules.pop("my_losses")
    validate(config)
    assert "my_losses" in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such", "there is no module no_such; put no_such.py into the current directory"),
        ("my_losses.focal", "there is no module my_losses.focal"),
        ("my losses", "it holds import names of modules, such as 'my_losses'"),
        ("", "it holds import names of modules"),
        ("../my_losses", "it holds import names of modules"),
        ("pip.__main__", "it holds import names of modules"),
        ("antigravity", "names 'antigravity', a module of Python itself"),
        ("broken", r"broken fails at .*broken.py, line 2: ZeroDivisionError: division by zero"),
        ("unfinished", r"unfinished fails at .*unfinished.py, line 1: SyntaxError"),
        ("script", r"script fails at .*script.py, line 2: SystemExit: 0"),
        ("incomplete", r"incomplete.py, line 1: ModuleNotFoundError: No module named 'not_there'"),
    ],
)
def test_what_cannot_be_imported_is_said_in_a_line(name, message, tmp_path):
    (tmp_path / "my_losses.py").write_text("")
    (tmp_path / "broken.py").write_text("one = 1\none / 0\n")
    (tmp_path / "unfinished.py").write_text("def f(:\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "incomplete.py").write_text("import not_there\n")
    with pytest.raises(ConfigError, match=message) as error:
        import_extensions((name,))
    assert "\n" not in str(error.value)


def test_a_signal_while_a_module_is_imported_is_not_its_error(tmp_path):
    text = "from resnet_jax.errors import StoppedEarly\nraise StoppedEarly('by a signal')\n"
    (tmp_path / "slow.py").write_text(text)
    with pytest.raises(StoppedEarly):
        import_extensions(("slow",))


def test_code_in_the_directory_of_a_run_is_never_run(tmp_path, monkeypatch):
    """Neither as the current directory, nor below it, nor on the import path, nor by a link."""
    run = _make_run(tmp_path / "of_others" / "theirs")
    evil = "raise SystemExit('ran')\n"
    (run / "evil.py").write_text(evil)
    (run / "package").mkdir()
    (run / "package" / "__init__.py").write_text(evil)
    (tmp_path / "linked.py").symlink_to(run / "evil.py")
    path = list(sys.path)
    for folder, name in (
        (run, "evil"),
        (run, "package"),
        (run, "package.losses"),
        (tmp_path, "linked"),
        (tmp_path, "of_others.theirs.evil"),
        (tmp_path / "of_others", "theirs.evil"),
    ):
        monkeypatch.chdir(folder)
        with pytest.raises(ConfigError, match="in the directory of a run .* no code is run"):
            from_json(f'{{"extensions": ["{name}"]}}')
        assert str(run) not in sys.path
    monkeypatch.setattr(sys, "path", [str(run), *path])
    with pytest.raises(ConfigError, match="in the directory of a run"):
        import_extensions(("evil",))


def _make_bait(folder, name, document="config.json"):
    """A folder that can be read as a run, with a module that leaves a trace if it is run."""
    folder.mkdir()
    config = {"extensions": [name]}
    scores = {"seed": 0, "steps": 1, "final": {}, "best": None}
    content = config if document == "config.json" else scores | {"config": config}
    (folder / document).write_text(json.dumps(content))
    (folder / "evil_x.py").write_text(f"open({str(folder.parent / 'ran')!r}, 'w')\n")
    return folder


@pytest.mark.parametrize(("inside", "name"), [(True, "evil_x"), (False, "bait.evil_x")])
@pytest.mark.parametrize("document", ["config.json", "summary.json"])
@pytest.mark.parametrize("checkpoints", ["none", "a dangling link"])
def test_what_can_be_read_as_a_run_is_one(
    inside, name, document, checkpoints, tmp_path, monkeypatch
):
    """Whatever else the folder holds or lacks."""
    bait = _make_bait(tmp_path / "bait", name, document)
    if checkpoints == "a dangling link":
        (bait / "checkpoints").symlink_to("nowhere")
    monkeypatch.chdir(bait if inside else tmp_path)
    path = "." if inside else "bait"
    with pytest.raises(ConfigError, match="in the directory of a run .* no code is run"):
        read_run(epath.Path(path))
    if document == "config.json":
        with pytest.raises(ConfigError, match="in the directory of a run .* no code is run"):
            resnet_jax.restore_run(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("document", "content"),
    [
        ("config.json", b"\xef\xbb\xbf" + b'{"extensions": ["evil_x"]}'),
        ("config.json", b'{"extensions": ["evil_x"], "x": "' + b" " * 2**24 + b'"}'),
        ("config.json", b'{"extensions": ["evil_x"], "x": ' + b"[" * 10**6),
        ("summary.json", '{"config": {"extensions": ["evil_x"]}}'.encode("utf-16")),
    ],
    ids=["with a mark of UTF-8", "large", "deep", "UTF-16"],
)
def test_so_are_documents_that_are_hard_to_parse(document, content, tmp_path):
    (tmp_path / document).write_bytes(content)
    (tmp_path / "evil_x.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(ConfigError, match="in the directory of a run"):
        import_extensions(("evil_x",))


@pytest.mark.parametrize(
    "content", ["{}", '{"model": "x"}', '["extensions"]', '"extensions"', "not JSON", None]
)
def test_a_project_with_documents_of_its_own_is_not_a_run(content, tmp_path):
    """Its modules are the user's, though it holds config.json, summary.json and checkpoints."""
    (tmp_path / "checkpoints").mkdir()
    for document in ("config.json", "summary.json"):
        if content is None:
            (tmp_path / document).mkdir()
        else:
            (tmp_path / document).write_text(content)
    (tmp_path / "my_losses.py").write_text("")
    import_extensions(("my_losses",))
    assert "my_losses" in sys.modules


def test_nor_in_a_directory_that_is_about_to_be_one(tmp_path):
    (tmp_path / "my_losses.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(ConfigError, match="in the directory of a run"):
        import_extensions(("my_losses",), workdir=tmp_path)


def test_a_source_that_has_changed_is_said_in_a_line(tmp_path):
    (tmp_path / "my_losses.py").write_text("scale = 1\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "losses.py").write_text("scale = 1\n")
    names = ("my_losses", "mine")
    import_extensions(names)
    recorded = extension_digests(names)
    assert all(len(digest) == 64 for digest in recorded.values())
    assert describe_changes(names, recorded) == ""
    assert describe_changes(names, {}) == ""  # the run recorded none
    (tmp_path / "mine" / "losses.py").write_text("scale = 2\n")
    said = describe_changes(names, recorded)
    assert said.startswith("the source of mine (SHA-256 ")
    assert "\n" not in said
    (tmp_path / "my_losses.py").write_text("scale = 2\n")
    assert "my_losses (SHA-256" in describe_changes(names, recorded)


def test_modules_of_an_archive_have_a_digest(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "lib.zip", "w") as archive:
        for name in ("zipped.py", "zipped_package/__init__.py", "zipped_package/losses.py"):
            archive.writestr(name, "scale = 1\n")
    monkeypatch.syspath_prepend(tmp_path / "lib.zip")
    (tmp_path / "plain.py").write_text("scale = 1\n")
    names = ("zipped", "zipped_package", "zipped_package.losses", "plain")
    import_extensions(names)
    digests = extension_digests(names)
    assert digests["zipped"] == digests["zipped_package.losses"] == digests["plain"]
    assert digests["zipped_package"] != digests["zipped"]


def test_a_source_that_is_gone_is_said_in_a_line(tmp_path):
    (tmp_path / "my_losses.py").write_text("")
    import_extensions(("my_losses",))
    (tmp_path / "my_losses.py").unlink()
    with pytest.raises(
        ConfigError, match="names 'my_losses', whose source can't be read .*No such"
    ):
        extension_digests(("my_losses",))
