"""Which version this is, for everyone who must say it; imports nothing of ours."""

from importlib.metadata import version

__version__ = version("shieldgate")
