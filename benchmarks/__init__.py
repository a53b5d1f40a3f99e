"""How fast the library is: against the peer, faiss, plain torch and the bare matrix products, as ratios."""
