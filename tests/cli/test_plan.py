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
        ((*COSTS, "--step-s=0.4,x"), 64, "'x' isn't a number of at least 0"),
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


def test_an_impossible_mtbf_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main([*ARGUMENTS, "--mtbf-hours=0"])
    assert ended.value.code == 64
    assert "isn't greater than 0" in capsys.readouterr().err
