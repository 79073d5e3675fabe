"""What a method can't do without, so that `auto` knows when to take another."""

from command_line import UserError


class NoWeights(UserError):
    """A network's weights are not at hand and can't be downloaded."""
