"""SynCLR on the command line: words, then captions, pictures, a backbone, and its grade."""

__version__ = "0.1.0"
