"""The one exception for what a user can put right: one line saying what is wrong and how to mend it."""


class UserError(Exception):
    """Shown as a single line, with exit status 2 and no traceback, by the command line."""
