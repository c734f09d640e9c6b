"""`resnet-jax plan`: goodput, interval, days and chip-hours of slices that fail."""

import json

import pytest

import resnet_jax
from resnet_jax.cli.main import main
from tests.runs import ROOT

ARGUMENTS = (
    "plan",
    "--config=configs/cifar10.py:resnet20",
    "--topology=v5e:2x2,v5e:4x4",
    "--mtbf-hours=40",
)
COSTS = ("--save-s=2", "--restart-s=30")


def test_slices_are_compared_and_drawn(tmp_path, capsys):
    figure = tmp_path / "plan.png"
    arguments = (*ARGUMENTS, *COSTS, "--step-s=0.4,0.1", f"--out={figure}")
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    small, large = document["plans"]
    assert (small["chips"], large["chips"]) == (4, 16)
    assert (small["mtbf_s"], large["mtbf_s"]) == (36_000, 9_000)
    for row in (small, large):
        best = row["best"]
        assert 0 < row["configured"]["goodput"] <= best["goodput"] + 1e-6 < 1
        simulated = best["simulated"]
        assert abs(simulated["goodput"] - best["goodput"]) < 4 * simulated["standard_error"]
        assert best["days"] * 24 * row["chips"] == pytest.approx(best["chip_hours"])
        assert document["steps"] * row["step_s"] == pytest.approx(
            best["days"] * 86_400 * best["goodput"]
        )
        # Young's first-order interval, √(2·save·MTBF), in steps.
        assert best["steps"] == pytest.approx((4 * row["mtbf_s"]) ** 0.5 / row["step_s"], rel=0.05)
    assert figure.stat().st_size > 10_000
    assert main([*arguments]) == 0
    said = capsys.readouterr().out
    assert "chip-hours" in said
    assert "Daly's (2006)" in said


@pytest.mark.thorough
def test_a_run_tells_its_costs(tiny_config, tmp_path, capsys):
    tiny_config.checkpoint_every = 32.0
    resnet_jax.fit(tiny_config, tmp_path, stop_at_step=6)
    capsys.readouterr()
    arguments = (*ARGUMENTS, "--step-s=0.4,0.1", f"--run={tmp_path}", "--json")
    assert main([*arguments]) == 0
    row = json.loads(capsys.readouterr().out)["plans"][0]
    seconds = json.loads((tmp_path / "goodput.json").read_text())["seconds"]
    assert row["save_s"] == pytest.approx(seconds["save"] / 6, rel=0.01)
    assert row["restart_s"] == pytest.approx(
        seconds["start_up"] + seconds["restore"] + seconds["compile"], rel=0.01
    )
    share = (seconds["evaluation"] + seconds["data_wait"]) / seconds["step"]
    assert row["other_s"] / row["step_s"] == pytest.approx(share, rel=0.01)
    assert main([*arguments, "--save-s=7"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"][0]["save_s"] == 7


def test_a_killed_run_tells_its_downtime_and_only_saves_that_count(tmp_path, capsys):
    """A start of 10 s was killed at 100 s; a minute later another of 20 s went back to step 4."""
    phases = {"restore": 0.0, "compile": 0.0, "data_wait": 0.0, "evaluation": 0.0, "lost": 0.0}
    at_4 = phases | {"start_up": 10.0, "step": 40.0, "save": 3.0}
    killed = {
        "began": 0.0,
        "updated": 100.0,
        "first_step": 0,
        "last_step": 4,
        "saves": 1,
        "checkpoints": [{"step": 4, "saves": 1, "seconds": at_4}],
        "seconds": at_4 | {"lost": 107.0},
    }
    resumed = killed | {
        "began": 160.0,
        "updated": 260.0,
        "ended": True,
        "first_step": 4,
        "last_step": 8,
        "seconds": phases | {"start_up": 20.0, "step": 40.0, "save": 5.0},
    }
    later = resumed | {"began": 9_000.0, "updated": 9_100.0, "first_step": 8, "last_step": 12}
    (tmp_path / "goodput.json").write_text(json.dumps({"starts": [killed, resumed, later]}))
    assert main([*ARGUMENTS, "--step-s=1,1", f"--run={tmp_path}", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["plans"][0]
    assert row["restart_s"] == pytest.approx((10 + 20 + 20) / 3 + 60)
    assert row["save_s"] == pytest.approx((3 + 5 + 5) / 3)


def test_the_example_of_the_docs_prints_what_they_say(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "verify.md").read_text()
    command, _, output = page.partition("$ resnet-jax plan ")[2].partition("```")[0].partition("\n")
    arguments = ["plan", *command.replace("configs/", f"{ROOT}/configs/").split()]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    assert capsys.readouterr().out == output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--step-s=0.4,0.1",), 64, "--save-s and --restart-s are missing"),
        ((*COSTS, "--step-s=0.4"), 64, "--step-s has 1 values for 2 slices"),
        ((*COSTS, "--step-s=0.4,x"), 64, "'x' isn't a finite number of at least 0"),
        ((*COSTS, "--step-s=0.4,inf"), 64, "'inf' isn't a finite number of at least 0"),
        ((*COSTS, "--step-s=1,1", "--out=x.txt"), 64, "must end in .png"),
        ((*COSTS, "--step-s=1,1", "--out=/no/x.png"), 73, "there is no folder /no"),
        ((*COSTS, "--step-s=1", "--topology=v9:2x2"), 64, "isn't of a known TPU"),
        (("--step-s=1,1", "--run=."), 65, "has no goodput.json"),
        ((*COSTS, "--step-s=1,1", "--config.data.name=folder"), 78, "aren't known"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, capsys):
    assert main([*ARGUMENTS, *arguments]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--mtbf-hours=0", "'0' isn't greater than 0"),
        ("--mtbf-hours=nan", "'nan' isn't a finite number of at least 0"),
        ("--save-s=inf", "'inf' isn't a finite number of at least 0"),
        ("--restart-s=inf", "'inf' isn't a finite number of at least 0"),
    ],
)
def test_impossible_times_are_refused(argument, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*ARGUMENTS, *COSTS, "--step-s=1,1", argument])
    assert ended.value.code == 64
    assert message in capsys.readouterr().err


def test_evaluations_on_a_validation_split_save_too(capsys):
    """The config's intervals are in examples, and its batches have 128."""
    arguments = (*ARGUMENTS, *COSTS, "--step-s=0.4,0.1", "--config.checkpoint_every=384000")
    intervals, said = [], []
    for validation in ("train[45000:]", ""):
        one = (*arguments, f"--config.data.validation={validation}", "--config.eval_every=12800")
        assert main([*one, "--json"]) == 0
        plans = json.loads(capsys.readouterr().out)["plans"]
        intervals.append([row["configured"]["steps"] for row in plans])
        assert main([*one]) == 0
        said.append("bounds the interval: now 12,800 examples." in capsys.readouterr().out)
    assert intervals == [[100] * 2, [3000] * 2]
    assert said == [True, False]


def test_machines_that_never_fail_need_one_checkpoint(capsys):
    assert main([*ARGUMENTS, *COSTS, "--step-s=1,1", "--mtbf-hours=inf", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plans"][0]["best"]["steps"] == document["steps"]
