"""Errors after which `--method auto` falls back to another method."""

from command_line import UserError


class NoWeights(UserError):
    """The weights of a network are not on this computer and cannot be downloaded."""


class NothingFound(UserError):
    """A detector found no object of the requested class, or fewer objects than requested."""
