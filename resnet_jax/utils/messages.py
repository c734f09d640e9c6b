"""Parts of messages for users."""

_LIMIT = 400  # characters: a path and a reason


def first_line(error: BaseException, *, limit: int = _LIMIT) -> str:
    """Return the first line of an error's message, or its type if it has no message.

    Args:
        error: any exception.
        limit: most characters of the line; a longer line is cut, and ends with " …".
    """
    line = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    return line if len(line) <= limit else line[:limit] + " …"
