"""The one exception type that users of the package have to know."""


class BrigesError(Exception):
    """An error that the user can mend.

    The message is a single line: what is wrong, and how to mend it. The command line prints it
    and exits with code 2; the node logs it and fails the transition it happened in. Anything else
    that is raised is a defect of ours.
    """


def quoted(text: str, most: int = 60) -> str:
    """Quote what somebody else wrote so that it stays one short line, whatever it is.

    A name in a message may hold megabytes, line breaks that would forge lines of a log, or codes
    that terminals obey.

    Args:
        text: anything.
        most: characters to keep of it.

    Returns:
        The text between single quotes; what does not print as Python's escapes have it.
    """
    kept = ''.join(
        character if character.isprintable() else character.encode('unicode_escape').decode()
        for character in text[:most]
    )
    return f"'{kept}'" if len(text) <= most else f"'{kept}...' ({len(text)} characters)"
