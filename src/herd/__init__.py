"""herd: the Llama 3 recipe as software. One recipe file in, a family of dense language models out."""

__version__ = "0.1.0"
