"""Runs of a sweep: which there are, how they are made, and what their scores come to."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest
from etils import epath

import resnet_jax
from resnet_jax.checkpoint.stop import StopRequest
from resnet_jax.config.schema import default_config, flatten
from resnet_jax.errors import ConfigError
from resnet_jax.research import workers
from resnet_jax.research.progress import Progress
from resnet_jax.research.scores import as_csv, group_rows, score_rows, shared_name, sweep_rows
from resnet_jax.research.sweep import check_runs, labels_of, plan_runs
from tests.conftest import make_tiny_config
from tests.research import fake_child

COMMAND = [sys.executable, fake_child.__file__]


def _seeds(*seeds: int):
    return plan_runs(default_config(), [{"seed": seed} for seed in seeds])


def test_every_override_makes_a_run_with_a_name_of_what_differs():
    base = default_config()
    runs = plan_runs(
        base,
        [
            {"model.name": "resnet20", "model.shortcut": "A"},
            {"model.stage_sizes": [2, 2], "schedule.base_lr": 1},
            {"data.dir": "/some where/else/"},
            {"name": "mine", "seed": 3},
            {},
        ],
    )
    assert [run.name for run in runs] == [
        "model.name=resnet20,model.shortcut=A",
        "model.stage_sizes=2-2,schedule.base_lr=1",
        "data.dir=else",
        "mine",
        "base",
    ]
    assert flatten(runs[1].config)["model.stage_sizes"] == (2, 2)
    assert runs[1].config.schedule.base_lr == 1.0
    assert runs[3].config.seed == 3
    assert base.seed == 0  # untouched
    assert base.model.stage_sizes is None


def test_a_name_is_short_and_depends_on_nothing_but_the_run():
    long = {"data.train": "train[:100]+" * 20, "seed": 1}
    (alone,) = plan_runs(default_config(), [long])
    *_, last = plan_runs(default_config(), [{"seed": 7}, long | {"seed": 2}, long])
    assert alone.name == last.name
    assert len(alone.name) == 120


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "no run"),
        ([{"seed": 1}, "seed=2"], "it must yield dicts"),
        ([{"seed": 1}, {"model.depth": 3}], "Run 2 of the sweep: There is no config field"),
        ([{"seed": "one"}], "Run 1 of the sweep: seed can't be 'one'"),
        ([{"name": "a/b"}], "names a run 'a/b'"),
        ([{"name": 3}], "names a run 3"),
        ([{"name": "a", "seed": 1}, {"name": "a", "seed": 2}], "Two runs of the sweep are named"),
        ([{"name": "a", "seed": 1}, {"name": "b", "seed": 1}], "a and b of the sweep are one"),
        ([{"name": "a"}, {"name": "b", "seed": 0}], "a and b of the sweep are one"),
    ],
)
def test_what_is_no_sweep_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        plan_runs(default_config(), overrides)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": -1}, "batch_size=-1: batch_size is -1"),
        ({"optimizer.name": "sdg"}, "optimizer.name=sdg: optimizer.name is 'sdg'"),
        ({"model.name": "resnet21"}, "model.name=resnet21: .*resnet21"),
        ({"data.train": "training"}, "data.train=training: .*training"),
    ],
)
def test_all_runs_are_checked(wrong, message, tmp_path):
    runs = plan_runs(make_tiny_config(), [{"seed": 1}, wrong])
    with pytest.raises(ConfigError, match=f"^{message}.*No run was started"):
        check_runs(runs, epath.Path(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_weight_file_may_say_which_network_a_run_has(tmp_path):
    config = make_tiny_config()
    model = resnet_jax.create_model("resnet20", width=4, num_classes=10)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (8, 8, 1))
    resnet_jax.save_weights(tmp_path / "w.safetensors", model, variables)
    config.model.name, config.init_from = "", str(tmp_path / "w.safetensors")
    config.model.stage_sizes = config.model.width = None
    (run,) = runs = plan_runs(config, [{"seed": 1}])
    check_runs(runs, epath.Path(tmp_path))
    assert not run.is_finished(epath.Path(tmp_path))


def test_a_directory_of_another_config_is_refused(tmp_path):
    (tmp_path / "seed=1" / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "seed=1" / "config.json").write_text('{"seed": 1, "batch_size": 99}')
    with pytest.raises(ConfigError, match="seed=1: .*another config"):
        check_runs(plan_runs(make_tiny_config(), [{"seed": 1}]), epath.Path(tmp_path))


def _train(runs, workdir, *, processes=2, stop_at=None, told=None):
    ended = {}
    with (
        StopRequest() as stop,
        contextlib.closing(
            workers.train_all(
                runs,
                epath.Path(workdir),
                command=COMMAND,
                environments=[{}] * processes,
                stop=stop,
            )
        ) as events,
    ):
        for run, event in events:
            if isinstance(event, workers.Ended):
                ended[run.name] = event
            elif told is not None:
                told.append((run.name, event))
                (workdir / f"heard of step {event.step}").touch()  # a child may wait for it
            if run.name == stop_at and event == Progress():
                os.kill(os.getpid(), signal.SIGTERM)
    return ended


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    runs = _seeds(fake_child.FAILS, 1, fake_child.IS_KILLED, 2)
    ended = _train(runs, tmp_path)
    assert {name: (how.state, how.exit_code) for name, how in ended.items()} == {
        "seed=70": ("failed", 70),
        "seed=1": ("finished", 0),
        "seed=9": ("failed", 128 + 9),
        "seed=2": ("finished", 0),
    }
    assert "isn't finite" in ended["seed=70"].said
    assert [run.is_finished(epath.Path(tmp_path)) for run in runs] == [False, True, False, True]


@pytest.mark.thorough
def test_how_far_the_runs_are_is_told_as_they_go_on(tmp_path):
    told = []
    ended = _train(_seeds(fake_child.TELLS, 1), tmp_path, told=told)
    assert [how.state for how in ended.values()].count("finished") == 2
    assert [event for name, event in told if name == "seed=1"] == [Progress()]
    assert [str(event) for name, event in told if name == f"seed={fake_child.TELLS}"] == [
        "no step yet",
        "step 4/12  ETA 1:02",
        "step 8/12  validation 50.00 ± 1.00 %  ETA 1:02",
    ]


def test_a_stop_is_passed_on_and_nothing_begins_after_it(tmp_path):
    runs = _seeds(fake_child.STOPS, 1, 2)
    ended = _train(runs, tmp_path, processes=1, stop_at=runs[0].name)
    assert [(name, how.state) for name, how in ended.items()] == [("seed=75", "stopped")]


def test_a_run_that_a_terminal_interrupts_as_well_has_not_failed(tmp_path):
    """Ctrl-C reaches the process of a run before it listens for signals."""
    program = "import os, signal; signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), 2)"
    [run] = _seeds(1)
    worker = workers._Worker(run, epath.Path(tmp_path), [sys.executable, "-c", program], {})
    worker._process.wait()
    assert worker.ended().state == "failed"  # nobody had asked it to stop
    worker.ask_to_stop()
    assert worker.ended().state == "stopped"
    worker.close()


def test_a_process_whose_sweep_was_killed_before_it_began_trains_nothing(tmp_path):
    job = {"config": "{}", "workdir": str(tmp_path / "run"), "argv": [], "parent": 1}
    command = [sys.executable, "-m", "resnet_jax.cli.fit_child"]
    done = subprocess.run(command, input=json.dumps(job).encode(), check=False)
    assert done.returncode == 75
    assert not (tmp_path / "run").exists()


def test_processes_end_with_the_sweep(tmp_path):
    runs, pid_file = _seeds(fake_child.STOPS), tmp_path / "seed=75" / "pid"
    events = workers.train_all(
        runs, epath.Path(tmp_path), command=COMMAND, environments=[{}], stop=StopRequest()
    )
    next(events)
    while not pid_file.exists() or not pid_file.read_text():
        time.sleep(0.02)
    events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


@pytest.mark.parametrize(
    ("devices", "visible", "expected"),
    [
        ({"platform": "cpu", "local": 1}, None, [{}, {}, {}]),
        (
            {"platform": "gpu", "local": 2},
            None,
            [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "1", "0")],
        ),
        (
            {"platform": "gpu", "local": 3},
            "4,6,7",
            [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("4", "6", "7")],
        ),
    ],
)
def test_each_process_has_a_device_in_turn(devices, visible, expected, monkeypatch):
    monkeypatch.setattr(workers, "_devices", lambda: devices)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers.environments_for(3) == expected
    assert workers.environments_for(1) == [{}]


def test_scores_of_one_program_are_those_of_its_seeds():
    def scores(*values):
        single = {"loss": 0.5, "top1": values[0], "top5": 1.0}
        of_seeds = {name: [value] * len(values) for name, value in single.items()}
        return {"examples": 10, **single, "seeds": of_seeds | {"top1": list(values)}}

    summary = {
        "seeds": [3, 4],
        "steps": 12,
        "final": {"test": scores(0.8, 0.9), "test_ema": scores(0.7, 0.6)},
        "best": {"step": 8, **scores(0.5, 0.6), "test": scores(0.4, 0.3)},
    }
    rows = score_rows(summary)
    assert [(r["seed"], r["split"], r["weights"], r["step"], r["top1"]) for r in rows] == [
        (3, "test", "raw", 12, 0.8),
        (3, "test", "ema", 12, 0.7),
        (3, "validation", "best", 8, 0.5),
        (3, "test", "best", 8, 0.4),
        (4, "test", "raw", 12, 0.9),
        (4, "test", "ema", 12, 0.6),
        (4, "validation", "best", 8, 0.6),
        (4, "test", "best", 8, 0.3),
    ]


def test_runs_that_differ_in_the_seed_are_one_group(tmp_path):
    base, workdir = default_config(), epath.Path(tmp_path)
    runs = plan_runs(
        base, [{"model.width": width, "seed": seed} for width in (8, 16) for seed in (1, 2, 3)]
    )
    _train(runs[:5], tmp_path)  # one isn't finished
    rows = sweep_rows(runs, workdir)
    narrow, wide = group_rows(rows, ("model.width",))
    assert narrow["label"] == "width=8"
    assert narrow["seeds"] == [1, 2, 3]
    assert narrow["scores"]["test"]["n"] == 3
    assert narrow["scores"]["test"]["top1"] == pytest.approx({"mean": 0.92, "std": 0.01})
    assert narrow["wall_s"] == 6.0
    assert wide["fields"] == {"model.width": 16}
    assert wide["scores"]["test"]["top1"] == pytest.approx({"mean": 0.915, "std": 0.005 * 2**0.5})
    assert narrow["versus"] is None
    assert wide["versus"]["test"] == "Welch's t"  # as the third seed of one is missing
    assert wide["versus"]["effect"] == pytest.approx(-0.005)
    assert wide["versus"]["is_real"] is False
    assert as_csv(rows).splitlines()[:2] == [
        "run,model.width,seed,split,weights,step,examples,loss,top1,top5,wall_s,img_per_s,params",
        '"model.width=8,seed=1",8,1,test,raw,12,100,0.08999999999999997,0.91,1.0,2.0,100.0,67906',
    ]


def test_rows_are_called_by_what_differs_unless_the_sweep_names_them():
    fields = {"model.stage_sizes": (1, 1), "model.width": 4, "optimizer.name": "sgd"}
    runs = plan_runs(
        default_config(),
        [
            fields | {"model.name": "resnet20", "seed": 1},
            fields | {"model.name": "resnet20", "model.stage_sizes": (2, 1)},
            fields | {"model.name": "resnet56", "optimizer.name": "lars"},
            {"name": "mine"},
        ],
    )
    *_, mine = labels = list(labels_of(runs).values())
    assert labels[0] == (
        "stage_sizes=1-1, width=4, optimizer.name=sgd, model.name=resnet20, seed=1"
    )
    assert mine == "mine"
    two = labels_of(runs[:2])
    assert list(two.values()) == ["stage_sizes=1-1, seed=1", "stage_sizes=2-1, seed=0"]
    assert list(labels_of(runs[3:]).values()) == ["mine"]
    assert list(labels_of(plan_runs(default_config(), [{}])).values()) == ["base"]
    assert list(labels_of(plan_runs(default_config(), [{"model.width": 8}])).values()) == [
        "width=8"
    ]


def test_groups_of_named_runs_keep_the_names():
    rows = [
        {
            "run": run,
            "seed": seed,
            "split": "test",
            "weights": "raw",
            "step": 1,
            "model.width": width,
        }
        | {"examples": 9, "loss": 0.1, "top1": 0.9, "top5": 1.0, "wall_s": 1.0, "params": 3}
        for run, seed, width in (
            ("thin,seed=0", 0, 4),
            ("thin,seed=1", 1, 4),
            ("model.width=8", 0, 8),
        )
    ]
    named, default = group_rows(rows, ("model.width",), named={"thin,seed=0", "thin,seed=1"})
    assert (named["label"], default["label"]) == ("thin", "width=8")
    assert group_rows([], ("model.width",)) == []
    # Settings that vary with the seeds of a run.
    thin, wide = group_rows(
        [row | {"run": "a", "wall_s": 3.0} for row in rows], ("model.width",), named={"a"}
    )
    assert (thin["label"], wide["label"]) == ("a,width=4", "a,width=8")
    assert (thin["wall_s"], wide["wall_s"]) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        (["a"], "a"),
        (["a,seed=0", "a,seed=1"], "a"),
        (["seed=0,b=1", "seed=12,b=1"], "b=1"),
        (["a_seed0", "a_seed1"], "a"),
        (["a/seed0", "a/seed1"], "a"),
        (["x", "y"], "x + y"),
    ],
)
def test_a_group_is_named_for_what_its_runs_share(names, shared):
    assert shared_name(names) == shared
