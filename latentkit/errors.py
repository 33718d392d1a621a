"""Every exception of latentkit, on one page.

A `LatentkitError` is something the user can fix: the command line prints its one message and exits
with 2. The message says what failed, where, what was expected and what was found, and what to do.
Anything else that escapes is a bug of ours and keeps its traceback (exit 1).
"""

from __future__ import annotations


class LatentkitError(Exception):
    """Base of every error a user can fix."""


class RecipeError(LatentkitError):
    """A recipe that can't be run: names the file, the key, what was expected and what was found."""


class PluginError(LatentkitError):
    """A plugin that is missing, broken, clashes with another, or breaks its contract."""


class SourceError(LatentkitError):
    """A source that isn't there, is empty, or can't be reached."""


class EncoderError(LatentkitError):
    """An encoder or model that can't be loaded, or whose output differs from the shapes and values
    that it declares.
    """


class StoreError(LatentkitError):
    """A latent dataset that is missing, unfinished, damaged, or belongs to something else."""


class DamagedError(StoreError):
    """A file of a latent dataset whose content is no longer what was written."""


class FingerprintError(StoreError):
    """An output folder has latents of other weights or settings; names every field that differs.
    """


class DeviceError(LatentkitError):
    """A device that is missing, or that doesn't support what the run needs."""


class TrainingError(LatentkitError):
    """A training run that can't start or continue."""


class SampleError(LatentkitError):
    """One sample can't be used.

    Raised by a modality or a source; the reason becomes a row of the ledger.

    The text is stored, so it holds no memory addresses, no times and no absolute paths: the same
    bad sample must give the same reason in every run.
    """


class InterruptedRunError(BaseException):
    """The run was asked to stop by a signal; `exit_code` is 130 (SIGINT) or 143 (SIGTERM).

    Like `KeyboardInterrupt` it isn't an `Exception`, so that error handling
    lets it through.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
