"""Training: settings and a folder come in, a trained model with its whole record comes out.

Read config.py (what can be set), run.py (the whole way), trainer.py (one step) in this order.
"""
