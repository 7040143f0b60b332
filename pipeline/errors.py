"""The exceptions a user can meet. The command line turns each into one line and an exit code."""


class SurgeryError(Exception):
    """Something went wrong while working: the message names the file or tensor and what to do."""

    exit_code = 1


class UsageError(SurgeryError):
    """What was asked for cannot be done: the message names the option, what was expected and what to do."""

    exit_code = 2
