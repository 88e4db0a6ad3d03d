"""The one exception that becomes a sentence for the user; everything else is a bug and shows its traceback."""


class UserError(ValueError):
    """A mistake that the user can mend: one sentence that names what is wrong, where, and the way out."""
