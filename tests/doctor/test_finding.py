"""A check that goes wrong itself."""

from resnet_jax.doctor import finding, host
from resnet_jax.errors import DataError
from tests.doctor.helpers import only, run_doctor


def test_a_check_that_fails_itself_is_a_line_and_the_others_go_on(capsys, quick, monkeypatch):
    def broken():
        yield finding.ok("memory", "this is still known")
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(host, "check_memory", broken)
    code, found = run_doctor(capsys, broken="memory")
    assert [line["status"] for line in found["memory"]] == ["ok", "warn"]
    assert "couldn't be checked (ZeroDivisionError: a bug)" in found["memory"][1]["message"]
    assert code == 0
    assert "clock" in found


def test_an_error_of_the_package_keeps_its_sentence_and_exit_code():
    def missing():
        raise DataError("x and y are missing:\n  x\n  y")
        yield

    one = only(finding.diagnose({"data": missing}))
    assert one.message == "x and y are missing: x; y"
    assert (one.status, one.exit_code) == ("fail", 65)
    assert finding.exit_code([finding.warn("a", "b", "c"), one]) == 65
