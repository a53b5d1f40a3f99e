from dmlstudy.losses.product_quantisation import asymmetric_distances, hard_codes, query_tables
