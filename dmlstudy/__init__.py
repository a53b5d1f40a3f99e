"""Deep metric learning, method by method, under one protocol."""

from dmlstudy.portable import settle

__version__ = "0.1.0"

settle()  # before anything imports torch, NumPy or faiss
