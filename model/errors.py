"""What ends work without a traceback: a mistake that a user can mend, and being asked to end."""


class UserError(Exception):
    """A mistake in the user's files, samples or parameters.

    The message names the file, sample or field and says what to do. The command line prints it without a
    traceback and exits with code 2.
    """


class Stopped(Exception):
    """SIGTERM came, and what was done is saved: the same command goes on. The command line exits with code 75."""
