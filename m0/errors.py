"""Every error that m0 raises on purpose. Each message is one sentence that names the thing, the value and the limit."""


class M0Error(Exception):
    """Base class of all errors below: catch it to catch them all."""


class InputError(M0Error, ValueError):
    """A query, a document or an argument that cannot be used as given."""


class ImageError(InputError):
    """A picture that cannot be found, fetched, opened or used."""


class TooLongError(InputError):
    """A pair whose pictures leave no room within the length limit."""


class ConfigError(M0Error, ValueError):
    """A config.json that does not describe a model of this kind."""


class CheckpointError(M0Error, RuntimeError):
    """A weights file that is missing, damaged or does not fit the model."""


class AdapterError(CheckpointError):
    """A LoRA adapter that is missing, damaged or does not fit the model."""


class DownloadError(M0Error, OSError):
    """A model that could not be fetched."""


class MissingExtraError(M0Error, ImportError):
    """An optional package that a feature needs and that is not installed."""


class TrainError(M0Error, RuntimeError):
    """A training run that cannot begin, or cannot go on."""
