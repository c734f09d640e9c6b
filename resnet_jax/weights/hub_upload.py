"""Sending files to a model on the Hugging Face Hub."""

from pathlib import Path

from resnet_jax.errors import ConfigError, UsageError, WriteError
from resnet_jax.weights.hub import hub_client


def check_repo(repo: str) -> None:
    """Check the name of a model on the Hub.

    Raises:
        UsageError: it isn't OWNER/NAME in characters that the Hub accepts.
        ConfigError: the extra [hub] isn't installed.
    """
    hub_client("A name on the Hub")
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # noqa: PLC0415

    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UsageError(
            f"{repo!r} isn't OWNER/NAME, the name of a model on the Hub: letters, digits and single"
            " - _ . between them, such as someone/resnet20.digits."
        )


def upload(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Send the files of a folder to a model on the Hub, in one commit.

    A model that doesn't exist is created. Files that aren't in the folder stay as they are; earlier
    versions stay in the model's history.

    Args:
        folder: of the files.
        repo: OWNER/NAME.
        private: create a model that can be seen by its owner alone. A model that exists is refused,
            because everybody may see it.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: nobody is logged in, or the extra [hub] isn't installed.
        WriteError: the Hub refuses, or can't be reached.
    """
    client = hub_client("Sending to the Hub")
    files = [
        client.CommitOperationAdd(path.name, str(path))
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    api = client.HfApi(library_name="resnet_jax")
    if not client.get_token():
        raise ConfigError(f"{repo} can't be written: nobody is logged in; `hf auth login`.")
    try:
        api.create_repo(repo, private=private, exist_ok=not private)
        commit = api.create_commit(repo, files, commit_message=message)
    except Exception as error:  # types of the client, of HTTP and of the system
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WriteError(
            f"{repo} can't be written on the Hub ({reason[:300]}). `hf auth whoami` shows who you"
            " are; nothing is there unless all files are."
        ) from error
    return str(commit.commit_url)
