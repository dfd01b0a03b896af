"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A mistake in the user's files, samples or parameters.

    The message names the file, sample or field and says what to do. The command line prints it without a
    traceback and exits with code 2.
    """
