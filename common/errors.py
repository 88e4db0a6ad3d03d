"""The exceptions that become a sentence for the user; everything else is a bug and shows its traceback."""


class UserError(ValueError):
    """A mistake that the user can mend: one sentence that names what is wrong, where, and the way out."""


class ItemError(UserError):
    """An item that cannot be used: training replaces its pair, everything else stops."""


class PictureError(ItemError):
    """A picture or a video that cannot be read, or is none."""


class TooLongError(ItemError):
    """A prompt that is too long even without its text."""
