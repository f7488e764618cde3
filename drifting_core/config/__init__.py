"""What a run is: the configuration file as models that check it.

Every preset in `config/` is one complete `Configuration`. Each field is either identity (it changes the result, so it is
part of the hashes that name folders and of the rules' params) or an operation: see artifacts/identity.py.

This package is light: the Snakefile imports it on login nodes and in every cluster job. No torch, no h5py.
"""

from drifting_core.config.data import (
    Archives,
    Checksums,
    Data,
    Expected,
    HubTokenizer,
    Latents,
    Tokenizer,
    TokenizerTraining,
)
from drifting_core.config.evaluation import (
    Classifier,
    Contract,
    Evaluation,
    Neighbours,
    Network,
    PublishedStatistics,
    Reference,
    Report,
    Sampling,
    Selection,
    Space,
)
from drifting_core.config.networks import (
    TRAINED,
    AlphaLaw,
    Bank,
    Encoder,
    EncoderFinetune,
    EncoderTraining,
    Generator,
    Importable,
    Objective,
    Training,
)
from drifting_core.config.values import Decay, Device, Fraction, Name, Natural, Positive, Precision, Rate, Resources
from drifting_core.config.whole import Configuration, load, load_file, sections

__all__ = [
    "TRAINED",
    "AlphaLaw",
    "Archives",
    "Bank",
    "Checksums",
    "Classifier",
    "Configuration",
    "Contract",
    "Data",
    "Decay",
    "Device",
    "Encoder",
    "EncoderFinetune",
    "EncoderTraining",
    "Evaluation",
    "Expected",
    "Fraction",
    "Generator",
    "HubTokenizer",
    "Importable",
    "Latents",
    "Name",
    "Natural",
    "Neighbours",
    "Network",
    "Objective",
    "Positive",
    "Precision",
    "PublishedStatistics",
    "Rate",
    "Reference",
    "Report",
    "Resources",
    "Sampling",
    "Selection",
    "Space",
    "Tokenizer",
    "TokenizerTraining",
    "Training",
    "load",
    "load_file",
    "sections",
]
