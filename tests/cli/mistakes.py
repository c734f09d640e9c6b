"""What every mistake on the command line of resnet-jax must come to."""

from resnet_jax.cli.main import main


def assert_one_line(arguments, code, message, capsys):
    """One line on standard error with `message`, the exit code, and nothing else."""
    try:
        returned = main(arguments)
    except SystemExit as error:  # the parser's own
        returned = error.code
    captured = capsys.readouterr()
    assert returned == code
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
