"""Errors after which `--method auto` falls back to another method."""

from command_line import UserError


class NoWeights(UserError):
    """A network or its weights cannot be had on this computer."""


class NothingFound(UserError):
    """A detector found no object of the requested class, or fewer objects than requested."""
