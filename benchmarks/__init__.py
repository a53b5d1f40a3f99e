"""How fast the library is: against the peer, faiss, plain torch and the bare matrix products, as ratios."""

import dmlstudy  # noqa: F401  # before torch: it settles the instruction set
