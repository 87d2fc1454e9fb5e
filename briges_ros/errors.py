"""The one exception type that users of the package have to know."""


class BrigesError(Exception):
    """An error that the user can mend.

    The message is a single line: what is wrong, and how to mend it. The command line prints it
    and exits with code 2; the node logs it and fails the transition it happened in. Anything else
    that is raised is a defect of ours.
    """
