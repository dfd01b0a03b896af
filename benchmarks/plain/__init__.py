"""Networks written straight from the equations, without any saving: what ours must beat, and a second proof of it.

Tensors carry the names of released checkpoints, so `model.reference.to_original` fills a plain network from ours.
"""
